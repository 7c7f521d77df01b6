"""What must hold at the end of a simulation, after all faults have ended."""

from collections import Counter
from decimal import Decimal

from sim_faults import CLOUD
from sim_site import ALIVE

from hpcscale.burst.moves import Moves
from hpcscale.burst.reap import reap
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
        origin = self._origin_job()
        if origin is not None and origin.state in ALIVE and self._cancel_forgotten():
            self.counts["end: Slurm forgot its user's cancel"] += 1
            return
        if origin is not None and origin.state in ALIVE:
            raise ViolationError(f"lost: the on-prem job is {origin.state} for ever")
        for job in self.sim[CLOUD].jobs.values():
            if job.state in ALIVE and submission_of(job.comment) is not None:
                raise ViolationError(f"orphan: cloud job {job.number} is {job.state}")
        if self.done:
            end = f"done.{self.done[-1][0]}"
        elif self.cancelled_by_user:
            end = "cancelled by its user"
        elif 97 in self.exits:
            end = "failed, and told: no claim could be made on a full disk"
        elif self.begun or self.claimed:
            end = "ended by a fault after its start"
        else:
            raise ViolationError("lost: nobody has started it")
        self.counts[f"end: {end}"] += 1
        self._judge_money()

    def _cancel_forgotten(self):
        """An acknowledged scancel of its user: the job is back, and he has to cancel it again."""
        return self.cancelled_by_user and self.counts["fault.onprem_crash"] and not self.begun

    @property
    def claimed(self):
        """Whether a script has won its claim: it has started, and was ended before it could say."""
        return any(
            node[0].decode().partition(" ")[0] in path
            for sim in self.sim.values()
            for path, node in sim.files.files.items()
            if "/claims/rsimulation." in path and not path.endswith(".tmp")
        )

    def _judge_money(self):
        """Each cloud job that Slurm ever took belongs to one move, and so to one decision."""
        owners = Counter()
        for ledger in self._led():
            moves = Moves(ledger).of_run(self.job.run_id)
            decided = len(ledger.decisions(self.job.run_id))
            if decided != len(moves):
                raise ViolationError(f"money: {len(moves)} moves of {decided} decisions")
            for attempt in ledger.all_attempts(CLOUD):
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
