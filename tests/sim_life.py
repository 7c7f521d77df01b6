"""Time in a simulation: controllers do what is due, and scripts of jobs live, begin and end."""

import contextlib

from sim_faults import CLOUD, ONPREM
from sim_judge import ViolationError
from sim_kinds import POLICY
from sim_script import Job

from hpcscale.errors import NotFoundError
from hpcscale.verify import submission_of

KILL_WAIT_S = 2.0


class Life:
    """What no process does; ``World`` is one."""

    # ---- time, controllers and scripts ----

    def pass_time(self, seconds):
        self.now_s += seconds
        for sim in self.sim.values():
            sim.clock.advance(seconds)
            if not sim.silent:
                sim.tick()
        self._sync()

    def _sync(self):
        """Start scripts of jobs that run, end those that Slurm does not have any more."""
        wanted = {}
        for name, sim in self.sim.items():
            for job in sim.jobs.values():
                submission = submission_of(job.comment)
                if submission is None:
                    continue
                if name == CLOUD and submission not in self.accepted:
                    self.accepted[submission] = job.number
                if job.state == "RUNNING":
                    wanted[name, submission, job.task, job.restarts, job.started] = job
        here = {script.key for script in self.scripts}
        for key, job in wanted.items():
            if key not in self.known:
                self.known.add(key)
                self._start_script(key, job)
            elif key not in here:
                # its controller has forgotten its end, and hears that no node has it: run again
                sim = self.sim[key[0]]
                sim.plain(["scontrol", "requeue", sim.of(job)])
        strays = {ONPREM: False, CLOUD: False}
        for script in list(self.scripts):
            if script.key in wanted:
                continue
            if script.killed_at is None:
                script.killed_at = self.now_s + self.random.random() * KILL_WAIT_S
            elif self.now_s >= script.killed_at:
                self.scripts.remove(script)
                if script.running:
                    self.counts["killed while running"] += 1
                continue
            strays[script.site] = True
        self._show_completing()
        for name, sim in self.sim.items():
            sim.frozen = strays[name] and sim.frozen
        if self.behind:
            self._look_behind()

    def _show_completing(self):
        """A job that was requeued is COMPLETING until its processes are gone (seen on 22.05)."""
        alive = {(s.site, s.submission, s.task): s.restart for s in self.scripts}
        for name, sim in self.sim.items():
            for job in sim.jobs.values():
                restart = alive.get((name, submission_of(job.comment), job.task))
                completing = restart is not None and job.restarts > restart
                if job.completing != completing:
                    job.completing = completing
                    sim.touched()

    def _start_script(self, key, job):
        name, submission, task, restart, _ = key
        # an on-prem job has no gate; what the cloud script holds was rendered with one
        lease_s = POLICY.lease_s if name == CLOUD else None
        script = Job(
            self.sim[name].files,
            submission=submission,
            run_dir=self._run_dir(submission),
            number=self.sim[name].of(job),
            task=task,
            restart=restart,
            lease_s=lease_s,
            work_s=self.work_s,
            code=self.code,
            requeue=self._requeue,
            left_out=self.left_out,
        )
        script.key, script.site, script.wake = key, name, self.now_s
        next(script.steps)
        self.scripts.append(script)

    def _run_dir(self, submission):
        """As its ledger has it: an element that moves alone has a run of its own."""
        for ledger in self.ledgers:
            with contextlib.suppress(NotFoundError):
                return ledger.attempt(submission).run_dir
        raise AssertionError(f"{submission} is in no ledger")

    def _requeue(self, script):
        sim = self.sim[script.site]
        if sim.silent:
            return None
        done = sim.plain(["scontrol", "requeue", str(script.number)]).returncode == 0
        self._show_completing()
        return done

    def step_script(self, script, *, late=False):
        """Its next act; ``late``: at the time when it was due."""
        was = script.running
        try:
            wait = script.steps.send(self.sim[script.site].now())
        except StopIteration:
            self.scripts.remove(script)
            if was and script.exit_code == 0:
                self.good.add((script.site, script.task))
            if script.killed_at is not None:
                return  # too late for Slurm, which has ended it
            if was and script.exit_code == 0:
                self.done.append((script.site, script.submission, script.task, script.restart))
            elif was:
                self.failed.add(script.task)
            elif script.exit_code == 0:
                self._stood_in(script)
            self.exits.add(script.exit_code)
            self._finish(script)
            return
        script.wake = (max(script.wake, self.settled_s) if late else self.now_s) + wait
        if script.running and not was:
            self._began(script)

    def _stood_in(self, script):
        """It has told those behind it of a good end, as the cloud attempt's."""
        self.counts["stood in"] += 1
        if (CLOUD, script.task) not in self.good:
            raise ViolationError("too soon: a stand-in tells of a good end that was none")

    def _began(self, script):
        for site, submission, task, restart, other in self.begun:
            if task != script.task:
                continue
            if (submission, restart) == (script.submission, script.restart):
                raise ViolationError(f"double start: {site} {submission} restart {restart}")
            if other.running and other in self.scripts:
                raise ViolationError(f"double start: alive at {site} and {script.site}")
            if submission == script.submission:
                continue
            if site == CLOUD:
                raise ViolationError(f"double start: at {script.site} after {site}")
            # on-prem began before: over only when Slurm counts a later restart
            origin = self._origin_job(task)
            if origin is None or origin.restarts <= restart:
                raise ViolationError("double start: in the cloud after on-prem")
        entry = (script.site, script.submission, script.task, script.restart)
        self.begun.append((*entry, script))
        if self.within and script.site == ONPREM:
            self.began_in = (self._origin_job().partition, script.restart)
        self.trace.append(f"{self.now_s:7.1f} user code begins: {entry}")

    def _finish(self, script):
        """The node tells the controller that the script has ended."""
        name, submission, task, restart, started = script.key
        for job in self.sim[name].jobs.values():
            if (
                submission_of(job.comment) == submission
                and job.state == "RUNNING"
                and (job.task, job.restarts, job.started) == (task, restart, started)
            ):
                job.state = "COMPLETED" if script.exit_code == 0 else "FAILED"
                job.status = script.exit_code << 8
                job.reason = "None" if script.exit_code == 0 else "NonZeroExitCode"
                job.ends = self.sim[name].now()
                self.sim[name].touched()
