"""The event loop of the overflow simulator: one cluster, one queue, a cloud behind it.

Events are arrivals, ends on the cluster, and moments at which a policy's patience with a job ends.
At each: ended jobs give their nodes back, jobs out of patience leave, arrivals queue, the policy
may send waiting jobs away, and then the queue is walked in order of arrival and whoever fits starts
(best fit). With ``blocking`` the walk stops at the first job that does not fit. These are the
semantics of the simulator of Starburst (USENIX ATC'24), so that its published costs compare.

Compiled by numba where that is installed; the same code runs without it, slowly.
"""

import numpy as np
from numpy.typing import NDArray

from hpcscale.burst import value
from hpcscale.simulate.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# what makes a job leave: nothing; its own wait; that in units of its cost; wait and depth; value
STAYS, PATIENCE, PATIENCE_BY_COST, THRESHOLD, VALUE = range(5)

# how long a job will run, as the policy may know it: given beforehand, or learned from ended jobs
GIVEN, LEARNED = range(2)

WARM = 20.0  # jobs for which the adapted value of time counts as just right

_place = compiled(value.place)
_plan = compiled(value.plan, place=_place)
_choose = compiled(value.choose, plan=_plan)


def _loop(
    arrival: Floats,
    run: Floats,
    per_node: Ints,
    count: Ints,
    group: Ints,
    given: Floats,
    deadline: Floats,
    boot: float,
    margin: float,
    nodes: int,
    gpus_per_node: int,
    usd_per_gpu_hour: float,
    rule: int,
    knob: float,
    depth: int,
    blocking: bool,
    expect_kind: int,
    others: float,
    overdue: float,
    cap: float,
    wide: int,
    budget: float,
    gain: float,
    start: Floats,
    left: Ints,
    expected: Floats,
) -> None:
    """Run until every job has begun, here or away; see ``overflow.simulate`` for the arguments."""
    total = len(arrival)
    slots = nodes * gpus_per_node
    free = np.full(nodes, gpus_per_node)
    # pieces of running jobs, one a node, by their true end
    end = np.empty(slots + 1)
    piece_node = np.empty(slots + 1, np.int64)
    piece_gpus = np.empty(slots + 1, np.int64)
    piece_job = np.empty(slots + 1, np.int64)
    held = 0
    # the same by their expected end, for the plan
    plan_end = np.empty(slots + 1)
    plan_node = np.empty(slots + 1, np.int64)
    plan_gpus = np.empty(slots + 1, np.int64)
    # jobs in the cloud, by their end: they teach how long jobs run
    away_end = np.empty(total)
    away_job = np.empty(total, np.int64)
    away_first = 0
    away_last = 0
    # what ended jobs taught: of each group how many, all their hours, and the last two
    groups = 1
    for j in range(total):
        groups = max(groups, group[j] + 1)
    seen = np.zeros(groups)
    last_run = np.zeros((groups, 2))
    group_run = np.zeros(groups)
    all_seen = 0.0
    all_run = 0.0

    queue = np.empty(total, np.int64)
    order = np.empty(total, np.int64)
    leave = np.empty(total, np.int64)
    gone = np.zeros(total, np.int64)
    patience = np.full(total, np.inf)
    must_leave_by = np.full(total, np.inf)
    cost = np.full(total, np.inf)
    planned = np.empty(total)
    trial = np.empty(total)
    chosen = np.empty(nodes + 1, np.int64)
    pieces = slots + 1 + np.sum(count)  # a plan holds what runs and each node of all that waits
    work = (
        np.empty(nodes, np.int64),
        np.empty(pieces),
        np.empty(pieces, np.int64),
        np.empty(pieces, np.int64),
        np.empty(total, np.int64),
        np.empty(nodes + 1, np.int64),
    )
    waiting = 0
    arrived = 0
    waited = 0.0
    t = 0.0
    if total > 0:
        t = arrival[0]
    while True:
        # ends: here, then away
        done = 0
        while done < held and end[done] <= t:
            free[piece_node[done]] += piece_gpus[done]
            j = piece_job[done]
            if expect_kind == LEARNED and gone[j] == 0:
                gone[j] = 1
                g = group[j]
                last_run[g, 1] = last_run[g, 0]
                last_run[g, 0] = run[j]
                group_run[g] += run[j]
                seen[g] += 1.0
                all_seen += 1.0
                all_run += run[j]
            done += 1
        if done > 0:
            for k in range(done, held):
                end[k - done] = end[k]
                piece_node[k - done] = piece_node[k]
                piece_gpus[k - done] = piece_gpus[k]
                piece_job[k - done] = piece_job[k]
            held -= done
        while away_first < away_last and away_end[away_first] <= t:
            j = away_job[away_first]
            g = group[j]
            last_run[g, 1] = last_run[g, 0]
            last_run[g, 0] = run[j]
            group_run[g] += run[j]
            seen[g] += 1.0
            all_seen += 1.0
            all_run += run[j]
            away_first += 1

        # who leaves: out of patience, or the last safe moment of a deadline
        leaving = 0
        stays = 0
        for k in range(waiting):
            j = queue[k]
            limit = min(patience[j], must_leave_by[j])
            if t >= limit and (rule != THRESHOLD or waiting > depth or t >= must_leave_by[j]):
                leave[leaving] = j
                leaving += 1
                start[j] = max(limit, arrival[j]) if rule != THRESHOLD else t
            else:
                queue[stays] = j
                stays += 1
        waiting = stays

        # arrivals
        while arrived < total and arrival[arrived] <= t:
            j = arrived
            expected[j] = given[j]
            if expect_kind == LEARNED:
                g = group[j]
                mean = given[j]
                if all_seen > 0:
                    mean = all_run / all_seen
                if seen[g] >= 2.0:
                    # users repeat themselves, and a pair of runs says little of a heavy tail
                    mean = 0.25 * (last_run[g, 0] + last_run[g, 1]) + 0.5 * group_run[g] / seen[g]
                elif seen[g] >= 1.0:
                    mean = 0.5 * (last_run[g, 0] + mean)
                expected[j] = mean
            gpu_hours = per_node[j] * count[j] * expected[j]
            # the last safe moment; a deadline that the cloud could not meet either asks for nothing
            last_safe = deadline[j] - boot - margin * expected[j]
            if last_safe >= arrival[j]:
                must_leave_by[j] = last_safe
            cost[j] = gpu_hours * usd_per_gpu_hour
            if rule in (PATIENCE, THRESHOLD):
                patience[j] = arrival[j] + knob
            elif rule == PATIENCE_BY_COST:
                patience[j] = arrival[j] + knob * gpu_hours
            elif rule == VALUE and knob > 0.0:
                patience[j] = arrival[j] + cap * cost[j] / knob
            queue[waiting] = j
            waiting += 1
            arrived += 1

        if rule == VALUE and waiting > 0:
            # only when somebody cannot start at once
            trial_free = work[0]
            for n in range(nodes):
                trial_free[n] = free[n]
            all_fit = True
            for k in range(waiting):
                j = queue[k]
                if not _place(trial_free, nodes, per_node[j], count[j], chosen):
                    all_fit = False
                    break
                for c in range(count[j]):
                    trial_free[chosen[c]] -= per_node[j]
            if not all_fit:
                for k in range(held):
                    j = piece_job[k]
                    elapsed = t - start[j]
                    trial[0] = max(expected[j] - elapsed, overdue * elapsed)
                    p = k
                    e = t + trial[0]
                    while p > 0 and plan_end[p - 1] > e:
                        plan_end[p] = plan_end[p - 1]
                        plan_node[p] = plan_node[p - 1]
                        plan_gpus[p] = plan_gpus[p - 1]
                        p -= 1
                    plan_end[p] = e
                    plan_node[p] = piece_node[k]
                    plan_gpus[p] = piece_gpus[k]
                spent = waited
                for k in range(waiting):
                    order[k] = queue[k]
                    spent += t - arrival[queue[k]]
                mu = knob
                if gain > 0.0:
                    mu = knob * ((spent / budget + WARM) / (arrived + WARM)) ** gain
                taken = _choose(
                    t, free, nodes, held, plan_end, plan_node, plan_gpus, order, waiting,
                    expected, per_node, count, cost, mu, others, wide, work, planned, trial,
                    leave[leaving:],
                )  # fmt: skip
                waiting -= taken
                for k in range(waiting):
                    queue[k] = order[k]
                for k in range(leaving, leaving + taken):
                    start[leave[k]] = t
                leaving += taken

        for k in range(leaving):
            j = leave[k]
            left[j] = 1
            waited += start[j] - arrival[j]
            if expect_kind == LEARNED:
                e = start[j] + run[j]
                p = away_last
                while p > away_first and away_end[p - 1] > e:
                    away_end[p] = away_end[p - 1]
                    away_job[p] = away_job[p - 1]
                    p -= 1
                away_end[p] = e
                away_job[p] = j
                away_last += 1

        # starts
        stays = 0
        stopped = False
        for k in range(waiting):
            j = queue[k]
            if stopped or not _place(free, nodes, per_node[j], count[j], chosen):
                queue[stays] = j
                stays += 1
                stopped = blocking
                continue
            start[j] = t
            waited += t - arrival[j]
            e = t + run[j]
            for c in range(count[j]):
                free[chosen[c]] -= per_node[j]
                p = held
                while p > 0 and end[p - 1] > e:
                    end[p] = end[p - 1]
                    piece_node[p] = piece_node[p - 1]
                    piece_gpus[p] = piece_gpus[p - 1]
                    piece_job[p] = piece_job[p - 1]
                    p -= 1
                end[p] = e
                piece_node[p] = chosen[c]
                piece_gpus[p] = per_node[j]
                piece_job[p] = j
                held += 1
        waiting = stays

        # the next moment at which anything can change
        coming = np.inf
        if held > 0:
            coming = end[0]
        if arrived < total:
            coming = min(coming, arrival[arrived])
        if rule != STAYS or waiting > 0:
            for k in range(waiting):
                limit = min(patience[queue[k]], must_leave_by[queue[k]])
                if limit > t:
                    coming = min(coming, limit)
        if coming == np.inf:
            return
        t = coming


loop = compiled(_loop, _place=_place, _choose=_choose)
