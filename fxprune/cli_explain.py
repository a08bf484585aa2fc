"""What `fxprune explain` and `fxprune zoo` print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxprune.cli_errors import printable
from fxprune.cli_layout import facts, plain_table
from fxprune.wording import counted

if TYPE_CHECKING:
    from fxprune.channels.groups import ChannelGroup, Member
    from fxprune.explanation import Explanation
    from fxprune.zoo import Entry

_BEHIND = "Parameters and MACs that go when all channels of a group go; a weight between two groups counts for both."
_LEGEND = (
    "A name stands for dimension 0 of a layer's parameters, name[1] for dimension 1: the inputs of a convolution or "
    "linear layer."
)


def overview(title: str, found: Explanation) -> RenderableType:
    """Table of all groups, then why some are frozen, approximate or made by no layer."""
    numbers = ("group", "width", "parameters", "MACs")
    table = plain_table(*numbers, "state", "members", right=numbers)
    for group in found.groups:
        members = ", ".join(places(group.members))
        behind = found.costs[group.index]
        row = (str(group.index), f"{group.width:,}", f"{behind.parameters:,}", f"{behind.macs:,}", state(group))
        table.add_row(*row, Text(members))
    prunable = sum(group.prunable for group in found.groups)
    return Group(
        Text(printable(title), style="bold"),
        Text(f"{counted(len(found.groups), 'group')} of channels that go together, {prunable} of them prunable\n"),
        table,
        Text(f"\n{_BEHIND}\n{_LEGEND}\n"),
        facts([*_reasons(found), *(("note", note) for note in found.notes)]),
    )


def state(group: ChannelGroup) -> str:
    """`exact`, `approximate`, `frozen`, or `no maker` where no convolution or linear layer makes the channels."""
    if group.frozen:
        return "frozen"
    if not group.producers:
        return "no maker"
    return "approximate" if group.approximate else "exact"


def places(members: Sequence[Member]) -> list[str]:
    """Members by layer: `bn1` for bn1.weight[0], bn1.bias[0], ...; `conv2[1]` for conv2.weight[1]."""
    found: dict[str, None] = {}
    for member in members:
        owner = member.parameter.rpartition(".")[0] or member.parameter
        found[f"{owner}[{member.dim}]" if member.dim else owner] = None
    return list(found)


def _reasons(found: Explanation) -> Iterator[tuple[str, str]]:
    """(state, groups: reason, source line), groups that share all of it together."""
    sites = {group.index: (state(group), group.frozen or group.approximate) for group in found.groups}
    for told in dict.fromkeys(one for one in sites.values() if one[1]):
        label, site = told
        assert site is not None
        numbers = [str(index) for index, one in sites.items() if one == told]
        yield label, f"group{'s' * (len(numbers) > 1)} {', '.join(numbers)}: {site}"
        yield from _source_line(found.source_of(site))


def _source_line(source: str) -> Iterator[tuple[str, str]]:
    """The user's line under a reason, where it is known."""
    if source:
        yield "", source


@dataclass(frozen=True)
class Coupled:
    """One group that a layer is in: the layer's own members, and everything else that goes with a channel of it."""

    group: ChannelGroup
    own: tuple[Member, ...]
    others: tuple[Member, ...]
    source: str

    @property
    def makes(self) -> bool:
        """Whether the layer is a convolution or linear layer that makes these channels."""
        return any(member.parameter in self.group.producers for member in self.own)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "group": self.group.index,
            "width": self.group.width,
            "state": state(self.group),
            "makes": self.makes,
            "own": [str(member) for member in self.own],
            "others": [str(member) for member in self.others],
            "reason": str(self.group.frozen or self.group.approximate or ""),
            "source": self.source,
        }


def coupled(found: Explanation, layer: str) -> list[Coupled]:
    """The groups a layer is in, the one that it makes first. Raises OptionError when there is no such layer."""
    told = []
    for group, others in found.coupled_with(layer):
        site = group.frozen or group.approximate
        own = tuple(member for member in group.members if member not in others)
        told.append(Coupled(group, own, tuple(others), found.source_of(site) if site else ""))
    return sorted(told, key=lambda one: not one.makes)


def coupled_view(told: Sequence[Coupled]) -> RenderableType:
    """The same as text: what else goes when the layer loses a channel."""
    parts: list[RenderableType] = []
    for one in told:
        what = "makes" if one.makes else "shares"
        names = ", ".join(places(one.own))
        head = (
            f"{names} {what} the {counted(one.group.width, 'channel')} of group {one.group.index} ({state(one.group)})"
        )
        parts += [Text(printable(head), style="bold"), facts(list(_consequences(one))), Text("")]
    return Group(*parts, Text(_LEGEND))


def _consequences(one: Coupled) -> Iterator[tuple[str, str]]:
    site = one.group.frozen or one.group.approximate
    others = ", ".join(places(one.others))
    if one.group.frozen:
        yield "none can go" + (", nor of" if others else ""), others
    else:
        yield "with each goes its part of", others or "nothing else"
    if site:
        yield "because", str(site)
        yield from _source_line(one.source)


def zoo_view(entries: Sequence[Entry]) -> RenderableType:
    """Table of the networks that `zoo:NAME` names."""
    table = plain_table("network", "input", "classes", "description", right=("classes",))
    for entry in entries:
        size = "x".join(map(str, entry.input_shape))
        table.add_row(f"zoo:{entry.name}", size, str(entry.num_classes), entry.description)
    return table
