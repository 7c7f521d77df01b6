"""submitit's own tests that mock Slurm, with our executor and ``FakeSlurm`` in its place."""

import submitit_own


def test_the_documented_list_is_of_tests_that_there_are():
    assert set(submitit_own.excluded()) <= submitit_own.installed()
    assert {where for where, _ in submitit_own.excluded().values()} <= {
        "everywhere", "on a real site", "over SSH", "on a fake"
    }  # fmt: skip


def test_those_that_mock_slurm_pass(tmp_path):
    tests = submitit_own.chosen(submitit_own.ON_A_FAKE, "on a fake")
    assert len(tests) > 40
    found, output = submitit_own.run(tmp_path, tests, "fake", timeout_s=150)
    bad = {name: outcome for name, outcome in found.items() if "failed" in outcome}
    assert not bad, f"{sorted(bad)}\n{output[-6000:]}"
    assert found.keys() == tests, output[-3000:]
    assert all("passed" in outcome for outcome in found.values()), found
