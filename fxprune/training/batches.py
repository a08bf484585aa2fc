"""Pictures in batches whose order is a function of seed and epoch, so that a run can go on in the middle of one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fxprune.data import Pictures
from fxprune.errors import OptionError

Batch = tuple[Tensor, Tensor]
_CALLED = f"{OptionError.__module__}.{OptionError.__qualname__}: "


@dataclass(frozen=True, eq=False)
class Part:
    """Some pictures of a data set, by their numbers."""

    data: Dataset[Any]
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)


def split(
    data: Dataset[Any], validation: Dataset[Any] | None, held_out: float, seed: int, source: str = "the data"
) -> tuple[Part, Part]:
    """(pictures to train on, pictures to validate with): data of their own, or a part that the seed draws.

    source  what to call the data in messages

    Raises OptionError when fewer than two are left to train on, or data of their own hold none.
    """
    count = _count(data)
    held = 0 if validation is not None else round(held_out * count)
    if count - held < 2:
        raise OptionError(f"{source} has too few pictures to train on: {count}, of which {held} are held out")
    if validation is not None:
        if not _count(validation):
            raise OptionError("the data to validate with hold no pictures")
        return Part(data, torch.arange(count)), Part(validation, torch.arange(_count(validation)))
    order = torch.randperm(count, generator=_draw(seed, "held out"))
    return Part(data, order[held:].sort().values), Part(data, order[:held].sort().values)


def epoch_order(part: Part, batch: int, seed: int, epoch: int) -> list[Tensor]:
    """Numbers of the pictures of each step. A single picture that is left over is left out: batch normalisation cannot
    work with it.
    """
    order = part.numbers[torch.randperm(len(part), generator=_draw(seed, epoch, "order"))]
    found = list(order.split(batch))
    return found[:-1] if len(found) > 1 and len(found[-1]) == 1 else found


def read_batches(data: Dataset[Any], numbers: Sequence[Tensor], workers: int = 0) -> Iterator[Batch]:
    """Pictures and labels, one batch for each entry of `numbers`."""
    if isinstance(data, TensorDataset):
        pictures, labels = data.tensors
        yield from ((pictures[one], labels[one]) for one in numbers)
        return
    own = torch.Generator().manual_seed(0)  # a loader draws from the global generator otherwise
    try:
        yield from DataLoader(data, batch_sampler=[one.tolist() for one in numbers], num_workers=workers, generator=own)
    except OptionError as error:  # from another process it comes with a traceback, and its own words are the last line
        raise OptionError(str(error).strip().splitlines()[-1].removeprefix(_CALLED)) from error


def augmented(pictures: Tensor, kind: str, seed: int, epoch: int, step: int) -> Tensor:
    """Pictures as they are trained on, see `Settings.augment`. Drawn from seed, epoch and step."""
    if kind == "none":
        return pictures
    draw = _draw(seed, epoch, step, "augment")
    count, channels, height, width = pictures.shape
    margin = max(1, width // 8)
    moves = torch.randint(0, 2 * margin + 1, (2, count, 1), generator=draw)
    rows, columns = moves[0] + torch.arange(height), moves[1] + torch.arange(width)
    padded = F.pad(pictures, [margin] * 4)
    places = (torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None])
    moved = padded[*places, rows[:, None, :, None], columns[:, None, None, :]]
    if kind == "shift-mirror":
        mirrored = torch.randint(0, 2, (count,), generator=draw).bool()
        moved[mirrored] = moved[mirrored].flip(-1)
    return moved


def fingerprint(part: Part) -> str:
    """Tells these pictures from others. Of picture files names and sizes are looked at, not what is in them."""
    found = hashlib.sha256(part.numbers.numpy().tobytes())
    if isinstance(part.data, TensorDataset):
        for one in part.data.tensors:
            found.update(one.contiguous().numpy().tobytes())
    elif isinstance(part.data, Pictures):
        for path, label in part.data.files:
            found.update(f"{path.parent.name}/{path.name} {path.stat().st_size} {label}\n".encode())
    return found.hexdigest()


def _count(data: Dataset[Any]) -> int:
    return len(data)  # type: ignore[arg-type]


def _draw(*seed: object) -> torch.Generator:
    digest = hashlib.sha256(repr(seed).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
