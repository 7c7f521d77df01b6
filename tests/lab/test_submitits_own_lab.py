"""submitit's own tests that run functions, on real Slurm through our executor."""

import pytest
import submitit_own


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("site", "places"),
    [
        ("lab-onprem", ("on a real site",)),
        ("lab-cloud", ("on a real site", "over SSH")),
    ],
)
def test_those_that_run_functions_pass(lab_env, tmp_path, site, places):
    tests = submitit_own.chosen(submitit_own.ON_A_SITE, *places)
    assert len(tests) > 30
    base = tmp_path / "own"
    if site == "lab-onprem":  # as users do it: on the cluster's file system
        base = lab_env.site(site).paths.scratch / "own"
    found, output = submitit_own.run(tmp_path, tests, site, base=base, workers=3, timeout_s=800)
    bad = {name: outcome for name, outcome in found.items() if outcome != {"passed"}}
    assert not bad, f"{bad}\n{output[-8000:]}"
    assert found.keys() == tests, output[-3000:]
