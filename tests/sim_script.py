"""The scripts' halves of the handover, act by act: ``templates/_lib/claim.sh.j2`` in Python.

``tests/unit/test_sim_site.py`` runs them against the rendered shell code.
"""

import json


class Job:
    """One start of a job's script on its nodes.

    Args:
        files: of its site, as its nodes see them.
        submission: its submission id.
        run_dir: its run's directory.
        number: Slurm's id, and ``restart`` its restart count.
        task: which element of an array; None: it is none.
        lease_s: seconds at the gate; None: it has no gate.
        work_s: how long the command runs, and ``code`` what it ends with.
        requeue: asks Slurm to run the job again; whether it does, None: no answer.
        left_out: ``claim`` or ``gate``, to see that it is found.
    """

    def __init__(
        self, files, *, submission, run_dir, number, restart, lease_s, work_s, requeue,
        task=None, code=0, left_out=(),
    ):  # fmt: skip
        self.files = files
        self.submission = submission
        self.run_dir = run_dir
        self.number = number
        self.restart = restart
        self.task = task
        self.code = code
        self.suffix = "" if task is None else f".task{task}"
        self.lease_s = lease_s
        self.work_s = work_s
        self.requeue = requeue
        self.left_out = left_out
        self.running = False  # its command
        self.exit_code = None
        self.steps = self._script()
        self.wake = 0.0
        self.killed_at = None

    def _report(self, kind, at, **data):
        path = f"{self.run_dir}/events/{self.submission}{self.suffix}.{self.restart}.{kind}"
        event = {"event": kind, "job": str(self.number), "restart": self.restart, "time": at}
        made = self.files.mkdir(path.rpartition("/")[0]) and self.files.write(
            f"{path}.tmp", json.dumps({**event, **data}).encode()
        )
        return made and self.files.move(f"{path}.tmp", path)

    def _exit(self, code, now, *, requeued=False):
        self._report("ended", now, exit_code=code, requeued=requeued)
        self.exit_code = code

    def _script(self):
        """Yields seconds to sleep; takes the time."""
        files = self.files
        now = yield 0
        if self.lease_s is not None and "gate" not in self.left_out:
            path = f"{self.run_dir}/decision.{self.submission}"
            mine = f"{path}.{self.number}.{self.restart}.tmp"
            left = self.lease_s
            self._report("gated", now)
            now = yield 0
            while not (word := files.read(path)):
                left -= 1
                now = yield 1
                if left <= 0:
                    made = files.write(mine, b"expired\n")
                    now = yield 0
                    if made:
                        files.link(mine, path)
                        now = yield 0
                    files.remove(mine)
            if word.decode().strip() != "opened":
                self._exit(98, now)
                return
            now = yield 0
        claimed = 0
        if "claim" not in self.left_out:
            if self.task is not None:
                claimed = yield from self._take("", "-")
            if not claimed:
                claimed = yield from self._take(self.suffix, self.restart)
            now = yield 0
        if claimed == 97:
            self._exit(97, now)
            return
        if claimed == 2:
            outcome = files.read(f"{self._log(self.suffix)}.outcome")
            if outcome:
                self._exit(int(outcome), now)
                return
            now = yield 0
        if claimed:
            again = (claimed == 1 or self.lease_s is None) and self.restart < 20
            tries, done = 60, again and self.requeue(self)
            while done is None and tries:  # no answer
                tries -= 1
                now = yield 5
                done = self.requeue(self)
            self._exit(98, now, requeued=bool(done))
            return
        now = yield 0
        self._report("started", now)
        now = yield 0
        self.running = True
        now = yield self.work_s
        self.running = False
        self._exit(self.code, now)

    def _log(self, suffix):
        top, _, run = self.run_dir.rpartition("/runs/")
        return f"{top}/claims/{run}.{self.submission}{suffix}"

    def _take(self, suffix, restart):
        """A full disk is waited for, three minutes."""
        for _ in range(36):
            claimed = yield from self._claim(suffix, restart)
            if claimed != 97:
                return claimed
            yield 5
        return (yield from self._claim(suffix, restart))

    def _claim(self, suffix, restart):
        """0 when it is ours; 1, 2 and 97 as in the shell. ``-``: an array's, any element's."""
        files, log = self.files, self._log(suffix)
        claims = log.rpartition("/")[0]
        mine = f"{log}.{self.number}.{self.restart}.{id(self)}.tmp"
        if not files.mkdir(claims) or not files.write(
            mine, f"{self.submission} {restart}\n".encode()
        ):
            files.remove(mine)
            return 97
        claimed = entry = 0
        while True:
            yield 0
            files.link(mine, f"{log}.{entry}")
            yield 0
            if files.same(mine, f"{log}.{entry}"):
                break
            text = files.read(f"{log}.{entry}")
            if text is None:
                claimed = 97
                break
            owner, _, start = text.decode().strip().partition(" ")
            if owner == self.submission:
                if restart == "-":
                    break
                if not int(start) < restart:
                    claimed = 1
                    break
            else:
                yield 0
                if files.read(f"{claims}/{owner}.revoked") is None:
                    claimed = 2
                    break
            entry += 1
        files.remove(mine)
        return claimed
