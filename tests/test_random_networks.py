"""200 random networks from all coupling constructs, nested: cut exactly, by an oracle that knows no labels.

`tools/soak.py` runs thousands of them. A counterexample is shrunk and printed as a few lines.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from random_faults import FAULTS
from random_genes import develop, networks
from random_networks import Network
from random_oracle import Choice, Disagreement, check, choices

QUICK = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@given(networks(), choices())
@settings(QUICK, max_examples=200)
def test_exact(network: Network, choice: Choice) -> None:
    """Nothing is left alone by the proof, what can go goes, and what is left computes what it did."""
    check(network, choice)


@pytest.mark.parametrize("fault", ["addition_ties_nothing", "conv_groups_uneven", "cat_one_off"])
def test_planted_faults_are_found(fault: str) -> None:
    """Without the proof: the oracle and the structure of the graphs suffice."""

    @given(networks(), choices(proof=False))
    @settings(QUICK, max_examples=300, phases=[Phase.generate])
    def search(network: Network, choice: Choice) -> None:
        check(network, choice)

    with FAULTS[fault](), pytest.raises(Disagreement):
        search()


def test_every_step_is_grown() -> None:
    """No construct has fallen out of the genes."""
    from random_genes import GENES
    from random_steps import OPERATIONS

    grown = {
        step.op
        for name in GENES
        for b in (0, 1, 3, 4, 9, 11, 15)
        for c in range(16)
        for step in develop((3, 4, 4), [("flat", 0, 1, 0), ("conv", 8, 0, 1), (name, 0, b, c)]).steps
    }
    assert grown == set(OPERATIONS)


def test_networks_are_the_same_each_time() -> None:
    genes = [("conv", 0, 1, 2), ("shuffle", 0, 1, 0), ("split", 0, 3, 1), ("cat", 0, 1, 1)]
    one, other = develop((3, 6, 6), genes), develop((3, 6, 6), genes)
    assert one == other
    assert torch.equal(one.build(3)(one.example())[0], other.build(3)(other.example())[0])
