"""What must hold at the end of a simulation, after all faults have ended."""

from collections import Counter
from decimal import Decimal

from sim_faults import CLOUD, ONPREM
from sim_site import ALIVE

from hpcscale.burst.moves import Moves, Step
from hpcscale.burst.reap import reap
from hpcscale.cost import spent_usd
from hpcscale.ledger import Role
from hpcscale.observe import observe
from hpcscale.verify import submission_of


class ViolationError(AssertionError):
    """An invariant does not hold."""


class Judge:
    """Looks at a world that has come to rest; ``World`` is one."""

    def _judge(self):
        for ledger in self._led():
            if moves := Moves(ledger).unsettled():
                raise ViolationError(f"a move does not settle: {moves[0].step} {moves[0].message}")
            _, problems = reap(ledger, self, [CLOUD])
            if problems:
                raise ViolationError(f"reap: {problems[0]}")
            observe(ledger, self)  # as `hpcscale status` does
        alive = [j for j in self._origin_records() if j.state in ALIVE]
        if alive and self._cancel_forgotten():
            self.counts["end: Slurm forgot its user's cancel"] += 1
            return
        if alive:
            raise ViolationError(f"lost: the on-prem job is {alive[0].state} for ever")
        for job in self.sim[CLOUD].jobs.values():
            if job.state in ALIVE and submission_of(job.comment) is not None:
                raise ViolationError(f"orphan: cloud job {job.number} is {job.state}")
        for task in self.tasks:
            self.counts[f"end: {self._end_of(task)}"] += 1
        self._judge_behind()
        self._judge_money()
        if self.began_in is not None:
            self._judge_price()

    def _end_of(self, task):
        done = [site for site, _, k, _ in self.done if k == task]
        if done:
            return f"done.{done[-1]}"
        if task in self.failed:
            return "its command failed"
        if self.cancelled_by_user or task in self.cancelled_tasks:
            return "cancelled by its user"
        if 97 in self.exits:
            return "failed, and told: no claim could be made on a full disk"
        if any(k == task for _, _, k, _, _ in self.begun) or self._claimed(task):
            return "ended by a fault after its start"
        raise ViolationError(f"lost: nobody has started {'it' if task is None else task}")

    def _cancel_forgotten(self):
        """An acknowledged scancel of its user: the job is back, and he has to cancel it again."""
        cancelled = self.cancelled_by_user or self.cancelled_tasks
        return cancelled and self.counts["fault.onprem_crash"] and not self.begun

    def _claimed(self, task):
        """Whether a script has won its claim: it has started, and was ended before it could say."""
        logs = ["."] if task is None else [".", f".task{task}."]
        return any(
            node[0].startswith(b"hs-")
            and any(f".{node[0].decode().partition(' ')[0]}{log}" in path for log in logs)
            for sim in self.sim.values()
            for path, node in sim.files.files.items()
            if "/claims/" in path and not path.endswith((".tmp", ".fence", ".outcome"))
        )

    def _judge_price(self):
        """Its hours are counted at the price of the partition that it began in."""
        partition, restart = self.began_in
        self.counts[f"began in partition {partition}"] += 1
        if self._origin_job().restarts > restart:
            return  # Slurm has started it again since, wherever it was by then
        moved = [ledger for ledger in self._led() if Moves(ledger).of_run(self.job.run_id)]
        for ledger in moved:
            done = Moves(ledger).of_run(self.job.run_id)[-1]
            if len(moved) > 1 and not (done.same_job and done.step is Step.DONE):
                continue  # the other ledger moved it
            if done.step is Step.DONE and self.counts["fault.onprem_crash"]:
                continue  # its controller may have forgotten the end that was told, and begun it again
            at = self.sites[ONPREM].gpu_hour_usd(partition)
            attempt = ledger.attempt(self.job.submission_id)
            counted = attempt.gpu_hour_usd
            for event in ledger.events(self.job.run_id, "attempt.repriced")[:1]:
                first_usd = spent_usd(attempt.gpus, float(event.data["seconds"]), at)
                if Decimal(event.data["usd"]) == first_usd:  # its first start ended before that
                    counted = at
            if at != counted:
                raise ViolationError(
                    f"money: it began in partition {partition} at {at}, counted at {counted}"
                )

    def _judge_money(self):
        """Each cloud job that Slurm ever took belongs to one move, and so to one decision."""
        owners = Counter()
        for ledger in self._led():
            every = Moves(ledger).all()
            # an element that moves alone has a run of its own
            for run_id in {self.job.run_id, *(m.run_id for m in every)}:
                moves = [m for m in every if m.run_id == run_id]
                decided = len(ledger.decisions(run_id))
                if decided != len(moves):
                    raise ViolationError(f"money: {len(moves)} moves of {decided} decisions")
            for attempt in ledger.all_attempts(CLOUD):
                moves = [m for m in every if m.run_id == attempt.run_id]
                owner = [m for m in moves if m.after_number < attempt.number][-1:]
                if attempt.role is Role.BURST and owner:
                    owners[attempt.submission_id] += 1
                if attempt.ended and attempt.start_time and attempt.cost_usd is None:
                    raise ViolationError(f"money: {attempt.ref} has no cost")
                self.counts["cloud_usd"] += attempt.cost_usd or Decimal(0)
        for submission in self.accepted:
            self.counts["cloud jobs"] += 1
            if owners[submission] != 1:
                raise ViolationError(f"money: cloud job of {owners[submission]} decisions")
