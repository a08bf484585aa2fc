"""The picture of which layers share channels, and what `explain` says each group costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import refused, run
from models import Net, conv, pooled
from torch import Tensor, nn

import fxprune
from fxprune.coupling_picture import COLOURS, GREY, layout, picture, tracks, write_picture
from fxprune.explanation import Explanation

pytest.importorskip("matplotlib")


def explained(approximate: str = "cut") -> Explanation:
    """a (6) and b's outputs are added; up makes 10 from them, norm looks at all of these, c reads them."""

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        x = s.up((x + s.b(x)).relu())
        return s.c(s.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).flatten(2).mean(2)

    parts = {"a": conv(3, 6), "b": conv(6, 6), "up": nn.ConvTranspose2d(6, 10, 2, 2), "norm": nn.LayerNorm(10)}
    return fxprune.explain(Net(forward, **parts, c=conv(10, 4, 1)), torch.randn(2, 3, 8, 6), approximate=approximate)


def test_layers_in_order_and_rails_where_they_make_and_read() -> None:
    names, rails, _ = layout(explained())
    assert names == ["a.weight", "b.weight", "up.weight", "c.weight"]
    assert [(rail.group.width, rail.makes, rail.reads) for rail in rails] == [
        (6, (0, 1), (1, 2)),
        (10, (2,), (3,)),
        (4, (3,), ()),
    ]


def test_rails_share_a_track_only_when_they_do_not_meet() -> None:
    _, rails, _ = layout(fxprune.explain(fxprune.zoo.build("resnet8"), torch.randn(2, 3, 32, 32)))
    track = tracks(rails)
    assert 1 < len(set(track.values())) < len(rails)
    for left in rails:
        for right in rails:
            if left is not right and track[left.group.index] == track[right.group.index]:
                assert left.ends[1] + 1 < right.ends[0] or right.ends[1] + 1 < left.ends[0]


def test_colours_and_dashes_tell_the_state() -> None:
    from matplotlib.colors import to_hex

    axes = picture(explained(), "net").axes[0]
    rails = [line for line in axes.lines if line.get_linewidth() == 2.2]
    assert [(to_hex(line.get_color()), line.get_linestyle()) for line in rails] == [
        (COLOURS[0], "-"),
        (COLOURS[1], "--"),  # behind a LayerNorm
        (GREY, "-"),  # the network's output
    ]
    kept = picture(explained("freeze"), "net").axes[0]
    assert [to_hex(line.get_color()) for line in kept.lines if line.get_linewidth() == 2.2] == [COLOURS[0], GREY, GREY]


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_the_same_network_gives_the_same_bytes(ending: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_picture(explained(), "net.pt", tmp_path / f"{name}{ending}")
    data = (tmp_path / f"one{ending}").read_bytes()
    assert data == (tmp_path / f"two{ending}").read_bytes()
    if ending == ".svg":
        assert all(f">{word}<".encode() in data for word in ("net.pt", "a", "b", "up", "c"))


def test_what_stands_behind_a_group() -> None:
    """Counted by hand for pictures of 8 x 6 pixels, then 16 x 12 behind the transposed convolution."""
    found = explained()
    by_width = {group.width: found.costs[group.index] for group in found.groups}
    a, b, up, c = 6 * 3 * 9, 6 * 6 * 9, 6 * 10 * 4, 4 * 10
    assert by_width[6].parameters == a + 6 + b + 6 + up
    assert by_width[10].parameters == up + 10 + 2 * 10 + c
    assert by_width[4].parameters == c + 4
    assert by_width[6].macs == 48 * (a + b + up)
    assert by_width[10].macs == 48 * up + 192 * c


def test_residual_convolution_counts_each_entry_once() -> None:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.fc(pooled(x + s.b(x)))

    found = fxprune.explain(Net(forward, a=conv(3, 6), b=conv(6, 6), fc=nn.Linear(6, 4)), torch.randn(2, 3, 8, 6))
    (cost,) = [found.costs[group.index] for group in found.groups if group.width == 6]
    assert cost.parameters == (6 * 27 + 6) + (6 * 54 + 6) + 24


@pytest.mark.usefixtures("workplace")
def test_picture_on_the_command_line() -> None:
    assert run("explain", "zoo:resnet8", "--picture", "net.svg").exit_code == 0
    assert b"layer1.0.conv1" in Path("net.svg").read_bytes()
    refused(run("explain", "zoo:resnet8", "--picture", "net.bmp"), "no known ending")
    refused(run("explain", "zoo:resnet8", "--picture", "none/net.svg"), "--picture", "there is no folder none")
    Path("folder.svg").mkdir()
    refused(run("explain", "zoo:resnet8", "--picture", "folder.svg"), "--picture", "folder.svg is a folder")
