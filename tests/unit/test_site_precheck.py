"""What facts rule out is refused before sbatch, with what would fit; what they leave open is not."""

import datetime as dt

import pytest
from msgspec.structs import replace

from hpcscale.errors import RefusedError, UnreachableError
from hpcscale.precheck import (
    cached_facts,
    check,
    doubts,
    explain_refusal,
    fetch_facts,
    require_fit,
    store_facts,
)
from hpcscale.site import load_site
from hpcscale.slurm.types import PartitionFacts, SiteFacts
from hpcscale.spec import JobSpec, Resources

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
DAY_S = 86400


def facts(**changes):
    gpu = PartitionFacts(
        name="gpu",
        default=True,
        max_time_s=7 * DAY_S,
        total_nodes=4,
        gpus_per_node=4,
        cpus_per_node=32,
        mem_mb_per_node=512_000,
    )
    partitions = [
        gpu,
        replace(gpu, name="long", default=False, max_time_s=None, max_nodes=2),
        replace(gpu, name="dense", default=False, total_nodes=1, gpus_per_node=8, max_time_s=3600),
        replace(gpu, name="cpu", default=False, total_nodes=9, gpus_per_node=0, max_time_s=3600),
        replace(
            gpu, name="closed", default=False, allow_accounts=("root",), allow_qos=("high", "low")
        ),
    ]
    base = SiteFacts(
        version="22.05.8",
        cluster="c",
        partitions={p.name: p for p in partitions},
        fetched_at=NOW,
    )
    return replace(base, **changes)


@pytest.fixture
def site():
    return load_site("lab-onprem", ["default_partition=gpu"]).site


def job(partition=None, array=None, account=None, qos=None, **resources):
    return JobSpec(
        command=("true",),
        partition=partition,
        array=array,
        account=account,
        qos=qos,
        resources=Resources(**resources),
    )


@pytest.mark.parametrize(
    ("spec", "option", "words", "fits"),
    [
        (job("gpuu"), "--partition", "no partition 'gpuu'; it has gpu, long", "--partition=gpu"),
        (job("gpu,nix"), "--partition", "no partition 'nix'", None),
        (
            job(nodes=5),
            "--nodes",
            "5 nodes asked for; partition gpu gives at most 4",
            "--partition=cpu",
        ),
        (job("long", nodes=3), "--nodes", "at most 2", "--partition=gpu"),
        (job(nodes=50), "--nodes", "at most 4", "--nodes=4"),
        (job(gpus_per_node=8), "--gpus-per-node", "nodes of gpu have 4", "--partition=dense"),
        (
            job(gpus_per_node=16),
            "--gpus-per-node",
            "16 GPUs per node",
            "--nodes=4 --gpus-per-node=4",
        ),
        (job(gpus_per_node=17), "--gpus-per-node", "have 4", "--gpus-per-node=4"),
        (job("cpu", gpus_per_node=1), "--gpus-per-node", "cpu have none", "--partition=gpu"),
        # the CPU partition has the nodes, and no GPUs: no advice
        (job(nodes=5, gpus_per_node=1), "--nodes", "at most 4", "--nodes=4"),
        (
            job(tasks_per_node=8, cpus_per_task=8),
            "--cpus-per-task",
            "64 CPUs per node",
            "--cpus-per-task=4",
        ),
        (
            job(mem_gb=501),
            "--mem",
            "501 GB per node asked for; nodes of gpu have 500 GB",
            "--mem=512000M",
        ),
        (
            job(time_limit_s=8 * DAY_S),
            "--time",
            "8-00:00:00 asked for; partition gpu allows 7-00:00:00",
            "--partition=long",
        ),
        (
            job("closed", account="me"),
            "--account",
            "'me' asked for; partition closed takes root",
            "--partition=gpu",
        ),
        (job("closed", qos="x"), "--qos", "takes high, low", "--partition=gpu"),
        (job(array="0-1001"), "--array", "index 1001 asked for; the largest here is 1000", None),
    ],
)
def test_what_cannot_fit_is_told_with_what_would(site, spec, option, words, fits):
    (problem,) = check(spec, site, facts())
    assert problem.option == option
    assert words in problem.message
    if fits:
        assert problem.fits == fits


@pytest.mark.parametrize(
    "spec",
    [
        job(),
        job(nodes=4, gpus_per_node=4, time_limit_s=7 * DAY_S, mem_gb=500, cpus_per_task=32),
        job(mem_gb=0),  # all of the node
        job("long", time_limit_s=400 * DAY_S),
        job("gpu,cpu", gpus_per_node=4),  # one that fits is enough
        job(array="0-1000"),
        job(account="anything", qos="anything"),  # nobody insists
        job("closed"),
    ],
)
def test_what_fits_passes(site, spec):
    assert check(spec, site, facts()) == []


def test_every_problem_is_told_at_once(site):
    problems = check(job(nodes=50, gpus_per_node=17, time_limit_s=9 * DAY_S), site, facts())
    assert [p.option for p in problems] == ["--nodes", "--gpus-per-node", "--time"]


def test_without_a_named_partition_the_controllers_default_is_checked(site):
    bare = load_site("generic-ib").site
    assert bare.default_partition is None
    (problem,) = check(job(nodes=50), bare, facts())
    assert "partition gpu" in problem.message


@pytest.mark.parametrize(
    ("enforce", "accounts", "qos", "expected"),
    [
        ("none", ("mine",), ("normal",), []),
        ("", None, None, []),
        ("associations", ("mine",), ("normal",), ["--account"]),
        ("associations,limits,qos", ("mine",), ("normal",), ["--account", "--qos"]),
        ("associations,qos", None, None, []),  # slurmdbd gave no answer: sbatch judges
        ("nojobs", ("mine",), ("normal",), []),
        ("associations,qos", ("other",), ("fast",), []),
    ],
)
def test_accounts_and_qos_where_the_controller_insists(site, enforce, accounts, qos, expected):
    known = facts(accounts=accounts, qos=qos, config={"AccountingStorageEnforce": enforce})
    problems = check(job(account="other", qos="fast"), site, known)
    assert [p.option for p in problems] == expected


# --- the cache


def test_facts_are_used_for_ten_minutes_and_no_longer(site):
    assert cached_facts(site, now=NOW) is None
    store_facts(site, facts(accounts=("a",), config={"X": "y"}))
    assert cached_facts(site, now=NOW) == facts(accounts=("a",), config={"X": "y"})
    assert cached_facts(site, now=NOW + dt.timedelta(seconds=600)) is not None
    assert cached_facts(site, now=NOW + dt.timedelta(seconds=601)) is None
    # this machine's clock was set back: the age is unknown
    assert cached_facts(site, now=NOW - dt.timedelta(seconds=1)) is None


def test_facts_of_another_cluster_under_the_same_name_are_not_used(site):
    store_facts(site, facts())
    elsewhere = load_site("lab-onprem", ["transport.slurm_conf=/other/slurm.conf"]).site
    assert cached_facts(elsewhere, now=NOW) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"place": 1}', b"\xff\xfe", b"null"])
def test_a_corrupted_cache_is_ignored_and_rewritten(site, data, tmp_path):
    store_facts(site, facts())
    (path,) = (tmp_path / "state" / "facts").iterdir()
    path.write_bytes(data)
    assert cached_facts(site, now=NOW) is None
    store_facts(site, facts())
    assert cached_facts(site, now=NOW) == facts()


def test_a_cache_that_cannot_be_written_is_no_error(site, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(blocked))
    store_facts(site, facts())
    assert cached_facts(site, now=NOW) is None


class Client:
    """Answers with these facts, or not at all; counts."""

    def __init__(self, answer):
        self.answer = answer
        self.calls = 0

    def facts(self):
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def fresh(**changes):
    return facts(fetched_at=dt.datetime.now(dt.UTC), **changes)


def test_without_fresh_facts_sbatch_judges(site):
    require_fit(job("nix"), site)


def test_fresh_facts_refuse_before_sbatch(site):
    fetch_facts(site, Client(fresh()))
    with pytest.raises(RefusedError) as caught:
        require_fit(job("gpuu", nodes=2), site)
    assert caught.value.where == "site lab-onprem"
    assert caught.value.hint == "--partition=gpu"
    require_fit(job("gpu", nodes=2), site)


def test_slurms_refusal_is_explained_from_fresh_facts_and_they_are_kept(site):
    client = Client(fresh())
    slurms = RefusedError("Requested node configuration is not available")
    explained = explain_refusal(slurms, job(gpus_per_node=8), site, client)
    assert "Requested node configuration is not available" in explained.message
    assert "nodes of gpu have 4" in explained.message
    assert explained.hint == "--partition=dense"
    assert client.calls == 1
    assert cached_facts(site) is not None


def test_a_refusal_that_facts_do_not_explain_stays_as_it_is(site):
    slurms = RefusedError("Job violates accounting/QOS policy")
    assert explain_refusal(slurms, job(), site, Client(fresh())) is slurms
    silent = Client(UnreachableError("no answer"))
    assert explain_refusal(slurms, job("nix"), site, silent) is slurms


def test_without_fresh_facts_what_can_never_start_is_told(site, monkeypatch, tmp_path):
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path / "facts-of-nobody"))
    (text,) = doubts(job(nodes=99), site)
    assert "99 nodes asked for; partition gpu gives at most 4 (by its profile)" in text
    assert doubts(job(nodes=4), site) == []
    assert doubts(job("unheard-of", nodes=99), site) == []
    store_facts(site, facts(fetched_at=dt.datetime(2024, 1, 2, 12, tzinfo=dt.UTC)))
    (text,) = doubts(job("gpu", nodes=2, time_limit_s=8 * DAY_S), site)
    assert "facts of 2024-01-02 12:00Z" in text
    store_facts(site, facts(fetched_at=dt.datetime.now(dt.UTC)))
    assert doubts(job(nodes=99), site) == [], "fresh facts refuse it"
