"""The two ends that a policy lies between: the best schedule known, and a proven bound."""

import itertools

import numpy as np
import pytest

from hpcscale.extras import MissingExtraError
from hpcscale.history.workload import make_workload
from hpcscale.simulate.bound import lower_bound
from hpcscale.simulate.offline import best_known
from hpcscale.simulate.overflow import Cluster, instance_of, simulate
from hpcscale.simulate.policies import at_mean_wait, rules_of


def instance(seed: int, size: int = 60, nodes: int = 2):
    rng = np.random.default_rng(seed)
    work = make_workload(
        submit_s=np.cumsum(rng.exponential(3600 / 8, size)),
        runtime_s=60 + rng.exponential(3600, size),
        gpus=rng.choice([1, 2, 4, 8], size, p=[0.6, 0.2, 0.1, 0.1]),
    )
    return instance_of(work, Cluster(nodes, 8))


@pytest.mark.parametrize("seed", range(3))
def test_a_policy_lies_between_the_bound_and_never_below_the_best_known(seed):
    one = instance(seed)
    target = simulate(one, rules_of("constant-wait", one)).mean_wait_h
    ours = at_mean_wait("value", rules_of("value", one), one, target).outcome
    best = best_known(ours, target, moves=3000)
    assert best.mean_wait_h <= target + 1e-9
    assert best.cloud_cost_usd <= ours.cloud_cost_usd
    bound = lower_bound(one, target, step_h=0.25)
    assert bound.usd <= float(best.cloud_cost_usd) + 0.01
    assert bound.usd == pytest.approx(bound.solver_usd, abs=0.5)
    # the schedule can be had: nobody starts early, no node holds more than it has
    here = ~best.left
    assert (best.wait_h >= -1e-9).all()
    for t in best.start_h[here]:
        on = here & (best.start_h <= t) & (best.start_h + one.run_h > t + 1e-9)
        assert one.gpus[on].sum() <= 16


def test_the_bound_holds_against_every_choice_of_a_tiny_instance():
    one = instance(7, size=7, nodes=1)
    for target in (0.0, 0.2, 1.0):
        bound = lower_bound(one, target, step_h=0.1).usd
        cheapest = np.inf
        for stays in itertools.product([0, 1], repeat=7):
            # who stays queues in every order, each starting as early as it can in that order
            rows = [j for j in range(7) if stays[j]]
            for order in itertools.permutations(rows):
                waits = 0.0
                placed: list[tuple[float, float, int]] = []
                for j in order:
                    times = sorted({one.arrival_h[j], *(e for _, e, _ in placed)})
                    for t in times:
                        if t < one.arrival_h[j]:
                            continue
                        end = t + one.run_h[j]
                        points = [t, *(s for s, _, _ in placed if t < s < end)]
                        if all(
                            sum(g for s, e, g in placed if s <= p < e) + one.gpus[j] <= 8
                            for p in points
                        ):
                            placed.append((t, end, int(one.gpus[j])))
                            waits += t - one.arrival_h[j]
                            break
                if waits <= target * 7 + 1e-9:
                    gone = [j for j in range(7) if not stays[j]]
                    cheapest = min(cheapest, 2.5 * one.gpu_hours[gone].sum())
        assert bound <= cheapest + 1e-6


def test_without_highs_the_pip_line_is_said(monkeypatch):
    monkeypatch.setattr("hpcscale.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        lower_bound(instance(1), 0.1)
    assert caught.value.hint == "pip install 'hpcscale[bound]'"
