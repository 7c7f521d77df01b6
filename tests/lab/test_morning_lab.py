"""The whole product at once, small: a morning of jobs with deadlines under a budget."""

import pytest
from morning import Driver, Morning, options


@pytest.mark.slow  # five minutes: forty of the controllers' clock
@pytest.mark.timeout(1200)
def test_a_morning_of_jobs_meets_its_deadlines_within_its_budget(
    lab_factory, use_lab, tmp_path, monkeypatch
):
    morning = Morning(
        jobs=24, hours=0.2, fast=8, nodes=2, cloud_nodes=6, load=3.5, budget_usd=200, seed=9
    )
    lab = use_lab(lab_factory(**options(morning)))
    monkeypatch.chdir(tmp_path)
    outcome = Driver(lab, morning, tmp_path).run()
    assert outcome.problems == []
    facts = outcome.facts
    assert facts["refused_as_infeasible"] == 1
    assert facts["deadlines_met"] == facts["deadlines"] > 10
    assert facts["moves_by_end"].get("done", 0) >= 3
    assert facts["decided_the_same"] == facts["decisions"] == facts["moves"]
