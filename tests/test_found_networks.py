"""What random networks have brought to light, each as small as it could be made."""

from __future__ import annotations

from typing import Any

import pytest
from random_networks import Network, Step
from random_oracle import Choice, check

HALF, FEW = Choice(0.5, "freeze", 0), Choice(0.3, "freeze", 0)


def network(image: tuple[int, ...], *steps: tuple[Any, ...]) -> Network:
    """Each step is (operation, value it reads or values, numbers...), writes one value, and owns its part unless the
    last entry is `("part", number)`. The last value is the output.
    """
    found = []
    for number, (op, reads, *numbers) in enumerate(steps):
        part = number
        if numbers and isinstance(numbers[-1], tuple):
            (_, part), numbers = numbers[-1], numbers[:-1]
        reads = reads if isinstance(reads, tuple) else (reads,)
        found.append(Step(op, reads, tuple(numbers), part, (number + 1,)))
    return Network(image, tuple(found), (len(steps),))


FOUND = {
    # With one channel a head left, the heads themselves looked like channels, and those of the values hung on them.
    "one channel a head": (FEW, network(
        (3, 4, 4), ("conv", 0, 2, 3, 6, 3, 1, 1, True), ("tokens", 1), ("linear", 2, 6, 6), ("linear", 2, 6, 6),
        ("linear", 2, 6, 10), ("attention", (3, 4, 5), 2), ("linear", 6, 10, 3),
    )),
    # A functional grouped convolution with one column a conv group left was read as a depthwise one.
    "functional conv groups of one": (FEW, network(
        (3, 4, 4), ("conv", 0, 2, 3, 4, 3, 1, 1, True), ("function_conv", 1, 2, 4, 10, 2), ("act", 2, 5),
        ("conv", 3, 2, 10, 3, 1, 1, 1, True),
    )),
    # The second call of a shared grouped convolution read its weight otherwise than the first.
    "conv groups called twice": (FEW, network(
        (3, 4, 4), ("conv", 0, 2, 3, 12, 3, 1, 1, True), ("conv", 1, 2, 12, 18, 3, 1, 6, True),
        ("conv", 1, 2, 12, 18, 3, 1, 6, True, ("part", 1)), ("mul", (2, 3)), ("conv", 4, 2, 18, 3, 1, 1, 1, True),
    )),
    # On the CPU a group norm hands on the layout of its input, on the meta device it does not: other matrix products.
    "group norm of what lies channels last": (HALF, network(
        (3, 4, 4), ("conv", 0, 2, 3, 8, 3, 1, 1, True), ("tokens", 1), ("linear", 2, 8, 12), ("untokens", 3, 4, 4),
        ("group_norm", 4, 12, 12), ("tokens", 5), ("linear", 6, 12, 8), ("linear", 7, 8, 3),
    )),
    # Captured with torch.export, where nobody changed the number of conv groups.
    "exported transposed conv groups": (HALF, network(
        (2, 8), ("conv", 0, 1, 2, 4, 3, 1, 1, True), ("pad_zeros", 1, 1, 1), ("up", 2, 1, 5, 10, 3, 5),
        ("conv", 3, 1, 10, 3, 1, 1, 1, True),
    )),
    # Copies of one channel may go, and no recipe names them: the oracle had to learn it.
    "copies of one channel": (HALF, network(
        (3, 4, 4), ("conv", 0, 2, 3, 4, 3, 1, 1, True), ("conv", 1, 2, 4, 1, 3, 1, 1, True), ("repeat", 2, 2, 2),
        ("conv", 3, 2, 2, 2, 3, 1, 1, True), ("add", (4, 3)), ("conv", 5, 2, 2, 3, 1, 1, 1, True),
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    choice, found = FOUND[name]
    assert check(found, choice) is not None
