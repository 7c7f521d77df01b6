"""The claims of an array as a model, explored in every order of its steps.

An array of two elements on-prem, a handover that wants the whole of it, and the same array in the
cloud. Each element takes the array's claim (its own id there lets every element pass), then its own.
The handover takes the array's claim, opens, and may take back until an element in the cloud has
taken the cloud array's own claim. Crashes are steps that are never taken; controllers forget starts.

A second handover wants element 1 alone: it takes the array's claim for the array itself, as an
element does, then the element's; in the cloud that element begins by it.

It is a model of the rules, not of the code; ``test_claims.py`` runs the code.
"""

from typing import NamedTuple

import pytest


class Side(NamedTuple):
    """One site: the array's log, the elements' logs, what each element does."""

    whole: tuple = ()  # owners: "self", "other"
    own: tuple = ((), ())  # restart counts of each element's starts
    jobs: tuple = ("pending", "pending")  # pending, whole, user, done
    restart: tuple = (0, 0)


class State(NamedTuple):
    onprem: Side = Side()
    cloud: Side = Side(jobs=("gate", "gate"))
    step: str = "claiming"  # claiming, opening, opened, ending, failed, withdrawn
    revoked: bool = False
    opened: bool = False
    began: tuple = ((), ())  # sites at which each element's user code has begun
    alone: str = "none"  # the move of element 1 alone: none, array, has, opened, back, began
    alone_revoked: bool = False


def put(values, k, value):
    return tuple(value if n == k else v for n, v in enumerate(values))


def owner(side, revoked):
    """Who has the array: "self", "other" or nobody."""
    for holder in side.whole:
        if holder == "self" or not revoked:
            return holder
    return ""


def element(s, name, k, rules):
    side = getattr(s, name)
    job = side.jobs[k]
    revoked = s.revoked if name == "onprem" else False

    def becomes(job, **changes):
        return s._replace(**{name: side._replace(jobs=put(side.jobs, k, job), **changes)})

    if job == "gate" and s.opened:
        yield becomes("pending")
    if job == "pending":
        has = owner(side, revoked)
        if has == "self" or (not has and not rules["whole"]):
            yield becomes("whole")
        elif not has:
            yield becomes("whole", whole=(*side.whole, "self"))
    taken = k == 1 and name == "onprem" and "alone" in side.own[k] and not s.alone_revoked
    if job == "whole" and side.restart[k] not in side.own[k] and not taken:
        after = becomes("user", own=put(side.own, k, (*side.own[k], side.restart[k])))
        yield after._replace(began=put(s.began, k, (*s.began[k], name)))
    if job == "user":
        yield becomes("done")
        if side.restart[k] == 0:
            yield becomes("pending", restart=put(side.restart, k, 1))
            yield becomes("pending")  # a controller forgets the start


def alone(s, rules):
    """The handover of element 1 by itself, with its cloud attempt."""
    side = s.onprem
    if s.alone == "none":
        has = owner(side, s.revoked)
        if has == "self" or (not has and not rules["array"]):
            yield s._replace(alone="array")
        elif not has:
            yield s._replace(onprem=side._replace(whole=(*side.whole, "self")), alone="array")
    if s.alone == "array" and side.restart[1] == 0 and not side.own[1]:
        # a start that is over would let it pass too, and its two starts be no fault
        own = put(side.own, 1, (*side.own[1], "alone"))
        yield s._replace(onprem=side._replace(own=own), alone="has")
    if s.alone == "has":
        yield s._replace(alone="opened")
        yield s._replace(alone="back", alone_revoked=True)
    if s.alone == "opened":
        yield s._replace(alone="began", began=put(s.began, 1, (*s.began[1], "alone")))
        yield s._replace(alone="back", alone_revoked=True)  # it died before; its own claim is taken


def handover(s):
    if s.step == "claiming":
        has = owner(s.onprem, s.revoked)
        if has == "self":
            yield s._replace(step="withdrawn")
        elif has == "other":
            yield s._replace(step="opening")
        else:
            whole = (*s.onprem.whole, "other")
            yield s._replace(onprem=s.onprem._replace(whole=whole))  # done, and not noted
            yield s._replace(onprem=s.onprem._replace(whole=whole), step="opening")
        yield s._replace(step="ending")
    if s.step == "opening":
        yield s._replace(opened=True)
        yield s._replace(opened=True, step="opened")
        if not s.opened:
            yield s._replace(step="ending")
    if s.step in {"opened", "ending"} and s.opened and owner(s.cloud, False) != "self":
        closed = s.cloud._replace(whole=("other",))
        yield s._replace(cloud=closed, revoked=True, step="failed")
    if s.step == "ending" and not s.opened:
        dead = s.cloud._replace(jobs=("dead", "dead"))
        yield s._replace(cloud=dead, revoked=True, step="failed")


def steps(s, rules):
    for k in (0, 1):
        yield from element(s, "onprem", k, rules)
        yield from element(s, "cloud", k, rules)
    yield from handover(s)
    if rules["alone"]:
        yield from alone(s, rules)


def explore(**off):
    rules = {"whole": True, "array": True, "alone": True} | off
    known, queue, back = {State()}, [State()], {}
    while queue:
        state = queue.pop()
        for after in steps(state, rules):
            for sites in after.began:
                if len(set(sites)) > 1:
                    return len(known), f"an element began at both sites: {after}", 0
            back.setdefault(after, []).append(state)
            if after not in known:
                known.add(after)
                queue.append(after)
    # from each state both elements can still come to user code somewhere
    reach = {s for s in known if all(s.began)}
    queue = list(reach)
    while queue:
        for before in back.get(queue.pop(), ()):
            if before not in reach:
                reach.add(before)
                queue.append(before)
    return len(known), None, len(known - reach)


def test_no_element_begins_at_both_sites_and_none_is_lost():
    states, fault, lost = explore()
    assert fault is None
    assert lost == 0
    assert states > 200


def test_without_moves_of_single_elements():
    states, fault, lost = explore(alone=False)
    assert (fault, lost) == (None, 0)
    assert states > 200


@pytest.mark.parametrize("rule", ["whole", "array"])
def test_the_model_can_fail(rule):
    """Without the array's own claim: one element begins at home while the handover has the rest.

    Or an element moves by itself, and again with the whole array.
    """
    _, fault, _ = explore(**{rule: False})
    assert fault is not None
