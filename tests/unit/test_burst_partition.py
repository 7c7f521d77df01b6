"""A burst into a cloud partition of the same controller: the job itself moves."""

import datetime as dt
import subprocess
from decimal import Decimal

import msgspec
import pytest
from partition_sites import BOTH, WITHIN, Partitions
from render_cases import AUTO, CLOUD_PARTITION, job

from hpcscale.burst.charges import charges
from hpcscale.burst.moves import Step
from hpcscale.burst.plan import Action
from hpcscale.burst.policy_file import policy_from
from hpcscale.burst.run import make_plan
from hpcscale.burst.within import lacking, never_starts, stays
from hpcscale.errors import BurstRefusedError, InvalidFileError, NotFoundError
from hpcscale.ledger import Ledger
from hpcscale.render import partition_blockers, render, serves
from hpcscale.site import DataRules, load_site, load_target
from hpcscale.slurm.types import JobState, JobStatus, PartitionFacts, SiteFacts
from hpcscale.spec import BurstMode, BurstTerms, Launcher
from hpcscale.units import JobId

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def sites(tmp_path):
    sites = Partitions(tmp_path)
    sites.fill()
    yield sites
    sites.ledger.close()


def status(**kw):
    fields = {"account": "", "qos": "", "partition": "gpu", "time_limit_s": 600, **kw}
    fields.setdefault("job_id", JobId(7))
    return JobStatus(state=JobState.PENDING, raw_state="PENDING", **fields)


def facts(**kw):
    there = {
        "total_nodes": 4, "gpus_per_node": 8, "cpus_per_node": 64, "mem_mb_per_node": 512_000,
        "features": ("cloud", "h100"), "gres": ("gpu:h100:8",), "max_time_s": 86400, **kw,
    }  # fmt: skip
    here = {**there, "features": ("floor", "h100"), "max_time_s": None}
    config = there.pop("config", {})
    here.pop("config", None)
    accounts = {k: there.pop(k) for k in ("accounts", "qos") if k in there}
    for key in accounts:
        here.pop(key)
    return SiteFacts(
        version="22.05.8",
        cluster="hpc",
        partitions={
            "gpu": PartitionFacts(name="gpu", default=True, **here),
            "cloud": PartitionFacts(name="cloud", boots=True, **there),
        },
        fetched_at=NOW,
        config=config,
        **accounts,
    )


def why_not(spec, facts, status=status(), **attempt):  # noqa: B008  # frozen
    """What ``stays`` says of a job whose script was rendered as submit does."""
    script = render(spec, CLOUD_PARTITION).script
    stub = type("Stub", (), {"script": script, **attempt})()
    return stays(
        spec, stub, status, facts, origin=CLOUD_PARTITION, target=CLOUD_PARTITION.in_partition("cloud")
    )  # fmt: skip


# --- the profile


def test_a_partition_says_what_differs_and_the_rest_is_the_sites():
    cloud = CLOUD_PARTITION.in_partition("cloud")
    assert cloud.name == "hpc/cloud"
    assert cloud.fabric.kind == "efa"
    assert cloud.env == {"OMP_NUM_THREADS": "1", "SCRATCH": "/nvme\n$(id)"}
    assert cloud.state_dir == CLOUD_PARTITION.state_dir
    assert cloud.data == DataRules(), "what may lie on the floor may not lie in the cloud"
    assert CLOUD_PARTITION.burst_partitions == ("cloud",)
    assert CLOUD_PARTITION.profile_of("cloud") == cloud
    assert CLOUD_PARTITION.profile_of("gpu") is CLOUD_PARTITION


def test_a_target_is_a_site_or_a_partition_of_one():
    with pytest.raises(NotFoundError, match="no partition 'cloud'") as caught:
        load_target("lab-onprem/cloud")
    assert "[partitions.cloud] with burst.target = true" in caught.value.hint
    assert load_target("lab-onprem/spot").name == "lab-onprem/spot"
    assert load_target("lab-cloud").name == "lab-cloud"


def test_a_burst_partition_without_a_fabric_is_refused_at_its_line():
    with pytest.raises(InvalidFileError, match="its fabric is not told"):
        load_site("lab-onprem", ["partitions.cloud.burst.target=true"])


def test_a_partitions_fabric_variable_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", str(tmp_path))
    file = tmp_path / "sites" / "lab-onprem.toml"
    file.parent.mkdir()
    file.write_text(
        "[partitions.cloud.fabric]\nkind = 'efa'\n[partitions.cloud.fabric.env]\nA = 'b'\n"
    )
    variable = load_site("lab-onprem").site.partitions["cloud"].fabric.env["A"]
    assert (variable.value, variable.source) == ("b", str(file))


# --- the script


def test_only_a_job_that_may_leave_has_both_profiles():
    stays_home = render(job("x"), CLOUD_PARTITION).script
    assert "case ${SLURM_JOB_PARTITION" not in stays_home
    assert serves(render(job("x", burst=AUTO), CLOUD_PARTITION).script, "hpc/cloud")


def test_a_job_sent_to_the_partition_itself_has_its_profile_alone():
    script = render(job("x", partition="cloud"), CLOUD_PARTITION).script
    assert "FI_EFA_USE_HUGE_PAGE" in script
    assert "NCCL_IB_HCA" not in script
    assert "case ${SLURM_JOB_PARTITION" not in script
    several = render(job("x", partition="gpu,cloud"), CLOUD_PARTITION).script
    assert serves(several, "hpc/cloud")


def test_both_profiles_ask_for_the_same_resources():
    for launcher in Launcher:
        spec = job("train.py", nodes=2, gpus=4, launcher=launcher)
        alone = render(spec, CLOUD_PARTITION).script
        both = render(msgspec.structs.replace(spec, burst=AUTO), CLOUD_PARTITION).script
        lines = [
            [line for line in text.splitlines() if line.startswith(("#SBATCH", "srun", "  --"))]
            for text in (alone, both)
        ]
        lines[1].remove("#SBATCH --wait-all-nodes=1")  # nodes that boot, one after the other
        assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("partition", "said"),
    [
        ("cloud", ["hpc/cloud", "1", "/nvme\n$(id)", "0", "none", "own"]),
        ("gpu", ["hpc", "1", "/lustre/scratch", "none", "=mlx5_0", "own"]),
        ("gpu,cloud", ["hpc", "1", "/lustre/scratch", "none", "=mlx5_0", "own"]),
        (None, ["hpc", "1", "/lustre/scratch", "none", "=mlx5_0", "own"]),
    ],
)
def test_where_it_starts_decides_which_profile_it_has(partition, said):
    """The lines of both profiles, run by bash."""
    script = render(job("x", env={"MINE": "own"}, burst=AUTO), CLOUD_PARTITION).script
    block = script[script.index("# --- environment") : script.index("# --- the claim")]
    names = ("HPCSCALE_SITE", "OMP_NUM_THREADS", "SCRATCH", "FI_EFA_USE_HUGE_PAGE", "NCCL_IB_HCA",
             "MINE")  # fmt: skip
    shown = " ".join(f'"${{{name}-none}}"' for name in names)
    done = subprocess.run(
        ["bash", "-c", f"set -u; HPCSCALE_SITE=hpc\n{block}\nprintf '%s\\0' {shown}"],
        env={"SLURM_JOB_PARTITION": partition} if partition else {},
        capture_output=True, text=True, timeout=10, check=True,
    )  # fmt: skip
    assert done.stdout.split("\0")[:-1] == said


def test_what_no_script_can_serve_is_named():
    cloud = CLOUD_PARTITION.in_partition("cloud")

    def blockers(spec, **changes):
        return partition_blockers(spec, CLOUD_PARTITION, msgspec.structs.replace(cloud, **changes))

    assert blockers(job("x", burst=AUTO)) == []
    assert "it is an array" in blockers(job("x", array="0-3"))[0]
    assert "image in one partition" in blockers(job("x", software="torch"), software={"torch": CLOUD_PARTITION.software["tools"]})[0]  # fmt: skip
    assert "no software named" in blockers(job("x", software="torch"), software={})[0]
    assert "names nodes" in blockers(job("x", directives={"nodelist": "floor1"}))[0]
    assert "of another network" in blockers(job("x", env={"NCCL_IB_HCA": "mlx5"}))[0]
    data = BurstTerms(mode=BurstMode.AUTO, data=("hipaa",))
    assert "data rule hipaa" in blockers(job("x", burst=data))[0]
    shared = msgspec.structs.replace(CLOUD_PARTITION, shared_dirs=("/home", "/lustre"))
    there = msgspec.structs.replace(cloud, shared_dirs=("/home",))
    spec = job("x", "--in=/lustre/b", inputs={"a": "/lustre/a"}, workdir="/home/ada/p")
    found = partition_blockers(spec, shared, there)
    assert [text.split()[0] for text in found] == ["/lustre/a", "/lustre/b"]


def test_submit_says_where_a_job_may_go():
    from hpcscale.burst.prospect import burst_notes

    notes = burst_notes(job("x", gpus=4, burst=AUTO), CLOUD_PARTITION, lambda: NOW)
    # 4 GPUs at $6.88, ten minutes and five of boot
    assert "may burst to hpc/cloud, expected cost $6.88 (" in notes[0]
    notes = burst_notes(job("x", array="0-3", burst=AUTO), CLOUD_PARTITION, lambda: NOW)
    assert notes[0].startswith("cannot burst to hpc/cloud: it is an array")


# --- may it be moved


def test_a_job_that_fits_may_go():
    assert why_not(job("x", nodes=2, gpus=4, burst=AUTO), facts()) == []


@pytest.mark.parametrize(
    ("change", "there", "now", "word"),
    [
        ({"gpus": 16}, {}, {}, "--gpus-per-node: 16 GPUs"),
        ({"nodes": 9}, {}, {}, "--nodes: 9 nodes"),
        ({}, {"max_time_s": 300}, {}, "--time: 00:10:00 asked for; partition cloud allows"),
        ({}, {"max_time_s": 7200}, {"time_limit_s": 9000}, "--time: 02:30:00"),
        ({}, {"allow_accounts": ("bio",)}, {"account": "physics"}, "--account: 'physics'"),
        ({}, {"deny_accounts": ("physics",)}, {"account": "physics"}, "denies 'physics'"),
        ({}, {"allow_qos": ("high",)}, {"qos": "normal"}, "--qos: 'normal'"),
        ({}, {"deny_qos": ("normal",)}, {"qos": "normal"}, "denies 'normal'"),
        ({"constraint": "floor"}, {}, {}, "--constraint=floor"),
        ({"directives": {"gres": "gpu:a100:1"}}, {}, {}, "--gres=gpu:a100:1"),
        ({"directives": {"gres": "nvme:1"}}, {}, {}, "--gres=nvme:1"),
        ({}, {"up": False}, {}, "is not up"),
        ({}, {}, {"partition": "gpu,cloud"}, "already"),
        ({}, {}, {"restarts": 1}, "has run here before"),
        ({}, {}, {"job_id": JobId(1 << 26)}, "of a federation"),
        ({}, {}, {"job_id": JobId(7, het_offset=0)}, "heterogeneous"),
        ({}, {}, {"comment": "hpcscale=hs-0123456789abcdef; fenced, as it moves to x: to undo, hpcscale burst undo r1"}, "fenced, as it moves to x"),
    ],
)  # fmt: skip
def test_what_keeps_a_job_out_is_named(change, there, now, word):
    spec = job("x", burst=AUTO, **change)
    found = why_not(spec, facts(**there), status(**now))
    assert len(found) == 1
    assert word in found[0]


def test_features_and_gres_that_are_there_are_no_reason():
    there = facts().partitions["cloud"]
    for constraint in ("h100", "floor|h100", "h100*2", "[cloud|rack1]"):
        assert lacking(job("x", constraint=constraint), CLOUD_PARTITION, there) == []
    for gres in ("gpu:h100:2", "gpu:2", "gres:gpu:1"):
        assert lacking(job("x", directives={"gres": gres}), CLOUD_PARTITION, there) == []


def test_a_script_from_before_the_profile_stays():
    assert "has no profile" in why_not(job("x", burst=AUTO), facts(), script="#!/bin/sh\n")[0]


def test_without_a_word_of_the_partition_nothing_moves():
    found = why_not(job("x", burst=AUTO), None)
    assert found == ["hpc gave no word of its partitions"]


def test_a_policy_names_partitions_of_its_origin_alone():
    made = policy_from({"from": "hpc", "to": ["hpc/cloud", "lab-cloud"]}, "P.toml")
    assert made.to == ("hpc/cloud", "lab-cloud")
    with pytest.raises(InvalidFileError, match="into a partition of other"):
        policy_from({"from": "hpc", "to": ["other/cloud"]}, "P.toml")


# --- the move


def test_the_whole_way(sites):
    waiting = sites.submit()
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("2.10")
    done = sites.tick()
    (decision,) = done.plan.decisions
    assert (decision.action, decision.to) == (Action.MOVE, "lab-onprem/cloud")
    # 2 nodes x 4 GPUs, an hour and a minute of boot
    assert decision.cost_usd == Decimal("55.96")
    move = sites.move(waiting)
    assert (move.step, move.old_partition) == (Step.MOVED, "gpu")
    assert sites.partition(waiting) == "cloud"
    assert len(sites.onprem.jobs) == 2, "the same job: nothing was submitted"
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("6.88")
    (charge,) = charges(sites.ledger)
    assert (charge.usd, charge.settled) == (decision.worst_usd, False)
    sites.both(30)
    assert sites.tick().plan.decisions == (), "it is on its way"
    sites.both(90)
    sites.tick()
    assert sites.move(waiting).step is Step.DONE
    assert sites.attempt(waiting).state is JobState.COMPLETED
    (charge,) = charges(sites.ledger)
    assert charge.settled
    # 8 GPUs for the minute that it ran
    assert charge.usd == sites.attempt(waiting).cost_usd == Decimal("0.92")


def test_undo_of_a_job_that_runs_there_is_too_late(sites):
    waiting = sites.submit()
    sites.tick()
    sites.both(2)
    with pytest.raises(BurstRefusedError, match="RUNNING already"):
        sites.handover().undo(sites.move(waiting))
    assert sites.move(waiting).step is Step.MOVED


def test_a_job_that_starts_first_is_left_alone(sites, monkeypatch):
    waiting = sites.submit()
    client = sites.connections["lab-onprem"].client
    real = client.change

    def too_late(job_id, fields):
        sites.onprem.run(["scancel", "1"])
        sites.both(2)
        return real(job_id, fields)

    monkeypatch.setattr(client, "change", too_late)
    sites.tick()
    move = sites.move(waiting)
    assert move.step is Step.WITHDRAWN
    assert "it started in gpu" in move.message
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("2.10")
    assert charges(sites.ledger) == []


def test_killed_between_the_update_and_the_save_the_next_run_records_it(sites, monkeypatch):
    waiting = sites.submit()
    client = sites.connections["lab-onprem"].client
    real = client.change

    def killed(job_id, fields):
        real(job_id, fields)
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "change", killed)
    with pytest.raises(KeyboardInterrupt):
        sites.tick()
    assert sites.move(waiting).step is Step.SHIFTING
    asked = [c for c in sites.onprem.calls if "Partition=cloud" in c]
    monkeypatch.undo()
    sites.tick()
    assert sites.move(waiting).step is Step.MOVED
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("6.88")
    assert [c for c in sites.onprem.calls if "Partition=cloud" in c] == asked, "asked once"


def test_what_slurm_refuses_is_handed_over_instead(sites):
    sites.onprem.refuses_updates = "Invalid account or account/partition combination specified"
    waiting = sites.submit()
    sites.tick()
    move = sites.move(waiting)
    assert (move.step, move.refused) == (Step.FAILED, True)
    assert "Invalid account" in move.message
    assert f"scontrol update JobId={waiting.ref.job_id} Partition=" in move.message
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("2.10")
    plan = make_plan(sites.ledger, WITHIN, sites)
    assert plan.decisions[0].action is Action.REFUSE
    assert "tried before: lab-onprem did not take it" in plan.decisions[0].reason
    sites.policy = BOTH
    sites.tick()
    assert (sites.move(waiting).to_site, sites.move(waiting).step) == ("lab-cloud", Step.SUBMITTED)


QOS_REASON = "Job's QOS not permitted to use this partition (cloud allows high not normal)"


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", QOS_REASON])
def test_what_slurm_will_never_start_there_goes_back(sites, reason):
    assert never_starts(reason)
    assert not never_starts("Resources")
    sites.busy_cloud()
    waiting = sites.submit()
    sites.tick()
    there = next(j for j in sites.onprem.jobs.values() if j.number == waiting.ref.job_id.base)
    assert there.partition == "cloud"
    there.reason = reason
    sites.onprem.tick = lambda: None  # its scheduler has looked
    sites.tick()
    move = sites.move(waiting)
    assert (move.step, move.refused) == (Step.FAILED, True)
    assert f"({reason})" in move.message
    assert move.retry_at is None, "another target may be tried at once"
    assert sites.partition(waiting) == "gpu"


def test_without_a_start_within_its_boot_timeout_it_goes_back(sites):
    sites.busy_cloud()
    waiting = sites.submit()
    sites.tick()
    sites.both(290)
    sites.tick()
    assert sites.move(waiting).step is Step.MOVED
    sites.both(20)
    sites.tick()
    move = sites.move(waiting)
    assert move.step is Step.FAILED
    assert "boot_timeout = 5m" in move.message
    assert sites.partition(waiting) == "gpu"


def test_a_controller_that_forgets_the_update_is_told_again(sites):
    sites.onprem.partitions["cloud"][:] = sites.onprem.partitions["cloud"][:1]
    waiting = sites.submit()
    sites.both(10)
    sites.onprem.partitions["cloud"] += ["burst2"]
    busy = ["sbatch", "--parsable", "-N2", "-pcloud", "--time=9999"]
    sites.onprem.run(busy, stdin="#!/bin/sh\nsleep 9999\n")
    sites.both(10)
    sites.tick()
    assert sites.partition(waiting) == "cloud"
    sites.onprem.crash()
    assert sites.partition(waiting) == "gpu"
    sites.tick()
    assert sites.partition(waiting) == "cloud"
    assert sites.move(waiting).step is Step.MOVED


def test_its_user_may_put_it_back_and_it_rests(sites, monkeypatch):
    sites.busy_cloud()
    waiting = sites.submit()
    sites.tick()
    monkeypatch.setattr("hpcscale.burst.shift.KEPT_S", 0.0)
    client = sites.connections["lab-onprem"].client
    assert client.update(waiting.ref.job_id, {"Partition": "gpu"})
    sites.tick()
    move = sites.move(waiting)
    assert move.step is Step.FAILED
    assert "put back into partition gpu" in move.message
    assert sites.partition(waiting) == "gpu"
    assert sites.attempt(waiting).gpu_hour_usd == Decimal("2.10")


@pytest.mark.parametrize("when", ["before", "there"])
def test_cancelling_the_run_ends_the_move(sites, when):
    sites.busy_cloud()
    waiting = sites.submit()
    if when == "there":
        sites.tick()
        move = sites.move(waiting)
    else:
        sites.onprem.hang()
        sites.tick()
        sites.onprem.resume()
        sites.onprem.refuses_updates = "not now"
        sites.tick()
        move = sites.move(waiting)
    ended = sites.handover().cancel(move)
    assert ended.step.settled
    if when == "there":
        assert sites.attempt(waiting).state is JobState.CANCELLED
        assert sum(c.usd for c in charges(sites.ledger)) == 0


def test_jobs_that_wait_for_it_are_no_obstacle_and_nothing_stands_in(sites):
    sites.policy = BOTH
    waiting = sites.submit()
    plan = make_plan(sites.ledger, BOTH, sites)
    assert plan.decisions[0].to == "lab-onprem/cloud"
    assert "else to lab-cloud" in plan.decisions[0].runner_up
    assert "stays in the queue" not in plan.decisions[0].reason
    assert sites.partition(waiting) == "gpu"


def test_another_ledgers_reap_leaves_it_alone(sites, tmp_path):
    from hpcscale.burst.reap import burst_sites, origin_sites, reap

    waiting = sites.submit()
    sites.tick()
    with Ledger.open(tmp_path / "other.sqlite3") as other:
        assert reap(other, sites, ["lab-onprem"]) == ([], [])
    assert burst_sites(sites.ledger) == []
    assert origin_sites(sites.ledger) == ["lab-onprem"]
    assert reap(sites.ledger, sites, ["lab-onprem"]) == ([], [])
    assert sites.attempt(waiting).state is not JobState.CANCELLED
