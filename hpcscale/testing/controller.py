"""The controller: which faked job runs when and where, and what a test may do to it."""

from hpcscale.clock import ManualClock
from hpcscale.testing.jobs import FakeJob
from hpcscale.units import expand_hostlist

SAVE_PERIOD_S = 5  # slurmctld writes its state about this often


class FakeController:
    """Jobs, nodes and time: what slurmctld keeps.

    Args:
        nodes: of partition ``gpu``, named ``node1`` and on.
        gpus: of each node, type h100.
        boot_s: seconds that a job's nodes boot for, in state CONFIGURING.
        requeue_delay_s: seconds before a requeued job may start again (Slurm's own: 121).
        clock: moves when it is told to.
        user: who owns all jobs.
        max_jobs: slurm.conf MaxJobCount.
        cloud_nodes: of partition ``cloud``, named ``burst1`` and on; 0: there is none.
    """

    def __init__(
        self,
        *,
        nodes: int = 4,
        gpus: int = 4,
        boot_s: int = 0,
        requeue_delay_s: int = 6,
        clock: ManualClock | None = None,
        user: str = "root",
        max_jobs: int = 10_000,
        cloud_nodes: int = 0,
    ) -> None:
        self.max_jobs = max_jobs
        self.clock = clock or ManualClock()
        self.node_names = [f"node{i}" for i in range(1, nodes + 1)]
        self.partitions = {"gpu": self.node_names}
        if cloud_nodes:
            self.partitions["cloud"] = [f"burst{i}" for i in range(1, cloud_nodes + 1)]
        self.refuses_updates = ""  # Slurm's words against a change of partition
        self.gpus = gpus
        self.boot_s = boot_s
        self.requeue_delay_s = requeue_delay_s
        self.user = user
        self.calls: list[tuple[str, ...]] = []
        self.jobs: dict[int, FakeJob] = {}
        self._next = 1
        self.down = False
        self.hanging = False
        self.down_nodes: set[str] = set()
        self.lose_submit = False
        self._saved = (self.now(), self._next, self._copied())

    # ---- what a test does to it ----

    def advance(self, seconds: float) -> None:
        """Let time pass, second by second, with what happens in it."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
            self.tick()

    def stop(self) -> None:
        """The controller is down: commands say so at once."""
        self.down = True

    def hang(self) -> None:
        """The controller takes requests and never answers."""
        self.hanging = True

    def resume(self) -> None:
        """The controller answers again."""
        self.down = self.hanging = False

    def lose_next_submit_answer(self) -> None:
        """The next sbatch submits its job, but its answer gets lost."""
        self.lose_submit = True

    def fail_node(self, node: str, *, requeue: bool = True) -> None:
        """A node is down: its jobs are requeued, or end NODE_FAIL."""
        self.down_nodes.add(node)
        now = self.now()
        for job in self.jobs.values():
            if node not in job.nodes or job.state not in {"RUNNING", "CONFIGURING"}:
                continue
            if requeue:
                self._requeue(job)
            else:
                job.state, job.reason, job.ends = "NODE_FAIL", "NodeDown", now

    def _requeue(self, job: FakeJob) -> None:
        now = self.now()
        job.state, job.reason, job.restarts = "PENDING", "BeginTime", job.restarts + 1
        job.submitted, job.eligible = now, now + self.requeue_delay_s
        job.nodes, job.started, job.ends = [], None, None

    def crash(self) -> None:
        """Kill and restart the controller: what it had not saved is forgotten, ids are reused."""
        _, self._next, jobs = self._saved
        self.jobs = self._copied(jobs)

    def _copied(self, jobs: dict[int, FakeJob] | None = None) -> dict[int, FakeJob]:
        those = self.jobs if jobs is None else jobs
        return {number: job.copied() for number, job in those.items()}

    # ---- time and scheduling ----

    def now(self) -> int:
        """Epoch seconds by the controller's clock."""
        return int(self.clock.now().timestamp())

    def tick(self) -> None:
        """Do what is due now: nodes that are up, ends, starts."""
        now = self.now()
        for job in list(self.jobs.values()):
            if job.state == "CONFIGURING" and job.started is not None and now >= job.started:
                job.state = "RUNNING"
            if job.state == "RUNNING" and job.ends is not None and now >= job.ends:
                self._end(job)
        self._schedule(now)
        if now - self._saved[0] >= SAVE_PERIOD_S:
            self._saved = (now, self._next, self._copied())

    def _end(self, job: FakeJob) -> None:
        if job.runtime_s > job.limit_s:
            job.state, job.reason, job.status = "TIMEOUT", "TimeLimit", 0
        elif job.result:
            job.state, job.reason, job.status = "FAILED", "NonZeroExitCode", job.result << 8
        else:
            job.state, job.reason, job.status = "COMPLETED", "None", 0

    def _busy(self) -> dict[str, int]:
        """GPUs taken on each node; a job without GPUs takes all."""
        busy = dict.fromkeys((n for nodes in self.partitions.values() for n in nodes), 0)
        for job in self.jobs.values():
            if job.state in {"RUNNING", "CONFIGURING"}:
                for node in job.nodes:
                    busy[node] += job.gpus_per_node or max(1, self.gpus)
        return busy

    def _term(self, job: FakeJob, term: str) -> str:
        """What one term of a dependency says now: ``unfulfilled``, ``failed``, or empty (met)."""
        kind, _, base = term.partition(":")
        if kind == "singleton":
            same = [
                j
                for j in self.jobs.values()
                if (j.name, j.user) == (job.name, job.user)
                and j.base != job.base
                and (j.state in {"RUNNING", "CONFIGURING"}
                     or (j.state == "PENDING" and j.base < job.base))
            ]  # fmt: skip
            return "unfulfilled" if same else ""
        ends = [j.state for j in self.jobs.values() if j.base == int(base)]
        if any(state in {"PENDING", "RUNNING", "CONFIGURING"} for state in ends):
            return "unfulfilled"
        good = bool(ends) and all(state == "COMPLETED" for state in ends)
        met = {"afterany": True, "afterok": good, "afternotok": bool(ends) and not good}
        return "" if met[kind] else "failed"

    def _dependency(self, job: FakeJob) -> dict[str, str]:
        """The terms that are not met, and what each says; Slurm forgets those that are."""
        terms = [t for t in job.dependency.split(",") if t]
        return {term: said for term in terms if (said := self._term(job, term))}

    def _shown_dependency(self, job: FakeJob) -> str:
        return ",".join(f"{term}({said})" for term, said in self._dependency(job).items())

    def _schedule(self, now: int) -> None:
        blocked: set[str] = set()
        for job in sorted(self.jobs.values(), key=lambda j: j.number):
            while job.state == "PENDING" and not job.completing:
                if job.held:
                    if not job.reason.endswith("requeued held"):  # Slurm goes on saying why
                        job.reason = "JobHeldUser"
                    break
                if job.dependency:
                    unmet = self._dependency(job)
                    if unmet:
                        never = "failed" in unmet.values()
                        job.reason = "DependencyNeverSatisfied" if never else "Dependency"
                        break
                    job.dependency, job.eligible = "", max(job.eligible, now)
                if now < job.eligible:
                    job.reason = "BeginTime"
                    break
                excluded = set(expand_hostlist(job.exclude))
                allowed = [n for n in self.partitions[job.partition] if n not in excluded]
                if len(allowed) < job.nodes_wanted:
                    job.reason = "BadConstraints" if excluded else "PartitionConfig"
                    break
                if job.partition in blocked:
                    job.reason = "Priority"
                    break
                busy = self._busy()
                need = job.gpus_per_node or max(1, self.gpus)
                up = [n for n in allowed if n not in self.down_nodes]
                free = [n for n in up if busy[n] + need <= max(1, self.gpus)]
                running = sum(
                    1
                    for j in self.jobs.values()
                    if j.base == job.base and j.state in {"RUNNING", "CONFIGURING"}
                )
                if job.throttle and job.tasks and running >= job.throttle:
                    job.reason = "JobArrayTaskLimit"
                    break
                if len(free) < job.nodes_wanted:
                    job.reason = "Resources"
                    blocked.add(job.partition)
                    break
                self._start(job, free[: job.nodes_wanted], now)

    def _start(self, job: FakeJob, nodes: list[str], now: int) -> None:
        element = job
        if job.tasks:
            task = job.tasks.pop(0)
            number = job.number
            if job.tasks:  # the last element keeps the record, as in Slurm
                number = self._next
                self._next += 1
            element = job.copied()
            element.number, element.task, element.tasks = number, task, []
            if number == job.number:
                job.state = "STARTED"  # leaves the loop: its record is the element's now
            self.jobs[number] = element
        element.nodes, element.reason = nodes, "None"
        element.started = now + self.boot_s
        element.ends = element.started + min(element.runtime_s, element.limit_s)
        element.state = "CONFIGURING" if self.boot_s else "RUNNING"
