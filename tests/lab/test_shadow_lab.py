"""`burst run --shadow` on real Slurm: by slurmctld's own log it only reads, and it decides as live."""

import json
import re

import pytest
from burst_world import World, hpcscale

from hpcscale.burst.audit import audit_path
from hpcscale.spec import BurstMode

pytestmark = pytest.mark.lab
# what slurmctld may be asked (slurm/src/common/slurm_protocol_defs.h): none of these changes a thing
READS = re.compile(r"REQUEST_(PING|BUILD_INFO|\w*_INFO(_SINGLE)?|PRIORITY_FACTORS|ASSOC_MGR_INFO)")
SITES = 'from = "lab-onprem"\nto = ["lab-cloud"]\n'
# one that looks at no forecast, and the default one: an hour's wait is worth more than the cloud
POLICIES = {
    "always": SITES + 'policy = "always"\n',
    "value": SITES + 'policy = "value"\nhour_usd = 1000\n',
}


@pytest.fixture
def world(lab_env, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    world = World(lab_env, project)
    yield world
    world.close()


class Requests:
    """What slurmctld of a site was asked by users meanwhile, by its log."""

    def __init__(self, world, site):
        self.site = world.lab.site(site)
        self.site.exec(["scontrol", "setdebugflags", "+protocol"], check=True)
        self.site.exec(["scontrol", "setdebug", "debug2"], check=True)
        self.from_byte = self.log.stat().st_size

    @property
    def log(self):
        return self.site.paths.log / "slurmctld.log"

    def seen(self):
        text = self.log.read_bytes()[self.from_byte :].decode("utf-8", "replace")
        return set(re.findall(r"\bREQUEST_[A-Z_]+", text))

    def close(self):
        self.site.exec(["scontrol", "setdebugflags", "-protocol"], check=True)
        self.site.exec(["scontrol", "setdebug", "info"], check=True)


@pytest.mark.parametrize("kind", POLICIES)
def test_a_shadow_leaves_nothing_but_reads_in_slurmctlds_log(world, tmp_path, kind):
    ran = world.submit(command="true", mode=BurstMode.NEVER)
    world.until(lambda: world.state("lab-onprem", ran.ref.job_id) == "COMPLETED", 30, "it has run")
    world.fill()
    job = world.submit(mode=BurstMode.AUTO)
    policy = tmp_path / "P.toml"
    policy.write_text(POLICIES[kind])
    watched = [Requests(world, site) for site in ("lab-onprem", "lab-cloud")]
    try:
        done = hpcscale("burst", "run", "--shadow", "--policy", str(policy), "--json")
        assert done.returncode == 0, done.stderr
        asked = [requests.seen() for requests in watched]
        # the same look sees an act, once there is one
        world.lab.site("lab-onprem").exec(
            ["scontrol", "update", f"JobId={job.ref.job_id}", "Nice=1"], check=True
        )
        assert "REQUEST_UPDATE_JOB" in watched[0].seen()
    finally:
        for requests in watched:
            requests.close()
    assert any("JOB" in word for word in asked[0]), asked[0]
    # nodes, reservations and the like: what a forecast is made of
    assert any("NODE_INFO" in word for word in asked[0]) == (kind == "value"), asked[0]
    assert any("RESERVATION_INFO" in word for word in asked[0]) == (kind == "value"), asked[0]
    # scontrol setdebug itself is the lab's
    ours = {word for words in asked for word in words} - {"REQUEST_SET_DEBUG_LEVEL"}
    assert [word for word in sorted(ours) if not READS.fullmatch(word)] == []
    assert world.moves.all() == []
    assert not audit_path().exists()

    shadow = json.loads(done.stdout)["data"]
    (planned,) = shadow["plan"]["decisions"]
    assert (planned["run_id"], planned["action"]) == (job.run_id, "move"), planned["reason"]
    assert (planned["start_p50"] is not None) == (kind == "value")
    assert world.ledger.attempt(ran.submission_id).ended, "the shadow asked how it ended"
    again = hpcscale("burst", "replay", "--json")
    assert again.returncode == 0, again.stderr
    (kept,) = json.loads(again.stdout)["data"]["snapshots"]
    assert (kept["moves"], kept["changed"]) == (1, [])
    live = hpcscale("burst", "plan", "--policy", str(policy), "--json")
    (decision,) = json.loads(live.stdout)["data"]["decisions"]  # live, it would still be there
    same = ("run_id", "action", "rule", "to", "cost_usd", "worst_usd", "partition")
    assert {k: decision[k] for k in same} == {k: planned[k] for k in same}
