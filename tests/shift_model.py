"""Moves into a partition of the same controller as a model, explored in every order of their steps.

Movers with ledgers of their own, one job, its user and a controller that forgets take their steps in
any order. A crash is a step that is never taken, or an act that is done and not noted: the steps
``priced``, ``updated`` and ``putting`` are in a process's memory alone. The claim of the job's script
is that of ``handover_model``, whose handover takes it whatever the partition is.

It is a model of the rules, not of the code; ``sim_world`` runs the code.
"""

from typing import NamedTuple

MAX_RESTART = 2
SETTLED = {"done", "failed", "withdrawn", "cancelled"}
OVER = {"done", "cancelled"}
RULES = ("claim", "price", "watch", "look")


class Job(NamedTuple):
    """As its controller has it."""

    state: str = "pending"  # pending, script, user, done, cancelled
    at: str = "old"  # its partition: old, cloud
    restart: int = 0


class Mover(NamedTuple):
    """A ledger's move of the job, and the price that it counts the job's hours at."""

    step: str = "none"
    noted: bool = False  # the old partition and its price are on disk
    price: str = "old"


class State(NamedTuple):
    job: Job = Job()
    disk: Job = Job()  # what a controller that dies comes back with
    starts: frozenset = frozenset()  # restart counts with which user code has begun
    ran: str = ""  # the partition in which it began last
    forgot: bool = False
    stopped: bool = False  # its user has cancelled the run
    put_back: bool = False  # its user has put it back once
    movers: tuple = (Mover(), Mover())


def job_steps(s, rules):
    job = s.job
    again = job._replace(state="pending", restart=job.restart + 1)
    if job.state == "pending":
        yield s._replace(job=job._replace(state="script"))
    elif job.state == "script":
        if job.restart not in s.starts or not rules["claim"]:
            begun = s.starts | {job.restart}
            yield s._replace(job=job._replace(state="user"), starts=begun, ran=job.at)
        else:  # its controller has forgotten a start
            yield s._replace(job=again if job.restart < MAX_RESTART else job._replace(state="done"))
    elif job.state == "user":
        yield s._replace(job=job._replace(state="done"))
        if job.restart < MAX_RESTART - 1:
            yield s._replace(job=again)
    if s.disk != job:
        yield s._replace(disk=job)


def user_steps(s):
    job = s.job
    if not s.stopped:
        yield s._replace(stopped=True)
    elif job.state not in OVER:
        yield s._replace(job=job._replace(state="done" if job.state == "user" else "cancelled"))
    if job.state == "pending" and job.at == "cloud" and not s.put_back:
        yield s._replace(job=job._replace(at="old"), put_back=True)


def forgotten(s):
    """The controller dies; of a job that ran by what it saved no node knows: it is requeued."""
    back = s.disk
    if back == s.job:
        return
    if back.state in {"script", "user"}:
        if back.restart >= MAX_RESTART:
            return
        back = back._replace(state="pending", restart=back.restart + 1)
    yield s._replace(job=back, disk=back, forgot=True)


def mover_steps(s, me, rules):
    m, job = s.movers[me], s.job
    pending, there = job.state == "pending", job.at == "cloud"

    def put(job=job, **changes):
        movers = list(s.movers)
        movers[me] = m._replace(**changes)
        return s._replace(job=job, movers=tuple(movers))

    def elsewhere():
        how = "cancelled" if job.state == "cancelled" else "withdrawn"
        return put(step=how, price="old" if m.noted else m.price)

    if m.step == "none":
        if pending and not there:
            yield put(step="shifting")
    elif m.step == "shifting":
        if s.stopped:
            ended = job._replace(state="done" if job.state == "user" else "cancelled")
            ended = job if job.state in OVER else ended
            if there and m.noted:
                yield put(job=ended, step="moved", price="cloud")
            else:
                yield put(job=ended, step="cancelled", price="old" if m.noted else m.price)
        elif not m.noted:
            yield put(noted=True) if pending else elsewhere()
        elif there:
            yield put(step="moved", price="cloud")
        elif pending:
            yield put(step="priced", price="cloud" if rules["price"] else m.price)
        else:
            yield elsewhere()
    elif m.step == "priced":
        yield put(step="shifting")  # killed
        yield put(job=job._replace(at="cloud") if pending else job, step="updated")
    elif m.step == "updated":
        yield put(step="shifting")  # killed
        if there:
            yield put(step="moved", price="cloud")
        elif pending:  # refused, or forgotten
            yield put(step="failed", price="old")
        else:
            yield elsewhere()
    elif m.step == "moved":
        if not there and rules["look"]:
            if pending:
                yield put(step="shifting")
                yield put(step="failed", price="old")
            else:
                yield elsewhere()
        elif job.state in OVER:
            yield put(step="done")
        elif pending:
            yield put(step="restoring")  # no start in time, or its user takes it back
    elif m.step == "restoring":
        if pending and there:
            yield put(step="putting")
        elif there or job.state in OVER:
            yield put(step="moved")
        else:
            yield put(step="failed", price="old") if pending else elsewhere()
    elif m.step == "putting":
        yield put(job=job._replace(at="old") if pending else job, step="restoring")
        yield put(step="restoring")  # killed
    elif m.step != "done" and m.noted and rules["watch"]:
        price = "cloud" if there else "old"
        if price != m.price:
            yield put(price=price)


def steps(s, rules):
    yield from job_steps(s, rules)
    yield from user_steps(s)
    for me in range(len(s.movers)):
        yield from mover_steps(s, me, rules)


def wrong(before, after):
    """What must never happen, by the states before and after one step."""
    if after.job.state == "user" != before.job.state:
        if after.job.restart in before.starts:
            return "user code began twice in one start"
        (alone, *others) = after.movers
        unpaid = after.job.at == "cloud" and alone.price == "old"
        if unpaid and not after.forgot and not others:
            return "user code began in the cloud partition at the old price"
    return None


def is_end(s):
    """The job is over, each move is settled, and each counts the price of where it ran."""
    if s.job.state not in OVER:
        return False
    for m in s.movers:
        if m.step not in {"none", *SETTLED}:
            return False
        # what was done before its controller forgot the end stays as it was counted; and one price
        # is counted where it ran in one partition, was requeued, and was put into the other
        kept = m.step == "done" and s.forgot
        if m.noted and s.ran and not kept and m.price not in {s.job.at, s.ran}:
            return False
    return True


def explore(movers=2, **off):
    """All reachable states; the first fault, and how many states cannot reach an end."""
    rules = dict.fromkeys(RULES, True) | off
    start = State(movers=(Mover(),) * movers)
    known, order, back = {start: 0}, [start], {}
    queue = [start]
    while queue:
        state = queue.pop()
        fair = list(steps(state, rules))
        for number, after in enumerate([*fair, *forgotten(state)]):
            if fault := wrong(state, after):
                return len(known), fault, 0
            if after not in known:
                known[after] = len(order)
                order.append(after)
                queue.append(after)
            if number < len(fair):
                back.setdefault(known[after], []).append(known[state])
    ends = [number for number, s in enumerate(order) if is_end(s)]
    reach, queue = set(ends), list(ends)
    while queue:
        for number in back.get(queue.pop(), ()):
            if number not in reach:
                reach.add(number)
                queue.append(number)
    return len(known), None, len(order) - len(reach)
