"""The protocol of docs/handover.md as a model, explored in every order of its steps.

Two handovers with ledgers of their own, the on-prem job and both cloud jobs take their steps in any
order. A crash is a step that is never taken, or an act that is done and not noted, so that it is
done again. The fence is not modelled at all: a waiting job may start at any time. The claim may be
taken before the cloud job is at its gate or after it, so both orders are covered. The user may undo
or cancel at any step. Controllers may forget a start, a cancel and an end; the lease may run out
whenever nothing is decided.

With ``ids`` its user may also `scancel` the on-prem job itself, and its controller may forget it before
it has begun and give its id to a stranger's job, of which the comment is not ours. That a forgotten job
which nobody moves is submitted again (`burst/resubmit.py`) is another protocol: here it is an end.

It is a model of the rules, not of the code; the code's own tests are beside it.
"""

import random
from typing import NamedTuple

MAX_RESTART = 1


class Cloud(NamedTuple):
    """One cloud job, its decision, its own claim, and the handover that owns it."""

    step: str = "start"  # of the handover
    ends_as: str = ""
    seen: int = -1  # the restart count that the handover read, perhaps long ago
    job: str = "none"  # none, gate, passed, user, dead, done
    decision: str = ""
    own: str = ""  # the cloud attempt's own claim: began or closed
    began: bool = False


class State(NamedTuple):
    origin: str = (
        "pending"  # pending, script, user, done, cancelled; its id is a stranger's; struck
    )
    restart: int = 0
    log: tuple = ()  # the claim: (owner, restart)
    revoked: frozenset = frozenset()
    clouds: tuple = (Cloud(), Cloud())
    began: bool = False
    stopped: bool = False  # its user has cancelled the run: that is an end too


def walk(state, owner, restart):
    """The log as both sides walk it; the owner, and whether the log grows by an entry."""
    for holder, start in state.log:
        if holder == owner and owner != "origin":
            return owner, False
        if holder == "origin":
            if start >= restart:
                return "begun", False
        elif holder not in state.revoked:
            return holder, False
    return owner, True


def origin_steps(s, rules):
    if rules["ids"] and s.origin in {"pending", "script"}:  # scancel
        yield s._replace(origin="cancelled", stopped=True)
    if s.origin == "pending":
        yield s._replace(origin="script")
    elif s.origin == "script":
        owner, grows = walk(s, "origin", s.restart)
        if owner == "origin" or not rules["claim"]:
            log = (*s.log, ("origin", s.restart)) if grows else s.log
            yield s._replace(origin="user", log=log, began=True)
        elif owner == "begun":  # Slurm has forgotten a start: requeued
            yield s._replace(origin="pending", restart=s.restart + 1)
        else:
            yield s._replace(origin="pending")
    elif s.origin == "user":
        yield s._replace(origin="done")
        if rules["ids"]:
            yield s._replace(origin="done", stopped=True)  # scancel
        if s.restart < MAX_RESTART:
            yield s._replace(origin="pending", restart=s.restart + 1)  # a requeue


def job_steps(c, rules):
    if c.job == "gate":
        yield c._replace(job="dead")  # nodes fail, or somebody cancels it
        if c.decision == "opened" or not rules["gate"]:
            yield c._replace(job="passed")
        elif c.decision:
            yield c._replace(job="dead")
        else:
            yield c._replace(decision="expired")
    elif c.job == "passed":
        yield c._replace(job="dead")
        if not c.own:
            yield c._replace(own="began", job="user", began=True)
    elif c.job == "user":
        yield c._replace(job="done")


def forgotten(s, rules):
    """What controllers do that have lost their last seconds; no end may depend on it."""
    if rules["ids"] and s.origin == "pending" and not s.restart:
        yield s._replace(origin="stranger")  # with its submission; the id is given out again
    elif s.origin == "cancelled":
        yield s._replace(origin="pending")
    elif s.origin == "user" and s.restart < MAX_RESTART:
        yield s._replace(origin="pending")  # the start
    for me, c in enumerate(s.clouds):
        if c.job == "dead" and not c.began:
            yield with_cloud(s, me, c._replace(job="gate"))


def with_cloud(s, me, cloud):
    clouds = list(s.clouds)
    clouds[me] = cloud
    return s._replace(clouds=tuple(clouds))


def cancelled(s, rules, kinds):
    """After a cancel by id: whose job it is the comment says, and the act looks at it first."""
    if s.origin == "stranger" and not rules["comment"]:
        return s._replace(origin="struck")
    if s.origin not in kinds:
        return s
    return s._replace(origin="done" if s.origin == "user" else "cancelled")


def handover_steps(s, me, rules):
    """Next states for the handover of cloud ``me``."""
    c = s.clouds[me]

    def put(origin_state=s, **changes):
        return with_cloud(origin_state, me, origin_state.clouds[me]._replace(**changes))

    def ending(how, base=s):
        return put(base, step="ending", ends_as=how)

    if c.step == "start":
        yield put(step="submitted", job="gate")
        return
    if c.step in {"submitted", "claiming", "opening", "cancelling"}:
        yield ending("failed")  # its user takes it back, or a timeout
    stoppable = {"submitted", "claiming", "opening", "cancelling", "ending"}
    if c.step in stoppable and c.ends_as != "cancelled" and me == 0:  # the two are alike
        yield ending("cancelled", s._replace(stopped=True))
    if c.step == "submitted":
        yield put(step="claiming")
        if rules["ids"] and s.origin == "cancelled":
            yield ending("cancelled")
        elif s.origin not in {"pending", "script", "stranger"}:
            yield ending("withdrawn")
    elif c.step == "claiming":
        if c.seen != s.restart and s.origin in {"pending", "script"}:
            yield put(seen=s.restart)
        if s.origin == "stranger" and c.seen < 0:
            yield put(seen=0)  # of a job that is gone no start is known to be over
        if rules["ids"] and s.origin == "cancelled":
            yield ending("cancelled")
        if s.origin == "done":
            yield ending("withdrawn")
        if c.seen >= 0:
            owner, grows = walk(s, me, c.seen)
            after = s._replace(log=(*s.log, (me, -1))) if grows else s
            if owner == me:
                yield after  # done, and not noted
                yield put(after, step="opening")
            else:
                yield ending("withdrawn")
    elif c.step == "opening":
        decision = c.decision or "opened"
        yield put(decision=decision)
        if decision == "opened":
            yield put(decision=decision, step="cancelling")
        else:
            yield ending("failed")
    elif c.step == "cancelling":
        clean = cancelled(s, rules, {"pending", "script"})
        if c.began:
            yield clean
            yield put(clean, step="moved")
        elif c.job == "dead":
            if rules["close"]:
                yield put(own="closed")
            yield put(own="closed" if rules["close"] else c.own, step="ending", ends_as="failed")
    elif c.step == "ending":
        decision = c.decision or "closed"
        own = c.own
        if decision == "opened" and c.ends_as == "failed" and rules["close"]:
            own = own or "closed"
        if own == "began":
            yield put(step="cancelling")
            return
        yield put(decision=decision, own=own)
        after = put(
            decision=decision, own=own, job="dead" if c.job in {"gate", "passed"} else c.job
        )
        if c.ends_as == "failed":
            gone = after._replace(revoked=after.revoked | {me})
            yield gone
            yield put(gone, step="failed")
        elif c.ends_as == "cancelled":
            if after.clouds[me].job == "user":
                after = with_cloud(after, me, after.clouds[me]._replace(job="done"))
            ended = cancelled(after, rules, {"pending", "script", "user"})
            yield after
            yield ended
            yield with_cloud(ended, me, ended.clouds[me]._replace(step="cancelled"))
        else:
            yield put(after, step="withdrawn")


def steps(s, rules):
    yield from origin_steps(s, rules)
    for me in range(len(s.clouds)):
        yield from handover_steps(s, me, rules)
        for cloud in job_steps(s.clouds[me], rules):
            yield with_cloud(s, me, cloud)


def wrong(before, after):
    """What must never happen, by the states before and after one step."""
    if after.origin == "struck":
        return "a stranger's job was cancelled"
    running = [after.origin == "user", *(c.job == "user" for c in after.clouds)]
    if sum(running) > 1:
        return "user code is alive twice"
    if sum(c.began for c in after.clouds) > 1:
        return "user code began in both cloud jobs"
    if after.origin == "user" != before.origin and any(c.began for c in before.clouds):
        return "user code began on-prem after it had begun in the cloud"
    if before.origin == "done" and any(
        b.job != "user" and a.job == "user"
        for b, a in zip(before.clouds, after.clouds, strict=True)
    ):
        return "user code began in the cloud after its end on-prem"
    return None


def explore(handovers=2, **off):
    """All reachable states; the first fault, and how many states cannot reach the run's end."""
    rules = {"claim": True, "gate": True, "close": True, "comment": True, "ids": False} | off
    start = State(clouds=(Cloud(),) * handovers)
    known, queue, back = {start: 0}, [start], {}
    order = [start]
    while queue:
        state = queue.pop()
        fair = list(steps(state, rules))
        for number, after in enumerate([*fair, *forgotten(state, rules)]):
            fault = wrong(state, after)
            if fault:
                return len(known), fault, 0
            if after not in known:
                known[after] = len(order)
                order.append(after)
                queue.append(after)
            if number < len(fair):
                back.setdefault(known[after], []).append(known[state])
    ends = [
        number
        for number, s in enumerate(order)
        if s.stopped
        or s.origin in {"done", "stranger"}
        or any(c.job in {"user", "done"} for c in s.clouds)
    ]
    reach, queue = set(ends), list(ends)
    while queue:
        for number in back.get(queue.pop(), ()):
            if number not in reach:
                reach.add(number)
                queue.append(number)
    return len(known), None, len(order) - len(reach)


def walks(count, seed, length=60, handovers=3, **off):
    """Random walks through the model, with more handovers than can be explored.

    Each step of a walk is chosen among all that are possible, forgetting included; all of them are
    judged, the chosen one is taken.

    Returns:
        Steps taken, states that were met, and the first fault.
    """
    rules = {"claim": True, "gate": True, "close": True, "comment": True, "ids": False} | off
    choose = random.Random(seed)
    start = [State(clouds=(Cloud(),) * handovers), None]
    nodes = {start[0]: start}
    taken = 0
    for _ in range(count):
        node = start
        for _ in range(length):
            state, after = node
            if after is None:
                after = node[1] = []
                for found in [*steps(state, rules), *forgotten(state, rules)]:
                    if fault := wrong(state, found):
                        return taken, len(nodes), fault
                    after.append(nodes.setdefault(found, [found, None]))
            if not after:
                break
            node = after[int(choose.random() * len(after))]
            taken += 1
    return taken, len(nodes), None
