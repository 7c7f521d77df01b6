"""Spot nodes live: when they are taken, what they cost, and that no deadline is lost with them."""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from deciding import decided, offered_at
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcscale.burst.catalog import Offer
from hpcscale.burst.line import Line, Standing, expected_usd, to_net
from hpcscale.burst.plan import Action, Candidate, Rule
from hpcscale.burst.policy import Budget, BudgetOf, Policy, PolicyKind
from hpcscale.burst.verdict import line_of
from hpcscale.site import load_site
from hpcscale.slurm.types import JobState
from hpcscale.spec import BurstMode, BurstTerms, Checkpoint, JobSpec, Resources

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
ALWAYS = Policy(from_site="o", to=("lab-cloud",), kind=PolicyKind.ALWAYS, deadline_margin_s=600)
HOUR = 3600


def row(region, demand, spot, rate, **kw):
    values = {"boot_p95_s": 300, "egress_usd_per_gb": None} | kw
    return Offer(
        provider="x", region=region, instance="i", gpus=4, source="me", as_of=NOW.date(),
        on_demand_usd=None if demand is None else Decimal(demand),
        spot_usd=None if spot is None else Decimal(spot), interruption_per_hour=rate, **values,
    )  # fmt: skip


def site(**partitions):
    """lab-cloud with a partition for each region; a name that begins with s is spot."""
    found = load_site("lab-cloud").site
    gpu = found.partitions["gpu"]
    parts = {
        name: msgspec.structs.replace(gpu, offer=f"x/{region}/i", preemptible=name[0] == "s")
        for name, region in partitions.items()
    }
    return msgspec.structs.replace(found, partitions=parts, default_partition=next(iter(parts)))


ROWS = {r.name: r for r in (
    row("a", 20, 6, 0.05), row("b", 24, 5, 0.04), row("c", 22, 4, None), row("d", 30, 7, 3.0),
)}  # fmt: skip
ZONES = site(demand="a", spot_a="a", spot_b="b", spot_c="c", spot_d="d")


def job(policy=ALWAYS, where=ZONES, checkpoint=True, rows=ROWS, array=None, **kw):
    spec = JobSpec(
        command=("true",),
        array=array,
        resources=Resources(nodes=1, gpus_per_node=4, time_limit_s=2 * HOUR),
        checkpoint=Checkpoint(dir="ck", max_restarts=2) if checkpoint else None,
    )
    return Candidate(**{
        "run_id": "r", "ref": "o:1", "name": "j", "mode": BurstMode.AUTO, "user": "ada",
        "state": JobState.PENDING, "waiting_since": NOW, "time_limit_s": 2 * HOUR,
        "options": offered_at(spec, 2 * HOUR, where, policy, rows, NOW.date()), **kw,
    })  # fmt: skip


def one(policy=ALWAYS, **kw):
    return decided([job(policy, **kw)], policy, NOW).decisions[0]


def test_spot_without_an_egress_price_is_no_offer_for_what_comes_back():
    back = {"outputs": {"o": "out"}, "burst": BurstTerms(egress_gb=100.0)}
    rows = {n: msgspec.structs.replace(r, egress_free=n != "x/b/i") for n, r in ROWS.items()}

    def spot(**kw):
        spec = JobSpec(
            command=("true",),
            resources=Resources(nodes=1, gpus_per_node=4, time_limit_s=2 * HOUR),
            checkpoint=Checkpoint(dir="ck"),
            **kw,
        )
        made = offered_at(spec, 2 * HOUR, ZONES, ALWAYS, rows, NOW.date())
        return {option.offer for option in made if option.spot}

    assert spot() == {"x/a/i", "x/b/i", "x/d/i"}
    assert spot(**back) == {"x/a/i", "x/d/i"}


def test_the_cheapest_zone_is_taken_with_the_net_of_its_site():
    decision = one()
    assert (decision.action, decision.partition, decision.net) == (Action.MOVE, "spot_b", "demand")
    assert "on spot nodes (spot_b), with demand as the net" in decision.reason
    assert "taken back 0.04 times an hour and node" in decision.cost_why
    demand = one(msgspec.structs.replace(ALWAYS, spot=False))
    assert (demand.partition, demand.net, demand.line) == ("demand", None, None)
    assert decision.cost_usd < demand.cost_usd / 3
    # three lost starts and then all of it on demand, with its requeues
    assert decision.worst_usd > demand.worst_usd


def test_a_rate_that_is_unknown_or_too_high_is_no_gain():
    assert one(where=site(demand="a", spot_c="c")).net is None
    assert one(where=site(demand="a", spot_d="d"), checkpoint=False).net is None
    assert one(where=site(spot_a="a", spot_b="b")).action is Action.REFUSE


@pytest.mark.parametrize("array", ["0-7", "4"])  # an element moves as an array of itself
def test_arrays_and_elements_stay_on_demand_and_say_why(array):
    decision = one(array=array)
    assert (decision.action, decision.partition, decision.net) == (Action.MOVE, "demand", None)
    assert "not on spot nodes: those of an array are taken back" in decision.cost_why
    # where there is none, or the policy wants none, nothing is said of it
    assert "spot" not in one(array=array, where=site(demand="a")).cost_why
    assert "spot" not in one(msgspec.structs.replace(ALWAYS, spot=False), array=array).cost_why


def test_jobs_whose_money_is_bounded_too_tightly_stay_on_demand():
    worst = one(msgspec.structs.replace(ALWAYS, spot=False)).worst_usd
    assert one(max_cost_usd=worst).net is None
    assert one(max_cost_usd=3 * worst).net == "demand"
    budget = Budget(of=BudgetOf.ALL, usd=one().worst_usd - 1)
    held = one(msgspec.structs.replace(ALWAYS, budgets=(budget,)))
    assert held.action is Action.STAY
    assert "a month for all" in held.reason


def test_a_zone_without_nodes_lately_is_left_alone_for_the_next_one():
    found = job()
    options = tuple(
        msgspec.structs.replace(o, resting_until=NOW + dt.timedelta(hours=1), resting_why="none")
        if o.partition == "spot_b" else o
        for o in found.options
    )  # fmt: skip
    decision = decided([msgspec.structs.replace(found, options=options)], ALWAYS, NOW).decisions[0]
    assert decision.partition == "spot_a"


def slack(checkpoint):
    """Seconds to a deadline from which on spot is taken: boots, work, loss, looks, margin."""
    lost = 1800 if checkpoint else 2 * HOUR
    # gate, staging and margin: line_of holds 600 + 5 s against the deadline
    return 300 + lost + (300 + 120) + 300 + 2 * HOUR + 605


@pytest.mark.parametrize("checkpoint", [True, False])
def test_spot_is_taken_as_long_as_the_deadline_bears_a_taking_at_the_worst_moment(checkpoint):
    def landing(seconds):
        deadline = NOW + dt.timedelta(seconds=seconds)
        return one(checkpoint=checkpoint, deadline=deadline).net

    assert landing(slack(checkpoint)) == "demand"
    assert landing(slack(checkpoint) - 1) is None


def test_at_the_last_safe_moment_it_goes_on_demand():
    late = NOW + dt.timedelta(seconds=300 + 5 + 2 * HOUR + 600)
    decision = one(deadline=late)
    assert (decision.rule, decision.partition, decision.net) == (Rule.DEADLINE, "demand", None)


def test_value_moves_earlier_where_spot_makes_it_cheap():
    value = msgspec.structs.replace(ALWAYS, kind=PolicyKind.VALUE, hour_usd=Decimal(10))
    waits = {"start_p50": NOW + dt.timedelta(hours=3)}
    assert one(value, **waits).rule is Rule.VALUE
    dear = msgspec.structs.replace(value, spot=False)
    assert one(dear, **waits).action is Action.STAY


def test_what_is_expected_of_spot_lies_between_its_price_and_the_nets():
    terms = {"gpus": 4, "hours": 10.0, "boot_h": 0.1, "gpu_hour_usd": Decimal(1),
             "net_usd": Decimal(160), "tries": 3}  # fmt: skip
    for lost in (0.5, None):
        costs = [expected_usd(lost_h=lost, taken_per_h=r, **terms) for r in (0, 0.01, 0.1, 1, 9)]
        assert costs[0] == Decimal("40.40")
        assert costs[:3] == sorted(costs[:3])
        # no more than every try in vain, and all of it in the net
        assert max(costs) <= 3 * 4 * (terms["boot_h"] + 10) + 160
    # without a checkpoint and taken at once each time: three boots, then the net
    assert expected_usd(lost_h=None, taken_per_h=1e9, **terms) == pytest.approx(
        Decimal("161.20"), abs=Decimal("0.02")
    )


class World:
    """Slurm, a cloud that takes nodes when it likes, and looks that come within their bound."""

    def __init__(self, line, draw, checkpoint, run_s):
        self.line, self.draw, self.checkpoint, self.run_s = line, draw, checkpoint, run_s
        self.now, self.done, self.spot_usd = 0, 0.0, 0

    def at(self):
        return NOW + dt.timedelta(seconds=self.now)

    def finish(self):
        """When the job ends; takings, boots and looks are drawn, each within its bound."""
        line, taken, held = self.line, 0, 0.0
        while True:
            # it is booting or waits; a spot node comes, or does not, before each look
            asked = self.now
            boot = self.draw(st.integers(0, line.boot_timeout_s * 2))
            while True:
                look = self.draw(st.integers(1, line.look_s))
                if self.now + look >= asked + boot:
                    self.now = asked + boot
                    break
                self.now += look
                if self._net(Standing.WAITING, self.now - asked, taken, self._kept(held, taken)):
                    return self._in_net()
            began = self.now
            stops = self.draw(st.none() | st.integers(1, line.limit_s))
            left = self.run_s - self.done
            ends = left if stops is None else min(left, stops)
            while self.now < began + ends:
                look = self.draw(st.integers(max(1, line.look_s // 2), line.look_s))
                self.now = min(self.now + look, began + ends)
                ran = self.now - began
                kept = self._kept(held + ran, taken + 1)
                if self.now < began + ends and self._net(Standing.RUNNING, 0, taken, kept):
                    self.done = self._lose(self.done, ran)
                    return self._in_net()
            if ends == left:
                return self.now
            held += ends
            taken += 1
            self.done = self._lose(self.done, ends)
            self.now += self.draw(st.integers(0, line.look_s))  # until somebody looks
            if self._net(Standing.WAITING, 0, taken, self._kept(held, taken)):
                return self._in_net()

    def _lose(self, done, ran):
        if not self.checkpoint:
            return 0.0
        lost = self.draw(st.integers(0, self.line.lost_s))
        return done + max(0.0, ran - lost)

    def _kept(self, held, taken):
        """As ``Net._done_s``: what is known to be kept."""
        if not self.checkpoint:
            return 0.0
        return max(0.0, held - taken * (self.line.lost_s + self.line.boot_s))

    def _net(self, standing, waited, taken, done):
        return to_net(
            self.line, self.at(), standing, waited_s=waited, taken=taken, done_s=done
        )  # fmt: skip

    def _in_net(self):
        boot = self.draw(st.integers(0, self.line.net_boot_s))
        return self.now + boot + (self.run_s - self.done)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_deadline_is_lost_while_boots_looks_runtime_and_losses_hold(data):
    checkpoint = data.draw(st.booleans())
    limit = data.draw(st.integers(600, 20_000))
    boot, net_boot = data.draw(st.integers(0, 900)), data.draw(st.integers(0, 900))
    lost = min(limit, data.draw(st.integers(0, 3000))) if checkpoint else limit
    look = data.draw(st.integers(30, 600))
    more = data.draw(st.integers(1, 3 * limit))
    deadline_s = look + boot + lost + net_boot + limit + more
    line = Line(
        deadline=NOW + dt.timedelta(seconds=deadline_s), limit_s=limit, boot_s=boot,
        net_boot_s=net_boot, lost_s=lost, look_s=look, first_slack_s=deadline_s - limit,
        boot_timeout_s=data.draw(st.integers(boot, boot + 900)), tries=data.draw(st.integers(1, 4)),
    )  # fmt: skip
    assert line.bears(NOW)
    run = data.draw(st.integers(1, limit))
    assert World(line, data.draw, checkpoint, run).finish() <= deadline_s


def test_the_line_without_a_deadline_ends_with_the_tries_and_the_boot_timeout():
    line = Line(limit_s=9999, boot_s=60, net_boot_s=60, lost_s=9999, look_s=420, tries=2)
    later = NOW + dt.timedelta(days=9)
    calm = {"waited_s": 100.0, "taken": 1, "done_s": 0.0}
    assert to_net(line, later, Standing.WAITING, **calm) is None
    assert "2 times" in to_net(line, later, Standing.WAITING, **{**calm, "taken": 2})
    assert "no spot node" in to_net(line, later, Standing.WAITING, **{**calm, "waited_s": 1801.0})
    assert to_net(line, later, Standing.RUNNING, **{**calm, "taken": 2}) is None


def test_a_deadline_without_a_limit_bears_no_spot():
    (option,) = [o for o in job().options if o.partition == "spot_b"]
    unbound = job(time_limit_s=None, deadline=NOW + dt.timedelta(days=9))
    assert not line_of(unbound, option, ALWAYS, NOW).bears(NOW)
