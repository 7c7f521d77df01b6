"""Slurm's commands, said to the faked controller: argv in, exit code and texts out."""

import copy
import datetime as dt
import re

from hpcscale.errors import InternalError
from hpcscale.testing.controller import FakeController
from hpcscale.testing.jobs import FakeJob, read_options
from hpcscale.units import (
    expand_hostlist,
    fold_hostlist,
    format_duration,
    parse_array,
    parse_duration_s,
)

_REFUSED_OPTIONS = {"deadline", "begin", "constraint", "nodelist", "reservation"}


class FakeCommands(FakeController):
    """A method a command: ``(words, script) -> (exit code, stdout, stderr)``."""

    # ---- sbatch ----

    def _sbatch(self, argv: list[str], script: str) -> tuple[int, str, str]:
        options = read_options([w for line in re.findall(r"^#SBATCH\s+(.*)$", script, re.MULTILINE)
                            for w in line.split()])  # fmt: skip
        options.update(read_options(argv))
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
        if (partition := options.get("partition", "gpu")) not in self.partitions:
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
        if self._count() + max(1, len(tasks)) >= self.max_jobs:
            # real sbatch tries again for two minutes before it says so
            return 1, "", (
                "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
                f"{failed}Resource temporarily unavailable\n"
            )  # fmt: skip
        now, number = self.now(), self._next
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
            runtime_s=sum(map(int, re.findall(r"^sleep (\d+)", script, re.MULTILINE))),
            result=int((re.findall(r"^exit (\d+)", script, re.MULTILINE) or ["0"])[-1]),
            submitted=now,
            eligible=now,
            tasks=tasks,
            throttle=throttle,
            held="hold" in options,
            dependency=options.get("dependency", ""),
        )
        return 0, f"{number}\n", ""

    # ---- squeue, sacct, sinfo, sdiag ----

    def _count(self) -> int:
        """Jobs as MaxJobCount counts them: every array element."""
        return sum(len(job.tasks) or 1 for job in self.jobs.values())

    def _squeue(self, argv: list[str], _: str) -> tuple[int, str, str]:
        if "--format=." in argv:
            return 0, ".\n" * self._count(), ""
        options = read_options(argv)
        rows = sorted(self.jobs.values(), key=lambda j: j.number)
        if options.get("states") == "pending":
            rows = [j for j in rows if j.state == "PENDING"]
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
            lines = []
            for job in rows:
                values = self._columns(job)
                lines.append("".join(values[name] + end for name, end in columns))
        return 0, "".join(line + "\n" for line in lines), ""

    def _columns(self, job: FakeJob) -> dict[str, str]:
        gpus = f"gres:gpu:h100:{job.gpus_per_node}" if job.gpus_per_node else "N/A"
        return {
            "JobArrayID": job.shown_id,
            "State": "COMPLETING" if job.completing and job.state == "PENDING" else job.state,
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
            "Dependency": self._shown_dependency(job) or "(null)",
            "RestartCnt": str(job.restarts),
            "PriorityLong": "0"
            if job.held or job.reason == "BadConstraints"
            else str(4294901760 - job.number),
            "TimeLimit": format_duration(job.limit_s),
            "SubmitTime": str(job.submitted),
            "EligibleTime": "N/A" if job.reason.startswith("Dependency") else str(job.eligible),
            "StartTime": str(job.started) if job.started is not None else "N/A",
            "EndTime": str(job.ends) if job.ends is not None else "N/A",
            "exit_code": str(job.status),
            "Comment": job.comment or "(null)",
            "Name": job.name,
        }

    def _sacct(self, _: list[str], __: str) -> tuple[int, str, str]:
        return 1, "", "Slurm accounting storage is disabled\n"

    def _sinfo(self, argv: list[str], _: str) -> tuple[int, str, str]:
        options = read_options(argv)
        partition_of = {n: name for name, nodes in self.partitions.items() for n in nodes}
        names = expand_hostlist(options.get("nodes", "")) or list(partition_of)
        columns = [c.partition(":")[::2] for c in options["Format"].split(",")]
        out = ""
        for node in [n for n in names if n in partition_of]:
            values = {
                "NodeList": node,
                "StateComplete": self._node_state(node),
                "PartitionName": partition_of[node],
                "Gres": f"gpu:h100:{self.gpus}" if self.gpus else "(null)",
                "CPUs": "32",
                "Memory": "512000",
                "Features": "h100",
            }
            out += "".join(values[name] + end for name, end in columns) + "\n"
        return 0, out, ""

    def _node_state(self, node: str) -> str:
        if node in self.down_nodes:
            return "down*"
        for job in self.jobs.values():
            if node in job.nodes and job.state in {"RUNNING", "CONFIGURING"}:
                return "mixed" if job.state == "RUNNING" else "mixed+cloud+powering_up"
        return "idle"

    def _sdiag(self, _: list[str], __: str) -> tuple[int, str, str]:
        now = self.now()
        day = dt.datetime.fromtimestamp(now, dt.UTC)
        return 0, f"sdiag output at {day:%a %b %d %H:%M:%S %Y} ({now})\n", ""

    # ---- scancel, scontrol ----

    def _scancel(self, argv: list[str], _: str) -> tuple[int, str, str]:
        options = read_options(argv)
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
            job.started = self.now() if job.started is None else job.started
            job.state, job.ends = "CANCELLED", self.now()
        return 0, "", ""

    def _scontrol(self, argv: list[str], _: str) -> tuple[int, str, str]:
        words = [w for w in argv if not w.startswith("-")]
        if words[:2] == ["show", "partition"]:
            return 0, "".join(
                f"PartitionName={name} AllowAccounts=ALL AllowQos=ALL"
                f" Default={'YES' if name == 'gpu' else 'NO'} DefaultTime=01:00:00"
                f" MaxNodes=UNLIMITED MaxTime=7-00:00:00 Nodes={fold_hostlist(nodes)}"
                f" State=UP TotalNodes={len(nodes)}\n"
                for name, nodes in self.partitions.items()
            ), ""  # fmt: skip
        if words[:2] == ["show", "topology"]:
            return 0, "", ""
        if words[:2] == ["show", "config"]:
            return 0, (
                "AccountingStorageType = accounting_storage/none\nClusterName = fake\n"
                f"MaxArraySize = 1001\nMaxJobCount = {self.max_jobs}\nSLURM_VERSION = 22.05.8\n"
            ), ""  # fmt: skip
        if words[0] not in {"update", "requeue", "release"}:
            raise InternalError(f"FakeSlurm does not fake scontrol {' '.join(words)}")
        fields = dict(w.partition("=")[::2] for w in words[1:] if "=" in w)
        target = fields.pop("JobId", words[1])
        jobs = self._find(target)
        if not jobs:
            return 1, "", f"Invalid job id specified for job {target}\n"
        refusals = [r for job in jobs if (r := self._change(job, words[0], fields))]
        return (1, "", f"{refusals[0]} for job {target}\n") if refusals else (0, "", "")

    def _change(self, job: FakeJob, verb: str, fields: dict[str, str]) -> str:
        if verb == "release":
            job.held = False
            return ""
        if verb == "requeue":
            if job.state == "PENDING":
                return "Job is pending execution"
            self._requeue(job)
            return ""
        if job.state not in {"PENDING", "CONFIGURING", "RUNNING"}:
            return "Job has already finished"
        if job.state != "PENDING" and fields.keys() & {"ExcNodeList", "StartTime", "Partition"}:
            return "Job is no longer pending execution"
        if "Partition" in fields:
            if self.refuses_updates:
                return self.refuses_updates
            if fields["Partition"] not in self.partitions:
                return "Invalid partition name specified"
        for key, value in fields.items():
            match key:
                case "Partition":
                    job.partition = value
                case "Comment":
                    job.comment = value
                case "ExcNodeList":
                    job.exclude = value
                case "StartTime" if value == "now":
                    job.eligible = self.now()
                case "NumNodes" if "NumTasks" in fields:
                    job.nodes_wanted = int(value)
                case "NumNodes" | "NumTasks" | "NumCPUs":
                    continue  # --ntasks-per-node keeps the nodes of as many tasks
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
