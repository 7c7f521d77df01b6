"""Rules about what a script does."""

import re

from hpcscale.lint.finding import Severity
from hpcscale.lint.portable import FABRIC_VARIABLE, assigned_variables
from hpcscale.lint.rule import Found, Script, rule


@rule("HS003", Severity.WARNING, "set -x with exported values",
       "bash(1): set -x prints commands with expanded values")  # fmt: skip
def trace_with_exports(script: Script) -> Found:
    """Traces print what is exported, keys and tokens included."""
    secret = re.compile(r"\b(?:export\s+)?([A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|API_?KEY))=")
    for number, _match in script.source.find(r"(?:^|[;&|]\s*)\s*set\s+-[a-wyz]*x[a-z]*\b"):
        off = [n for n, _ in script.source.find(r"\bset\s+\+[a-z]*x") if n > number]
        end = off[0] if off else len(script.source.lines)
        names = [
            m[1]
            for n, line in enumerate(script.source.bare, 1)
            if number < n <= end and (m := secret.search(line))
        ]
        if names:
            why = f"from here on commands are printed with their values: {names[0]} goes to the log"
            yield number, why, "# remove it; `bash -x SCRIPT` traces where nobody keeps the log"


@rule("HS004", Severity.WARNING, "fixed rendezvous port",
       "torchrun: --master-port default 29500; two jobs on a node collide")  # fmt: skip
def fixed_port(script: Script) -> Found:
    """A port written down is shared by all jobs that use the script."""
    if (exclusive := script.option("exclusive")) and exclusive[1] in {None, ""}:
        return  # nobody else is on the nodes
    for number, text in script.commands:
        for match in re.finditer(
            r"\b(?P<what>MASTER_PORT=|--master[-_]port[= ]|--rdzv[-_]endpoint[= ]\S*?:)"
            r"[\"']?(?P<port>\d{4,5})\b",
            text,
        ):
            what = match["what"]
            fixed = "$((20000 + SLURM_JOB_ID % 10000))"
            yield (
                number,
                f"port {match['port']} is fixed: two jobs that share a node cannot both use it",
                f"{what}{fixed}" if what == "MASTER_PORT=" else f'{what}"{fixed}"',
            )


DEAD_VARIABLES = {
    "NCCL_ASYNC_ERROR_HANDLING": ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "PyTorch 2.2"),
    "NCCL_BLOCKING_WAIT": ("TORCH_NCCL_BLOCKING_WAIT", "PyTorch 2.2"),
}


@rule("HS010", Severity.WARNING, "deprecated name of a variable",
       "https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html")  # fmt: skip
def dead_variable(script: Script) -> Found:
    """Old names are deprecated in favour of new ones."""
    for number, name in assigned_variables(script.source):
        if name in DEAD_VARIABLES:
            new, since = DEAD_VARIABLES[name]
            yield (
                number,
                f"{name} is the old name: {since} and later read {new}",
                _renamed(script.source.line(number), name, new),
            )


def _renamed(line: str, old: str, new: str) -> str:
    return re.sub(rf"\b{old}\b", new, line).strip()


EFA_LEFTOVERS = {
    "FI_PROVIDER": "the plug-in selects EFA itself",
    "FI_EFA_USE_DEVICE_RDMA": "libfabric 1.18 and aws-ofi-nccl 1.7 decide it themselves",
    "FI_EFA_FORK_SAFE": "libfabric sets it where it has an effect",
    "RDMAV_FORK_SAFE": "it can break on newer kernels",
}


@rule("HS011", Severity.WARNING, "what EFA no longer wants",
       "https://github.com/aws/aws-ofi-nccl/blob/master/doc/efa-env-var.md")  # fmt: skip
def efa_leftovers(script: Script) -> Found:
    """Variables from the time before libfabric 1.18; said for EFA, or where no site is named."""
    on_efa = script.site is not None and script.site.fabric.kind == "efa"
    if script.site is not None and not on_efa:
        return  # HS012 speaks there
    for number, name in assigned_variables(script.source):
        line = script.source.line(number)
        if name == "FI_PROVIDER" and not re.search(r"FI_PROVIDER=[\"']?efa\b", line):
            continue
        if name in EFA_LEFTOVERS:
            yield (
                number,
                f"{name} is not to be set with current EFA software: {EFA_LEFTOVERS[name]}",
                f"remove: {line.strip()}",
            )


@rule("HS012", Severity.ERROR, "variable of another fabric",
       "the site's profile: [fabric.env] and [fabric.forbidden]")  # fmt: skip
def other_fabric(script: Script) -> Found:
    """A variable that the site forbids, or that names another fabric's devices."""
    site = script.site
    if site is None:
        return
    known = {name for p in site.partitions.values() if p.fabric for name in p.fabric.env}
    for number, name in assigned_variables(script.source):
        if site.fabric.kind == "efa" and name in EFA_LEFTOVERS:
            continue  # HS011 says it better
        if name in known:
            continue  # a partition with a network of its own
        line = script.source.line(number).strip()
        if reason := site.fabric.forbidden.get(name):
            yield number, f"{name} is not to be set at {site.name}: {reason}", f"remove: {line}"
        elif FABRIC_VARIABLE.fullmatch(name) and _of_other_fabric(name, site.fabric.kind):
            yield (
                number,
                f"{name} belongs to another fabric; {site.name} has {site.fabric.kind}",
                f"remove: {line}",
            )


_KINDS = {"infiniband": ("NCCL_IB_", "SHARP_", "MELLANOX_"), "efa": ("FI_EFA_",)}


def _of_other_fabric(name: str, kind: str) -> bool:
    if kind not in {"infiniband", "efa", "loopback"}:
        return False  # RoCE and others read InfiniBand's variables as well
    owner = next((k for k, starts in _KINDS.items() if name.startswith(starts)), None)
    return owner is not None and owner != kind and name != "NCCL_IB_DISABLE"


@rule("HS013", Severity.ERROR, "scontrol inside a container",
       "https://github.com/NVIDIA/pyxis/issues/129")  # fmt: skip
def scontrol_in_container(script: Script) -> Found:
    """Images have no scontrol: the hostlist is resolved on the host."""
    for number, text in script.commands:
        if re.search(r"--container-image\b|\b(?:apptainer|singularity)\s+(?:exec|run)\b", text):
            inner = re.search(r"--container-image.*|\b(?:apptainer|singularity)\s.*", text)
            # outside quotes a $(scontrol …) is run by the batch shell, on the host
            if inner and re.search(r"'[^']*\bscontrol\b[^']*'", inner[0]):
                yield (
                    number,
                    "scontrol is run inside the container, where it is not installed",
                    (
                        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
                        "  before srun, on the host"
                    ),
                )


@rule("HS014", Severity.ERROR, "the exit code is lost after srun",
       "sbatch(1): the job ends with the exit code of its script")  # fmt: skip
def exit_code_lost(script: Script) -> Found:
    """When something runs after srun, its exit code becomes the job's."""
    text = script.source.text
    if re.search(r"^\s*set\s+-[a-z]*e|^#!.*\s-[a-z]*e\b|\bset\s+-o\s+errexit", text, re.MULTILINE):
        return
    if re.search(r"\$\?|\$\{?PIPESTATUS|\bwait\b|\btrap\b", text):
        return
    commands = [(n, c.strip()) for n, c in script.commands if c.strip()]
    step = [i for i, (_, c) in enumerate(commands) if re.match(r"(?:time\s+)?srun\s", c)]
    if not step:
        return
    number, command = commands[step[-1]]
    if re.search(r"\|\||&&|;|&\s*$|\|", re.sub(r"'[^']*'|\"[^\"]*\"", "", command)):
        return
    after = [c for _, c in commands[step[-1] + 1 :]]
    harmless = re.compile(r"(?:echo|date|printf|sleep|true|:|hostname|cp|mv|rm|sync|ls)\b")
    if after and all(harmless.match(c) for c in after):
        yield (
            number,
            (
                f"`{after[-1][:40]}` runs last: its exit code is the job's, and a failed srun "
                "is COMPLETED"
            ),
            "rc=$?  right after srun, and  exit $rc  as the last line",
        )
