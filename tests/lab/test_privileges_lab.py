"""What docs/privileges.md says of an owner, another user and an operator, tried on real Slurm."""

import pytest
from lab_helpers import until

pytestmark = pytest.mark.slow  # a lab with accounting of its own

OWNER, OTHER, OPERATOR = "nobody", "bin", "daemon"
UID = {OWNER: 65534, OTHER: 2, OPERATOR: 1}


def update(**fields):
    return lambda job: [
        "scontrol",
        "update",
        f"JobId={job}",
        *(f"{k}={v}" for k, v in fields.items()),
    ]


ACTS = {
    "fence": update(ExcNodeList="onprem[1-2]"),
    "lift": update(ExcNodeList=""),
    "comment": update(Comment="why"),
    "stand-in": update(TimeLimit="1", NumNodes="1", NumTasks="1", NumCPUs="1"),
    "partition": update(Partition="urgent"),
    "priority": update(Priority="99999"),
    "nice": update(Nice="-10"),
    "cancel": lambda job: ["scancel", job],
    "drain": lambda _: ["scontrol", "update", "NodeName=onprem1", "State=DRAIN", "Reason=x"],
    "reserve": lambda _: [
        "scontrol", "create", "reservation", "ReservationName=r", "Users=root",
        "StartTime=now+1hour", "Duration=5", "Nodes=onprem2",
    ],
}  # fmt: skip
NOT_FOR_OWNERS = {"priority", "nice", "drain", "reserve"}
NOT_FOR_OPERATORS = {"drain"}


def test_who_may_do_what_burst_does(lab_factory):
    lab = lab_factory(nodes=2, accounting=True)
    site = lab.site("lab-onprem")
    for path in (lab.state.directory, site.paths.root, site.paths.etc, site.paths.run):
        path.chmod(0o755)
    add = ["sacctmgr", "-i", "add", "user"]
    site.exec([*add, OWNER, "account=root"], check=True)
    site.exec([*add, OPERATOR, "account=root", "AdminLevel=Operator"], check=True)

    def as_user(user, argv, **kw):
        uid = UID[user]
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        return site.exec([*become, *argv], **kw)

    filler = ["sbatch", "--parsable", "-N2", "--exclusive", "--time=9"]
    full = site.exec(filler, stdin="#!/bin/sh\nsleep 600\n", check=True).stdout.strip()
    until(
        lambda: site.exec(["squeue", "-h", "-t", "R", "-j", full]).stdout, 20, "the queue is full"
    )
    submit = ["sbatch", "--parsable", "--chdir=/tmp", "--output=/dev/null", "--time=5"]
    until(
        lambda: as_user(OWNER, submit, stdin="#!/bin/sh\n").returncode == 0,
        20,
        "the owner is known",
    )
    may = {}
    for act, argv in ACTS.items():
        for user in UID:
            job = as_user(OWNER, submit, stdin="#!/bin/sh\nsleep 9\n", check=True).stdout.strip()
            done = as_user(user, argv(job))
            may[act, user] = done.returncode == 0 and "error" not in done.stderr.lower()
            site.exec(["scancel", job])
            if act == "reserve" and may[act, user]:
                site.exec(["scontrol", "delete", "ReservationName=r"])
    assert may == {
        **{(act, OWNER): act not in NOT_FOR_OWNERS for act in ACTS},
        **{(act, OTHER): False for act in ACTS},
        **{(act, OPERATOR): act not in NOT_FOR_OPERATORS for act in ACTS},
    }
