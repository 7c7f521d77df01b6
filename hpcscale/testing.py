"""``FakeSlurm``: a Slurm on a dictionary and a clock that moves when told, for fast tests.

It is a ``Transport``: ``CliClient(FakeSlurm())`` is a client. It passes the contract suite that
real Slurm passes (``tests/contract``). Slurm's commands are faked; everything else, files too, is
this machine's own. What it does not fake it refuses or has no way to ask for: het jobs,
accounting, preemption, dependencies, several partitions, node failures.

A job script is not executed: it lasts as long as its ``sleep N`` lines say and ends with its last
``exit N``. A node is given whole to a job that asks for no GPUs.
"""

import copy
import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpcscale.clock import ManualClock
from hpcscale.errors import InternalError, NotSentError, UnreachableError
from hpcscale.slurm.local import LocalTransport
from hpcscale.slurm.transport import DEFAULT_TIMEOUT_S, Completed
from hpcscale.units import (
    expand_hostlist,
    fold_hostlist,
    format_duration,
    parse_array,
    parse_duration_s,
)

COMMANDS = frozenset({"sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo", "sdiag"})
SAVE_PERIOD_S = 5  # slurmctld writes its state about this often
_LONG_OPTIONS = {
    "J": "job-name", "p": "partition", "N": "nodes", "t": "time", "o": "output", "e": "error",
    "x": "exclude", "a": "array", "G": "gpus", "n": "ntasks", "c": "cpus-per-task", "A": "account",
    "q": "qos", "D": "chdir",
}  # fmt: skip
_FLAGS = {"parsable", "exclusive", "requeue", "no-requeue", "hold", "test-only"}
_REFUSED_OPTIONS = {"dependency", "deadline", "begin", "constraint", "nodelist", "reservation"}
_DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"


@dataclass
class FakeJob:
    """One job, array element, or the pending rest of an array (``tasks`` then)."""

    number: int
    base: int
    task: int | None
    name: str
    user: str
    comment: str
    partition: str
    nodes_wanted: int
    gpus_per_node: int
    exclude: str
    limit_s: int
    runtime_s: int
    result: int
    submitted: int
    eligible: int
    tasks: list[int] = field(default_factory=list)
    throttle: int | None = None
    state: str = "PENDING"
    reason: str = "None"
    nodes: list[str] = field(default_factory=list)
    started: int | None = None
    ends: int | None = None
    status: int = 0  # wait status
    restarts: int = 0
    held: bool = False

    @property
    def shown_id(self) -> str:
        """Its id as squeue prints it."""
        if self.task is not None:
            return f"{self.base}_{self.task}"
        if self.tasks:
            limit = f"%{self.throttle}" if self.throttle else ""
            return f"{self.base}_[{_fold_tasks(self.tasks)}{limit}]"
        return str(self.base)


class FakeSlurm:
    """A site in memory.

    Args:
        nodes: of partition ``gpu``, named ``node1`` and on.
        gpus: of each node, type h100.
        boot_s: seconds that a job's nodes boot for, in state CONFIGURING.
        requeue_delay_s: seconds before a requeued job may start again (Slurm's own: 121).
        clock: moves when it is told to.
        user: who owns all jobs.
    """

    name = "fake Slurm"
    is_local = True

    def __init__(
        self,
        *,
        nodes: int = 4,
        gpus: int = 4,
        boot_s: int = 0,
        requeue_delay_s: int = 6,
        clock: ManualClock | None = None,
        user: str = "root",
    ) -> None:
        self.clock = clock or ManualClock()
        self.node_names = [f"node{i}" for i in range(1, nodes + 1)]
        self.gpus = gpus
        self.boot_s = boot_s
        self.requeue_delay_s = requeue_delay_s
        self.user = user
        self.calls: list[tuple[str, ...]] = []
        self.jobs: dict[int, FakeJob] = {}
        self._next = 1
        self._down = False
        self._hang = False
        self._lose_submit = False
        self._files = LocalTransport()
        self._saved = (self._now(), self._next, copy.deepcopy(self.jobs))

    # ---- what a test does to it ----

    def advance(self, seconds: float) -> None:
        """Let time pass, second by second, with what happens in it."""
        for _ in range(int(seconds)):
            self.clock.advance(1)
            self._tick()

    def stop(self) -> None:
        """The controller is down: commands say so at once."""
        self._down = True

    def hang(self) -> None:
        """The controller takes requests and never answers."""
        self._hang = True

    def resume(self) -> None:
        """The controller answers again."""
        self._down = self._hang = False

    def lose_next_submit_answer(self) -> None:
        """The next sbatch submits its job, but its answer gets lost."""
        self._lose_submit = True

    def crash(self) -> None:
        """Kill and restart the controller: what it had not saved is forgotten, ids are reused."""
        _, self._next, jobs = self._saved
        self.jobs = copy.deepcopy(jobs)

    # ---- Transport ----

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Completed:
        """Run a Slurm command on the dictionary; any other on this machine."""
        command = argv[0].rpartition("/")[2]
        if command not in COMMANDS:
            return self._files.run(argv, stdin=stdin, env=env, cwd=cwd, timeout_s=timeout_s)
        self.calls.append(tuple(argv))
        if self._hang:
            raise UnreachableError(
                f"{command} gave no answer within {timeout_s:g} s", where=self.name
            )
        if self._down:
            return Completed(tuple(argv), 1, "", _DOWN)
        self._tick()
        text = stdin.decode() if isinstance(stdin, bytes) else stdin or ""
        handler: Callable[[list[str], str], tuple[int, str, str]] = getattr(self, f"_{command}")
        code, out, err = handler(list(argv[1:]), text)
        self._tick()
        if command == "sbatch" and self._lose_submit:
            self._lose_submit = False
            raise UnreachableError("sbatch gave no answer", where=self.name)
        return Completed(tuple(argv), code, out, err)

    def put_file(self, local: Path, remote: str, *, mode: int | None = None) -> None:
        """As ``LocalTransport``."""
        self._files.put_file(local, remote, mode=mode)

    def put_bytes(self, data: bytes, remote: str, *, mode: int = 0o644) -> None:
        """As ``LocalTransport``."""
        self._files.put_bytes(data, remote, mode=mode)

    def get_file(self, remote: str, local: Path) -> None:
        """As ``LocalTransport``."""
        self._files.get_file(remote, local)

    def read_bytes(self, remote: str, *, offset: int = 0, limit: int | None = None) -> bytes:
        """As ``LocalTransport``."""
        return self._files.read_bytes(remote, offset=offset, limit=limit)

    def close(self) -> None:
        """Nothing is held open."""

    # ---- time and scheduling ----

    def _now(self) -> int:
        return int(self.clock.now().timestamp())

    def _tick(self) -> None:
        now = self._now()
        for job in list(self.jobs.values()):
            if job.state == "CONFIGURING" and job.started is not None and now >= job.started:
                job.state = "RUNNING"
            if job.state == "RUNNING" and job.ends is not None and now >= job.ends:
                self._end(job)
        self._schedule(now)
        if now - self._saved[0] >= SAVE_PERIOD_S:
            self._saved = (now, self._next, copy.deepcopy(self.jobs))

    def _end(self, job: FakeJob) -> None:
        if job.runtime_s > job.limit_s:
            job.state, job.reason, job.status = "TIMEOUT", "TimeLimit", 0
        elif job.result:
            job.state, job.reason, job.status = "FAILED", "NonZeroExitCode", job.result << 8
        else:
            job.state, job.reason, job.status = "COMPLETED", "None", 0

    def _busy(self) -> dict[str, int]:
        """GPUs taken on each node; a job without GPUs takes all."""
        busy = dict.fromkeys(self.node_names, 0)
        for job in self.jobs.values():
            if job.state in {"RUNNING", "CONFIGURING"}:
                for node in job.nodes:
                    busy[node] += job.gpus_per_node or max(1, self.gpus)
        return busy

    def _schedule(self, now: int) -> None:
        blocked = False
        for job in sorted(self.jobs.values(), key=lambda j: j.number):
            while job.state == "PENDING":
                if job.held:
                    job.reason = "JobHeldUser"
                    break
                if now < job.eligible:
                    job.reason = "BeginTime"
                    break
                excluded = set(expand_hostlist(job.exclude))
                allowed = [n for n in self.node_names if n not in excluded]
                if len(allowed) < job.nodes_wanted:
                    job.reason = "BadConstraints" if excluded else "PartitionConfig"
                    break
                if blocked:
                    job.reason = "Priority"
                    break
                busy = self._busy()
                need = job.gpus_per_node or max(1, self.gpus)
                free = [n for n in allowed if busy[n] + need <= max(1, self.gpus)]
                running = sum(
                    1
                    for j in self.jobs.values()
                    if j.base == job.base and j.state in {"RUNNING", "CONFIGURING"}
                )
                if job.throttle and job.tasks and running >= job.throttle:
                    job.reason = "JobArrayTaskLimit"
                    break
                if len(free) < job.nodes_wanted:
                    job.reason, blocked = "Resources", True
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
            element = copy.deepcopy(job)
            element.number, element.task, element.tasks = number, task, []
            if number == job.number:
                job.state = "STARTED"  # leaves the loop: its record is the element's now
            self.jobs[number] = element
        element.nodes, element.reason = nodes, "None"
        element.started = now + self.boot_s
        element.ends = element.started + min(element.runtime_s, element.limit_s)
        element.state = "CONFIGURING" if self.boot_s else "RUNNING"

    # ---- sbatch ----

    def _sbatch(self, argv: list[str], script: str) -> tuple[int, str, str]:
        options = _options([w for line in re.findall(r"^#SBATCH\s+(.*)$", script, re.MULTILINE)
                            for w in line.split()])  # fmt: skip
        options.update(_options(argv))
        if unfaked := sorted(_REFUSED_OPTIONS & options.keys()):
            raise InternalError(f"FakeSlurm does not fake --{unfaked[0]}")
        if re.search(r"^#SBATCH\s+hetjob", script, re.MULTILINE):
            raise InternalError("FakeSlurm does not fake het jobs")
        if not script.strip():
            return 1, "", "sbatch: error: Batch script is empty!\n"
        if not script.startswith("#!"):
            return 1, "", "sbatch: error: This does not look like a batch script.\n"
        failed = "allocation failure: " if "test-only" in options else (
            "sbatch: error: Batch job submission failed: ")  # fmt: skip
        if (partition := options.get("partition", "gpu")) != "gpu":
            return (
                1,
                "",
                (
                    f"sbatch: error: invalid partition specified: {partition}\n"
                    f"{failed}Invalid partition name specified\n"
                ),
            )
        wanted = int(options.get("nodes", "1").split("-")[0])
        gpus = int(options.get("gpus-per-node", "0").rpartition(":")[2])
        if gpus > self.gpus:
            return 1, "", f"{failed}Requested node configuration is not available\n"
        excluded = set(expand_hostlist(options.get("exclude", "")))
        if excluded and len(set(self.node_names) - excluded) < wanted:
            return 1, "", f"{failed}Requested node configuration is not available\n"
        tasks, throttle = parse_array(options["array"]) if "array" in options else ([], None)
        if tasks and tasks[-1] > 1000:
            return 1, "", f"{failed}Invalid job array specification\n"
        now, number = self._now(), self._next
        self._next += 1
        if "test-only" in options:
            if wanted > len(self.node_names):
                return 1, "", f"{failed}Requested node configuration is not available\n"
            nodes = fold_hostlist(self.node_names[:wanted])
            return (
                0,
                "",
                (
                    f"sbatch: Job {number} to start at {now} using {wanted} processors"
                    f" on nodes {nodes} in partition gpu\n"
                ),
            )
        self.jobs[number] = FakeJob(
            number=number,
            base=number,
            task=None,
            name=options.get("job-name", "sbatch"),
            user=self.user,
            comment=options.get("comment", ""),
            partition=partition,
            nodes_wanted=wanted,
            gpus_per_node=gpus,
            exclude=options.get("exclude", ""),
            limit_s=parse_duration_s(options.get("time", "60")) or 365 * 86400,
            runtime_s=sum(map(int, re.findall(r"^\s*sleep (\d+)", script, re.MULTILINE))),
            result=int((re.findall(r"^\s*exit (\d+)", script, re.MULTILINE) or ["0"])[-1]),
            submitted=now,
            eligible=now,
            tasks=tasks,
            throttle=throttle,
            held="hold" in options,
        )
        return 0, f"{number}\n", ""

    # ---- squeue, sacct, sinfo, sdiag ----

    def _squeue(self, argv: list[str], _: str) -> tuple[int, str, str]:
        options = _options(argv)
        rows = sorted(self.jobs.values(), key=lambda j: j.number)
        if (user := options.get("user", self.user)) != self.user:
            return 0, "", f"squeue: error: Invalid user: {user}\n"
        if "jobs" in options:
            rows = self._find(options["jobs"], split=False)
            if not rows:
                return 1, "", "slurm_load_jobs error: Invalid job id specified\n"
        if "format" in options:
            wanted = re.fullmatch(r"%i(.*)%x(.*)", options["format"])
            if wanted is None:
                raise InternalError(f"FakeSlurm does not fake squeue --format={options['format']}")
            lines = [f"{j.shown_id}{wanted[1]}{j.exclude}{wanted[2]}" for j in rows]
        else:
            columns = [c.partition(":")[::2] for c in options["Format"].split(",")]
            lines = ["".join(self._column(j, name) + end for name, end in columns) for j in rows]
        return 0, "".join(line + "\n" for line in lines), ""

    def _column(self, job: FakeJob, name: str) -> str:
        gpus = f"gres:gpu:h100:{job.gpus_per_node}" if job.gpus_per_node else "N/A"
        values = {
            "JobArrayID": job.shown_id,
            "State": job.state,
            "UserName": job.user,
            "Account": "(null)",
            "Partition": job.partition,
            "QOS": "(null)",
            "Reason": job.reason,
            "NodeList": fold_hostlist(job.nodes),
            "NumNodes": str(job.nodes_wanted),
            "tres-alloc": f"cpu=1,node={job.nodes_wanted},billing=1",
            "tres-per-node": gpus,
            "tres-per-job": "N/A",
            "Dependency": "(null)",
            "RestartCnt": str(job.restarts),
            "PriorityLong": "0"
            if job.held or job.reason == "BadConstraints"
            else str(4294901760 - job.number),
            "TimeLimit": format_duration(job.limit_s),
            "SubmitTime": str(job.submitted),
            "EligibleTime": str(job.eligible),
            "StartTime": str(job.started) if job.started is not None else "N/A",
            "EndTime": str(job.ends) if job.ends is not None else "N/A",
            "exit_code": str(job.status),
            "Comment": job.comment or "(null)",
            "Name": job.name,
        }
        return values[name]

    def _sacct(self, _: list[str], __: str) -> tuple[int, str, str]:
        return 1, "", "Slurm accounting storage is disabled\n"

    def _sinfo(self, argv: list[str], _: str) -> tuple[int, str, str]:
        options = _options(argv)
        names = expand_hostlist(options.get("nodes", "")) or self.node_names
        columns = [c.partition(":")[::2] for c in options["Format"].split(",")]
        out = ""
        for node in [n for n in names if n in self.node_names]:
            values = {
                "NodeList": node,
                "StateComplete": self._node_state(node),
                "PartitionName": "gpu",
                "Gres": f"gpu:h100:{self.gpus}" if self.gpus else "(null)",
                "CPUs": "32",
                "Memory": "512000",
            }
            out += "".join(values[name] + end for name, end in columns) + "\n"
        return 0, out, ""

    def _node_state(self, node: str) -> str:
        for job in self.jobs.values():
            if node in job.nodes and job.state in {"RUNNING", "CONFIGURING"}:
                return "mixed" if job.state == "RUNNING" else "mixed+cloud+powering_up"
        return "idle"

    def _sdiag(self, _: list[str], __: str) -> tuple[int, str, str]:
        now = self._now()
        day = dt.datetime.fromtimestamp(now, dt.UTC)
        return 0, f"sdiag output at {day:%a %b %d %H:%M:%S %Y} ({now})\n", ""

    # ---- scancel, scontrol ----

    def _scancel(self, argv: list[str], _: str) -> tuple[int, str, str]:
        options = _options(argv)
        for job in self._find(next(w for w in argv if not w.startswith("-"))):
            if options.get("state") == "PENDING" and job.state != "PENDING":
                continue
            if job.state not in {"PENDING", "CONFIGURING", "RUNNING"}:
                continue
            if job.state == "PENDING" and job.task is not None and not job.restarts:
                del self.jobs[job.number]  # Slurm keeps no record of it either
                continue
            if "signal" in options and options["signal"] not in {"KILL", "TERM"}:
                continue
            job.status = 15 if job.state == "RUNNING" else 0
            job.started = self._now() if job.started is None else job.started
            job.state, job.ends = "CANCELLED", self._now()
        return 0, "", ""

    def _scontrol(self, argv: list[str], _: str) -> tuple[int, str, str]:
        words = [w for w in argv if not w.startswith("-")]
        if words[:2] == ["show", "partition"]:
            return 0, (
                "PartitionName=gpu AllowAccounts=ALL AllowQos=ALL Default=YES DefaultTime=01:00:00"
                f" MaxNodes=UNLIMITED MaxTime=7-00:00:00 Nodes={fold_hostlist(self.node_names)}"
                f" State=UP TotalNodes={len(self.node_names)}\n"
            ), ""  # fmt: skip
        if words[:2] == ["show", "config"]:
            return 0, (
                "AccountingStorageType = accounting_storage/none\nClusterName = fake\n"
                "MaxArraySize = 1001\nSLURM_VERSION = 22.05.8\n"
            ), ""  # fmt: skip
        if words[0] not in {"update", "requeue"}:
            raise InternalError(f"FakeSlurm does not fake scontrol {' '.join(words)}")
        fields = dict(w.partition("=")[::2] for w in words[1:] if "=" in w)
        target = fields.pop("JobId", words[1])
        jobs = self._find(target)
        if not jobs:
            return 1, "", f"Invalid job id specified for job {target}\n"
        refusals = [r for job in jobs if (r := self._change(job, words[0], fields))]
        return (1, "", f"{refusals[0]} for job {target}\n") if refusals else (0, "", "")

    def _change(self, job: FakeJob, verb: str, fields: dict[str, str]) -> str:
        if verb == "requeue":
            if job.state == "PENDING":
                return "Job is pending execution"
            now = self._now()
            job.state, job.reason, job.restarts = "PENDING", "BeginTime", job.restarts + 1
            job.submitted, job.eligible = now, now + self.requeue_delay_s
            job.nodes, job.started, job.ends = [], None, None
            return ""
        if job.state not in {"PENDING", "CONFIGURING", "RUNNING"}:
            return "Job has already finished"
        if job.state != "PENDING" and fields.keys() & {"ExcNodeList", "StartTime", "Partition"}:
            return "Job is no longer pending execution"
        for key, value in fields.items():
            match key:
                case "Comment":
                    job.comment = value
                case "ExcNodeList":
                    job.exclude = value
                case "StartTime" if value == "now":
                    job.eligible = self._now()
                case "TimeLimit":
                    job.limit_s = parse_duration_s(value) or 365 * 86400
                case _:
                    raise InternalError(f"FakeSlurm does not fake an update of {key}={value}")
        return ""

    def _find(self, text: str, *, split: bool = True) -> list[FakeJob]:
        """Records of an id; an act splits an element off the pending rest, as in Slurm."""
        base, underscore, task = text.partition("_")
        rows = [j for j in self.jobs.values() if j.base == int(base)]
        if not underscore:
            return rows
        if found := [j for j in rows if j.task == int(task)]:
            return found
        for rest in [j for j in rows if int(task) in j.tasks]:
            element = copy.deepcopy(rest)
            element.task, element.tasks = int(task), []
            if not split:
                return [element]
            rest.tasks.remove(int(task))
            if rest.tasks:
                element.number = self._next
                self._next += 1
            self.jobs[element.number] = element
            return [element]
        return []


def unreachable_transport(name: str = "nowhere") -> "FakeSlurm":
    """A site whose ssh does not connect: every command and file raises ``NotSentError``."""
    return _Unreachable(name)


class _Unreachable(FakeSlurm):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes | None = None,  # noqa: ARG002  # the protocol's
        env: Mapping[str, str] | None = None,  # noqa: ARG002
        cwd: str | None = None,  # noqa: ARG002
        timeout_s: float = DEFAULT_TIMEOUT_S,  # noqa: ARG002
    ) -> Completed:
        raise NotSentError(f"cannot connect, so {argv[0]} did not run", where=self.name)


def _options(words: Sequence[str]) -> dict[str, str]:
    """Long names of options and their values; stops at the first word that is none."""
    found: dict[str, str] = {}
    queue = list(words)
    while queue and queue[0].startswith("-"):
        word = queue.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        else:
            name, equals, value = _LONG_OPTIONS.get(word[1], word[1]), word[2:], word[2:]
        if not equals and name not in _FLAGS and queue and not queue[0].startswith("-"):
            value = queue.pop(0)
        found[name] = value
    return found


def _fold_tasks(tasks: list[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1-3,7``."""
    spans: list[tuple[int, int]] = []
    for task in sorted(tasks):
        if spans and spans[-1][1] == task - 1:
            spans[-1] = (spans[-1][0], task)
        else:
            spans.append((task, task))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
