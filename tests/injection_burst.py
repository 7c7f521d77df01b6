"""The ``burst run`` processes of an injection, and the act at which one is killed.

Each is the command line's own ``burst run``, in a forked child, so that SIGKILL is SIGKILL.
"""

import os
import signal

import hpcscale.cli.burst as burst_cli
from hpcscale.lab import _nsinit

PR_SET_PDEATHSIG = 1


class Bursts:
    """Those of one lab."""

    def __init__(self, policy):
        self.policy = policy
        self.children = []

    def start(self, state, kill=""):
        """``hpcscale burst run --wait`` in a child of its own; its pid."""
        mine = os.getpid()
        pid = os.fork()
        if pid:
            self.children.append(pid)
            return pid
        try:
            die_with_parent(mine, signal.SIGKILL)
            os.setsid()
            log = os.open(state / "burst.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["HPCSCALE_STATE_DIR"] = str(state)
            if kill:
                arm(kill)
            burst_cli.POLL_S = 0.5
            burst_cli.run.main(["--policy", str(self.policy), "--wait"], standalone_mode=False)
        except BaseException as exc:  # noqa: BLE001 # a child never goes back into the parent's code
            os.write(2, f"{type(exc).__name__}: {exc}\n".encode())
        os._exit(0)

    def ended(self, pid):
        """Its wait status once it has ended, else None."""
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            self.children.remove(pid)
        return status if done else None

    def end(self):
        for pid in list(self.children):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.children.remove(pid)


def die_with_parent(parent, number):
    """This process gets a signal when its parent ends, however that ends (prctl(2))."""
    _nsinit._check(_nsinit._libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), number)


def arm(kill):
    """In this process: SIGKILL before or after the first act of that name."""
    from hpcscale.burst import handover
    from hpcscale.burst.moves import Moves
    from hpcscale.slurm.cli import CliClient

    act, _, when = kill.rpartition(".")

    def put(where, name, chosen=lambda *_: True):
        original = getattr(where, name)

        def wrapped(*args, **kw):
            mine = chosen(args, kw)
            if mine and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kw)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(where, name, wrapped)

    match act:
        case "fence":
            put(CliClient, "update", lambda args, _: "ExcNodeList" in args[2])
        case "sbatch":
            put(CliClient, "sbatch")
        case "claim":
            put(handover, "take")
        case "decide":
            put(handover, "decide")
        case "cancel":
            put(CliClient, "cancel")
        case _:
            step = act.removeprefix("save ")
            put(Moves, "save", lambda _, kw: kw.get("step") == step)
