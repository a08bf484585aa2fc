"""Choose the lowest of many scores without sorting them all.

No vector of all scores is built: one walk over the layers counts scores by bucket, a second one masks everything
outside the bucket that holds the threshold and collects what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Walk = Callable[[], Iterable[tuple[str, Tensor]]]

_PIECE = 1 << 20
_UPPER = 16  # a float ranks like its bits; the upper ones sort scores into 2**16 buckets


def masks_without_lowest(scores: Walk, zeros: int) -> dict[str, Tensor]:
    """Boolean masks, shaped as the scores, that are False at the `zeros` lowest of all.

    scores  gives (name, scores) pairs, float32 or float64; it is called twice and must give the same numbers. Among
            equal scores those at the lowest positions stay
    """
    bucket, below = _bucket(scores, zeros)
    masks: dict[str, Tensor] = {}
    inside: list[tuple[str, Tensor, Tensor]] = []
    for name, score in scores():
        masks[name] = torch.empty(score.shape, dtype=torch.bool)
        pieces = zip(_pieces(masks[name]), _pieces(score), strict=True)
        for number, (mask, piece) in enumerate(pieces):
            upper = _buckets(piece)
            torch.gt(upper, bucket, out=mask)
            places = (upper == bucket).nonzero().reshape(-1)
            inside.append((name, places + number * _PIECE, piece[places]))
    _settle(masks, inside, zeros - below)
    return masks


def _bucket(scores: Walk, zeros: int) -> tuple[int, int]:
    """The bucket in which the last zero falls, and how many scores lie below it."""
    counts = torch.zeros(1 << _UPPER, dtype=torch.int64)
    for _, score in scores():
        for piece in _pieces(score):
            counts += torch.bincount(_buckets(piece), minlength=1 << _UPPER)
    upto = counts.cumsum(0)
    bucket = min(int(torch.searchsorted(upto, zeros)), (1 << _UPPER) - 1)
    return bucket, int(upto[bucket] - counts[bucket])


def _settle(masks: dict[str, Tensor], inside: list[tuple[str, Tensor, Tensor]], zeros: int) -> None:
    """Inside the bucket the `zeros` lowest scores go, of equal ones the last in order."""
    scores = torch.cat([score for _, _, score in inside])
    order = torch.argsort(scores.flip(0), stable=True)
    keep = torch.ones(len(scores), dtype=torch.bool)
    keep[len(scores) - 1 - order[:zeros]] = False
    for (name, places, _), kept in zip(inside, keep.split([len(one[1]) for one in inside]), strict=True):
        masks[name].reshape(-1)[places] = kept


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Flat pieces, so that no layer is copied whole."""
    pieces: tuple[Tensor, ...] = tensor.reshape(-1).split(_PIECE)
    return pieces


def _buckets(score: Tensor) -> Tensor:
    """Bucket of each score, 0 to 2**16 - 1: a higher score is never in a lower bucket."""
    width = 8 * score.element_size()
    bits = (score + 0.0).contiguous().view(torch.int32 if width == 32 else torch.int64)  # + 0.0: there is one zero
    ordered = torch.where(bits < 0, bits ^ ((1 << (width - 1)) - 1), bits)  # negative numbers rank the other way round
    return (ordered >> (width - _UPPER)) + (1 << (_UPPER - 1))
