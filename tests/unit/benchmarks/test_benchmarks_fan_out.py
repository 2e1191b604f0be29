"""The model of searches on many nodes, beside its simulation."""

import pytest

from benchmarks.studies.fan_out import NodeTimes, simulated, slowest

TIMES = NodeTimes(median=2.0, p99=6.0)


def test_a_node_has_the_quantiles_that_it_was_given() -> None:
    assert TIMES.quantile(0.5) == pytest.approx(2)
    assert TIMES.quantile(0.99) == pytest.approx(6)
    assert TIMES.share_within(6) == pytest.approx(0.99)


@pytest.mark.parametrize("nodes", [1, 10, 100])
@pytest.mark.parametrize("hedged", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_the_model_agrees_with_the_simulation(nodes: int, hedged: bool, share: float) -> None:
    reckoned = slowest(TIMES, nodes, share, hedged)
    assert simulated(TIMES, nodes, share, hedged, queries=8_000) == pytest.approx(
        reckoned, rel=0.06
    )


def test_more_nodes_are_slower_and_hedging_helps() -> None:
    tails = [slowest(TIMES, nodes, 0.99) for nodes in (1, 10, 100, 1_000)]
    assert tails == sorted(tails) and tails[0] == pytest.approx(6)
    assert all(slowest(TIMES, nodes, 0.99, True) < slowest(TIMES, nodes, 0.99) for nodes in (1, 99))
