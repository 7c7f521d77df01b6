"""Rules about ``#SBATCH`` lines."""

import re

from hpcscale.lint.finding import Severity
from hpcscale.lint.rule import Found, Script, rule
from hpcscale.lint.source import Source
from hpcscale.units import parse_duration_s


@rule("HS001", Severity.ERROR, "directive after the first command", "sbatch(1): DESCRIPTION")
def directive_after_command(script: Script) -> Found:
    """Slurm stops reading directives at the first command."""
    source = script.source
    for number in range(source.first_command + 1, len(source.lines) + 1):
        # in a here-document the line belongs to another script, made by this one
        if re.match(r"#SBATCH\s+-", source.line(number)) and not _in_heredoc(source, number):
            yield (
                number,
                (
                    f"sbatch stops reading at line {source.first_command}, the first command: this "
                    "line does nothing"
                ),
                f"move it above line {source.first_command}: {source.line(number).strip()}",
            )


def _in_heredoc(source: Source, number: int) -> bool:
    """Whether a line is text of a here-document: there a comment is blanked like all else."""
    probe = [*source.lines[: number - 1], "true", *source.lines[number:]]
    return not Source(source.path, "\n".join(probe)).bare[number - 1].strip()


@rule("HS002", Severity.ERROR, "--export with values that hold commas",
       "sbatch(1), srun(1): --export takes a comma-separated list")  # fmt: skip
def export_with_commas(script: Script) -> Found:
    """``--export=A=1,2`` is cut at the comma."""
    listed = [(line, value) for line, option, value in script.directives if option == "export"]
    for number, text in script.commands:
        if re.search(r"\b(?:srun|sbatch)\b", text):
            listed += [(number, m[1]) for m in re.finditer(r"--export[= ](\S+)", text)]
    for line, value in listed:
        items = (value or "").strip("\"'").split(",")
        broken = [
            (items[i - 1], item)
            for i, item in enumerate(items)
            if i and "=" in items[i - 1] and item and _no_variable(item, items[i - 1])
        ]
        if broken:
            name = broken[0][0].partition("=")[0]
            yield (
                line,
                (
                    f"it is cut at commas: {name} gets {broken[0][0].partition('=')[2]!r}, and "
                    f"{broken[0][1]!r} is taken for a variable's name"
                ),
                f"export {name}='…'  in the script, and no {name} in --export",
            )


def _no_variable(item: str, before: str) -> bool:
    """Whether an item of the list is the rest of the value before it, and no variable's name.

    ``mlx5_1`` could be a name, but not after ``NCCL_IB_HCA=mlx5_0``: it goes on counting.
    """
    if not re.match(r"[A-Za-z_]\w*(=|$)", item):
        return True
    stem = before.partition("=")[2].rstrip("0123456789")
    return item.islower() and stem != "" and item.rstrip("0123456789") == stem


@rule("HS005", Severity.ERROR, "--gres=gpu together with --gpus-per-node",
       "Slurm 26.05 release notes: an error from then on")  # fmt: skip
def gres_and_gpus(script: Script) -> Found:
    """GPUs asked for twice."""
    gres, per_node = script.option("gres"), script.option("gpus-per-node")
    if gres and per_node and re.match(r"(?:.*,)?gpu(?:[:=,]|$)", gres[1] or ""):
        yield (
            gres[0],
            "GPUs are asked for twice, and Slurm 26.05 refuses the job",
            f"remove it and keep: #SBATCH --gpus-per-node={per_node[1]}",
        )


@rule("HS006", Severity.WARNING, "--gpus-per-task hides GPUs from their neighbours",
       "https://github.com/NVIDIA/nccl/issues/1066")  # fmt: skip
def gpus_per_task(script: Script) -> Found:
    """A task that sees one GPU cannot use peer-to-peer copies to the others."""
    if re.search(r"--gpu-bind[= ]none\b", script.source.text):
        return
    tasks = script.option("ntasks-per-node") or script.option("ntasks")
    if tasks is None or tasks[1] in {"1", None}:
        return
    found = script.option("gpus-per-task")
    lines = [(found[0], found[1])] if found else []
    for number, text in script.commands:
        if re.search(r"\bsrun\b", text) and (m := re.search(r"--gpus-per-task[= ](\S+)", text)):
            lines.append((number, m[1]))
    for line, value in lines:
        yield (
            line,
            "each task sees its own GPU alone: NCCL cannot copy between GPUs of a node directly",
            f"--gpus-per-node=N instead, or besides --gpus-per-task={value}: --gpu-bind=none",
        )


@rule("HS007", Severity.WARNING, "a requeued job truncates its log", "sbatch(1): --open-mode")
def requeue_truncates(script: Script) -> Found:
    """The log of the first run is lost when Slurm runs the job again."""
    requeue = script.option("requeue")
    again = [
        number for number, text in script.commands if re.search(r"\bscontrol\s+requeue\b", text)
    ]
    if (requeue or again) and not script.option("open-mode"):
        yield (
            requeue[0] if requeue else again[0],
            "when the job is requeued Slurm truncates its log: what the first run said is gone",
            "#SBATCH --open-mode=append",
        )


@rule("HS008", Severity.ERROR, "--signal does not reach the shell that traps it",
       "sbatch(1): --signal, 'B:'")  # fmt: skip
def signal_misses_shell(script: Script) -> Found:
    """Without ``B:`` the signal goes to the steps and not to the batch shell."""
    signal = script.option("signal")
    if signal is None:
        return
    match = re.fullmatch(r"(?:R)?(?:SIG)?([A-Z0-9]+)(@\d+)?", (signal[1] or "").upper())
    if match is None:
        return  # has a prefix with B:, or is not understood
    for number, text in script.commands:
        trapped = re.search(r"(?:^|[;&|]\s*|\s)trap\s+(?P<rest>.+)", text)
        if trapped is None or number < script.source.first_command:
            continue
        names = re.sub(r"'[^']*'|\"[^\"]*\"", " ", trapped["rest"]).upper().split()
        if match[1] in {name.removeprefix("SIG") for name in names}:
            yield (
                signal[0],
                (
                    f"line {number} traps {match[1]} in the batch shell; without `B:` Slurm sends "
                    "it to the steps alone"
                ),
                f"#SBATCH --signal=B:{match[1]}{match[2] or '@60'}",
            )
            return


@rule("HS009", Severity.ERROR, "several torchrun on a node",
       "https://docs.pytorch.org/docs/stable/elastic/run.html")  # fmt: skip
def torchrun_per_task(script: Script) -> Found:
    """Torchrun starts a process a GPU itself; one is wanted on each node."""
    tasks = script.option("ntasks-per-node")
    if tasks is None or not (tasks[1] or "").isdigit() or int(tasks[1] or 1) < 2:
        return
    for number, text in script.commands:
        if not re.search(r"\bsrun\b", text) or not re.search(
            r"\btorchrun\b|torch\.distributed\.(?:run|launch)\b", text
        ):
            continue
        if re.search(r"--ntasks-per-node[= ]1\b", text) or re.search(
            r"--(?:nproc[-_]per[-_]node)[= ]1\b", text
        ):
            continue
        yield (
            number,
            f"srun starts {tasks[1]} torchrun on each node, and each starts a process a GPU",
            f"#SBATCH --ntasks-per-node=1  (line {tasks[0]})",
        )


@rule("HS015", Severity.ERROR, "--time does not fit", "sbatch(1): --time; slurm.conf(5): MaxTime")
def time_does_not_fit(script: Script) -> Found:
    """Unlimited, or longer than the partition allows."""
    asked = script.option("time")
    if asked is None:
        return
    try:
        limit_s = parse_duration_s(asked[1] or "")
    except ValueError as exc:
        yield asked[0], str(exc), "#SBATCH --time=HH:MM:SS"
        return
    if script.site is None:
        return
    option = script.option("partition")
    name = (option[1] if option else None) or script.site.default_partition or ""
    known = script.site.partitions.get(name)
    if known is None or known.max_time is None:
        return
    most_s = parse_duration_s(known.max_time)
    if most_s is not None and (limit_s is None or limit_s > most_s):
        yield (
            asked[0],
            (
                f"partition {name} of {script.site.name} allows {known.max_time} at most: the job "
                "would wait for ever (PartitionTimeLimit) or be refused"
            ),
            f"#SBATCH --time={known.max_time}",
        )
