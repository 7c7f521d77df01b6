"""Decisions are kept with all that they were made of, and come out the same again."""

import datetime as dt
import gzip
import json
import os
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from fake_sites import Sites

from hpcscale.burst import kept
from hpcscale.burst.audit import audit_path
from hpcscale.burst.budget import Charge, Payer
from hpcscale.burst.candidates import place
from hpcscale.burst.catalog import Offer
from hpcscale.burst.plan import Action, Candidate, Forecast, Option, Start
from hpcscale.burst.policy import Budget, BudgetOf, Policy, PolicyKind
from hpcscale.burst.seen import Budgets, Catalog, Foretold, Snapshot
from hpcscale.cli import main
from hpcscale.errors import NotFoundError, StateError
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode, BurstTerms, JobSpec, Resources

NOW = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
VALUE = Policy(
    from_site="a", to=("c",), kind=PolicyKind.VALUE, hour_usd=Decimal("7.25"), max_wait_s=99,
    budgets=(Budget(of=BudgetOf.USER, usd=Decimal(90)),),
)  # fmt: skip


def snapshot(**kw):
    jobs = tuple(
        Candidate(
            run_id=f"r{at}", ref=f"a:{at}", name="x", mode=BurstMode.AUTO, state=JobState.PENDING,
            waiting_since=NOW - dt.timedelta(minutes=1), time_limit_s=3600, user="ada",
            start_p50=NOW + dt.timedelta(hours=hours),
            options=(Option(site="c", cost_usd=Decimal("50.10"), worst_usd=Decimal("60.10")),),
        )
        for at, hours in enumerate((9.5, 19.25, 0.5))
    )  # fmt: skip
    charge = Charge(payer=Payer(user="ada"), at=NOW, usd=Decimal("10.01"))
    return kept.Kept(
        now=NOW, policy=VALUE, snapshot=Snapshot(jobs=jobs),
        budgets=Budgets(limits=VALUE.budgets, charges=(charge,)), **kw,
    )  # fmt: skip


class Foresight:
    """Of three jobs; the first one starts the sooner, the more have left."""

    forecast = Forecast(pending=3)

    def replan(self, gone):
        return {"0": Start(p50=NOW + dt.timedelta(hours=9 - 3 * len(gone), seconds=7))}


def test_a_kept_decision_is_made_again_without_asking_anything(tmp_path):
    seen = kept.planned(snapshot(), Foresight())
    assert [d.run_id for d in seen.plan.moves] == ["r1"]
    name = kept.keep(seen)
    again, changed = kept.replay(name[:9])
    assert changed == []
    assert again == seen
    # the same verdicts of jobs that stay are not kept again
    calm = msgspec.structs.replace(
        seen, plan=msgspec.structs.replace(seen.plan, decisions=seen.plan.decisions[1:])
    )
    assert kept.keep(calm) is None
    assert kept.names() == [name]


def test_rules_that_have_changed_since_are_named():
    seen = kept.planned(snapshot(), Foresight())
    first = seen.plan.decisions[0]
    other = msgspec.structs.replace(first, reason="for another reason")
    plan = msgspec.structs.replace(seen.plan, decisions=(other, *seen.plan.decisions[1:]))
    kept.keep(msgspec.structs.replace(seen, plan=plan))
    (name,) = kept.names()
    assert kept.replay(name)[1] == [first.run_id]
    done = CliRunner().invoke(main, ["burst", "replay"])
    assert done.exit_code == 9
    assert f"differs: {first.run_id}" in done.stdout


def test_a_snapshot_that_was_changed_is_noticed():
    name = kept.keep(kept.planned(snapshot(), Foresight()))
    path = kept.folder() / f"{name}.json.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"60.10", b"61.10")))
    with pytest.raises(StateError, match="hash of its name"):
        kept.read(name)
    path.write_bytes(b"torn")
    with pytest.raises(StateError, match="cannot be read"):
        kept.read(name)
    with pytest.raises(NotFoundError):
        kept.read("0" * 64)


def test_what_is_older_than_90_days_or_over_the_size_goes(monkeypatch):
    names = []
    for minutes in range(3):
        seen = kept.planned(
            msgspec.structs.replace(snapshot(), now=NOW + dt.timedelta(minutes=minutes)),
            Foresight(),
        )
        names.append(kept.keep(seen))
        path = kept.folder() / f"{names[-1]}.json.gz"
        age = 91 * 86400 if minutes == 0 else 100 - minutes
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert kept.keep(kept.planned(snapshot(), Foresight()))
    assert names[0] not in kept.names()[:-1]
    assert set(names[1:]) <= set(kept.names())
    monkeypatch.setattr(kept, "MOST_BYTES", 1)
    kept._prune()
    assert kept.names() == []


def test_what_another_run_drops_meanwhile_is_no_error(monkeypatch):
    name = kept.keep(kept.planned(snapshot(), Foresight()))
    real = Path.glob

    def dropped_since(self, pattern):
        return [*real(self, pattern), self / f"{'0' * 64}.json.gz"]

    monkeypatch.setattr(Path, "glob", dropped_since)
    monkeypatch.setattr(kept, "MOST_BYTES", 1)
    kept._prune()
    monkeypatch.undo()
    assert name not in kept.names()


def test_a_tick_keeps_what_it_acts_on_and_the_audit_log_names_it(tmp_path):
    sites = Sites(tmp_path)
    sites.fill()
    job = sites.submit()
    done = sites.tick()
    assert done.plan.moves[0].action is Action.MOVE
    (name,) = kept.names()
    lines = [json.loads(line) for line in audit_path().read_text().splitlines()]
    (line,) = [each for each in lines if each["act"] == "decide to move"]
    assert line["data"]["snapshot"] == name if "data" in line else line["snapshot"] == name
    assert kept.replay(name)[1] == []
    (decision,) = sites.ledger.decisions(job.run_id)
    assert decision.data["snapshot"] == name
    sites.tick()
    before = len(kept.names())
    sites.tick()
    assert len(kept.names()) == before, "nothing has changed"
    done = CliRunner().invoke(main, ["burst", "replay", name[:12], "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["data"]["snapshots"][0]["changed"] == []
    sites.ledger.close()


def test_offers_are_made_again_from_the_kept_profiles_and_rows(tmp_path):
    row = Offer(
        provider="x", region="r", instance="i", gpus=4, on_demand_usd=Decimal(20),
        spot_usd=Decimal("6.5"), interruption_per_hour=0.1, source="me", as_of=NOW.date(),
    )  # fmt: skip
    site = load_site("lab-cloud").site
    gpu = msgspec.structs.replace(site.partitions["gpu"], offer=row.name)
    spot = msgspec.structs.replace(gpu, preemptible=True)
    site = msgspec.structs.replace(site, partitions={"gpu": gpu, "spot": spot})
    always = Policy(from_site="a", to=("lab-cloud",), kind=PolicyKind.ALWAYS)
    spec = JobSpec(
        command=("secret-command",), env={"TOKEN": "secret-value"},
        resources=Resources(gpus_per_node=4, time_limit_s=3600), burst=BurstTerms(data=("public",)),
    )  # fmt: skip
    there = place(spec, 3600, "lab-cloud", always, site, send_gb=0.5)
    job = msgspec.structs.replace(
        snapshot().snapshot.jobs[0],
        options=(),
        places=(there,),
        deadline=NOW + dt.timedelta(days=2),
    )
    seen = kept.planned(
        kept.Kept(
            now=NOW, policy=always, snapshot=Snapshot(jobs=(job,)),
            catalog=Catalog(sites={"lab-cloud": site}, rows={row.name: row}),
        ),
        Foretold(),
    )  # fmt: skip
    (move,) = seen.plan.moves
    assert (move.partition, move.net) == ("spot", "gpu")
    name = kept.keep(seen)
    again, changed = kept.replay(name)
    assert changed == []
    assert again == seen
    text = gzip.decompress((kept.folder() / f"{name}.json.gz").read_bytes()).decode()
    assert "secret-" not in text
    # a row that says something else is another decision, and is seen
    dear = msgspec.structs.replace(row, spot_usd=Decimal(30))
    other = msgspec.structs.replace(
        again, catalog=msgspec.structs.replace(again.catalog, rows={row.name: dear})
    )
    assert kept.plan_of(other) != again.plan
