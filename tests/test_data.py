"""Labelled pictures from folders, arrays, digits and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fxprune.data import class_names, classes_in, loader, open_data
from fxprune.errors import OptionError


def test_synthetic_is_the_same_for_the_same_seed() -> None:
    first, again, other = (open_data("synthetic", (3, 8, 6), 5, seed=seed, count=20) for seed in (0, 0, 1))
    assert torch.equal(first[3][0], again[3][0])
    assert not torch.equal(first[3][0], other[3][0])
    assert first[3][0].shape == (3, 8, 6)
    assert {int(label) for _, label in (first[k] for k in range(20))} <= set(range(5))


@pytest.mark.parametrize("layout", ["first", "last", "grey"])
def test_arrays(layout: str, tmp_path: Path) -> None:
    pixels = np.arange(4 * 8 * 6, dtype=np.uint8).reshape(4, 1, 8, 6)
    wanted = 1 if layout == "grey" else 3
    stored = pixels[:, 0] if layout == "grey" else np.repeat(pixels, 3, axis=1)
    np.savez(tmp_path / "d.npz", x=np.moveaxis(stored, 1, 3) if layout == "last" else stored, y=np.array([0, 1, 2, 1]))
    data = open_data(str(tmp_path / "d.npz"), (wanted, 8, 6), 3)
    picture, label = data[1]
    assert picture.shape == (wanted, 8, 6)
    assert torch.allclose(picture[0], torch.from_numpy(pixels[1, 0]).float() / 127.5 - 1)
    assert int(label) == 1


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for kind, shade in (("cat", 0), ("dog", 255)):
        (tmp_path / kind).mkdir()
        image.new("RGB", (10, 12), (shade, shade, shade)).save(tmp_path / kind / "a.png")
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    data = open_data(str(tmp_path), (3, 8, 6), 2)
    assert [(float(x.min()), float(x.max()), y) for x, y in (data[0], data[1])] == [(-1, -1, 0), (1, 1, 1)]
    [batch] = list(loader(data, 4, 0))
    assert batch[0].shape == (2, 3, 8, 6)


def test_digits_are_real() -> None:
    pytest.importorskip("sklearn")
    data = open_data("digits", (1, 8, 8), 10)
    assert len(data) == 1797  # type: ignore[arg-type]
    assert -1 <= float(data[0][0].min()) < float(data[0][0].max()) <= 1


def test_folders_of_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for kind in (".hidden", "cats", "dogs"):
        (tmp_path / kind).mkdir()
        image.new("L", (8, 8)).save(tmp_path / kind / "1.png")
    assert (class_names(str(tmp_path)), classes_in(str(tmp_path))) == (["cats", "dogs"], 2)
    assert (class_names("digits"), classes_in("digits"), classes_in("synthetic")) == ([], 10, None)
    assert [label for _, label in open_data(str(tmp_path), (1, 8, 8), 2)] == [0, 1]  # type: ignore[attr-defined]
    (tmp_path / "dogs" / "1.png").unlink()
    with pytest.raises(OptionError, match="dogs holds no pictures"):
        open_data(str(tmp_path), (1, 8, 8), 2)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3, 8, 8)), y=np.array([0, 7]))
    np.savez(tmp_path / "p.npz", x=np.array([{}], dtype=object), y=np.array([0]))
    (tmp_path / "empty").mkdir()
    for source, shape, message in (
        ("nowhere", (3, 8, 8), "give a folder with one folder of pictures"),
        (str(tmp_path / "d.npz"), (3, 8, 6), "x has shape \\(2, 3, 8, 8\\)"),
        (str(tmp_path / "d.npz"), (3, 8, 8), "labels from 0 to 7; the network tells 5"),
        (str(tmp_path / "p.npz"), (3, 8, 8), "cannot be read as an .npz file of plain arrays"),
        (str(tmp_path / "empty"), (3, 8, 8), "holds no pictures"),
        ("synthetic", (8, 8), "data are pictures"),
    ):
        with pytest.raises(OptionError, match=message):
            open_data(source, shape, 5)
