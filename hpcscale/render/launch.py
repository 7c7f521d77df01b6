"""How a command becomes ranks: the words of the srun line and what each task runs."""

import re
import zlib
from dataclasses import dataclass

from hpcscale.errors import InvalidFileError, UsageError
from hpcscale.render.directives import cpus_per_slurm_task, ranks_per_node, slurm_tasks_per_node
from hpcscale.render.places import Place, container_code, shell_words
from hpcscale.render.shell import site_path, words
from hpcscale.site import ContainerRuntime, Site, Software
from hpcscale.spec import IN_CONTAINER, Function, JobSpec, Launcher

PYTHON = re.compile(r"(?:.*/)?python(?:3(?:\.\d+)?)?")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./+=:-]+")

# torchrun's agent on the first node holds the TCPStore. The one that comes last to their exit
# barrier asks it once more, and logs a traceback where it is gone by then. A second store of the
# same process and port is the same server (multi_tenant), and keeps it.
_LEAVES_LAST = (
    'agent="import atexit, sys, time; from torch.distributed import TCPStore; \\',
    "  from torch.distributed.run import main; \\",
    "  node, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]); \\",
    "  store = node or TCPStore(host, port, is_master=True, wait_for_workers=False, \\",
    "    multi_tenant=True); \\",
    '  node or atexit.register(time.sleep, 2); main(sys.argv[4:])"',
    "# the first node has the store that each agent asks as it leaves: its own agent leaves last",
)
_LEAVES_LAST_WORDS = '-c "$agent" "$SLURM_NODEID" "$MASTER_ADDR" "$MASTER_PORT"'


@dataclass(frozen=True, slots=True)
class Launch:
    """Words of the command's line.

    Attributes:
        srun: options of srun; empty: no srun.
        inner: lines of what ``bash -c`` runs in each task, free of single quotes; empty: the
            command itself.
        argv: shell words of the command.
        rendezvous: whether ranks must find each other.
    """

    srun: tuple[str, ...]
    inner: tuple[str, ...]
    argv: str
    rendezvous: bool


def find_software(spec: JobSpec, site: Site) -> Software | None:
    """The job's software as the site provides it.

    Raises:
        InvalidFileError: the site has none of that name, or cannot run its image.
    """
    if spec.software is None:
        return None
    where = f"site {site.name}"
    software = site.software.get(spec.software)
    if software is None:
        known = ", ".join(sorted(site.software)) or "none"
        raise InvalidFileError(
            f"it offers no software named {spec.software!r}; it has: {known}",
            where=where,
            hint=f"add [software.{spec.software}] to the profile of {site.name}, "
            "or choose another with --software",
        )
    if software.image and site.container.runtime is ContainerRuntime.NONE:
        raise InvalidFileError(
            f"software {spec.software!r} is an image, and the profile names no container runtime",
            where=where,
            hint='set runtime = "pyxis" or "apptainer" below [container] in the profile',
        )
    return software


def mounts_word(site: Site, places: list[Place]) -> str:
    """Shell word of ``source:target`` pairs that a container needs."""
    # an output file need not exist yet: its directory does
    shared = [
        f"${{{p.variable}%/*}}" if p.kind == "output" and not p.directory else f"${p.variable}"
        for p in places
        if p.in_place
    ]
    own = ["$HPCSCALE_RUN_DIR", "$HPCSCALE_CODE_DIR", *shared]
    pairs = [f"{path}:{path}" for path in dict.fromkeys(own)]
    return (
        '"' + ",".join(pairs) + '"' + "".join("','" + site_path(m) for m in site.container.mounts)
    )


def launch(
    spec: JobSpec, site: Site, found: list[Place], *, image: bool, container_env: list[str]
) -> Launch:
    """Choose the words for the job's launcher.

    Args:
        spec: the job.
        site: where.
        found: the declared paths.
        image: whether the command runs in a container.
        container_env: variables whose value must win over the image's own.
    """
    pyxis = image and site.container.runtime is ContainerRuntime.PYXIS
    apptainer = image and site.container.runtime is ContainerRuntime.APPTAINER
    want = spec.resources
    inside: list[str] = []
    own_dir = container_code(spec)
    if own_dir is not None and not image:
        raise InvalidFileError(
            f"code = {spec.code!r}: the job runs in no container at site {site.name}",
            hint="software = NAME of a [software.NAME] with an image; or code = DIR",
        )
    if own_dir and not (own_dir.startswith("/") and _PLAIN_WORD.fullmatch(own_dir)):
        raise InvalidFileError(
            f"code = {spec.code!r}: an absolute path of plain characters is needed",
            hint=f'code = "{IN_CONTAINER}/opt/program"',
        )
    pwd = own_dir or '"$PWD"'
    if apptainer:
        gpu = " --nv" if want.gpus_per_node else ""
        inside.append(f'apptainer exec{gpu} --pwd {pwd} "$HPCSCALE_IMAGE"')
    if spec.function is not None:
        inner_srun = _pyxis(container_env, pwd) if pyxis else []
        return _function(spec, site, spec.function, inside, inner_srun)
    if spec.launcher is Launcher.PLAIN:
        if not pyxis:
            return Launch(
                (), (), " ".join([*inside, shell_words(spec.command, found)]), rendezvous=False
            )
        return Launch(
            ("--nodes=1 --ntasks=1", *_pyxis(container_env, pwd)),
            (),
            shell_words(spec.command, found),
            rendezvous=False,
        )
    tasks = slurm_tasks_per_node(spec)
    srun = _srun(spec, site)
    if pyxis:
        srun += _pyxis(container_env, pwd)
    if spec.launcher is Launcher.SRUN:
        inner = (
            "export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS NODE_RANK=$SLURM_NODEID",
            f"export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE={tasks}",
            " ".join(["exec", *inside, '"$@"']),
        )
        return Launch(tuple(srun), inner, shell_words(spec.command, found), rendezvous=True)
    python, program = torchrun_words(spec.command)
    ranks = ranks_per_node(spec)
    alone = want.nodes == 1
    start = "-m torch.distributed.run" if alone else _LEAVES_LAST_WORDS
    inner = (
        *(() if alone else _LEAVES_LAST),
        " ".join(["exec", *inside, *python, start]) + " \\",
        f'  --nnodes={want.nodes} --nproc-per-node={ranks} --node-rank="$SLURM_NODEID" \\',
        '  --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT" "$@"',
    )
    return Launch(tuple(srun), inner, shell_words(tuple(program), found), rendezvous=True)


def _srun(spec: JobSpec, site: Site) -> list[str]:
    """The srun options of every step over the whole job."""
    nodes, tasks = spec.resources.nodes, slurm_tasks_per_node(spec)
    srun = [f"--nodes={nodes} --ntasks={nodes * tasks} --ntasks-per-node={tasks}"]
    if cpus := cpus_per_slurm_task(spec, site):
        # not inherited from the job since Slurm 22.05
        srun[0] += f" --cpus-per-task={cpus}"
    if site.launch.srun_args:
        srun.append(words(site.launch.srun_args))
    return srun


def _function(
    spec: JobSpec, site: Site, function: Function, inside: list[str], pyxis: list[str]
) -> Launch:
    """Submitit's job side on every task; it finds its rank by Slurm's own variables.

    No rendezvous variables: ``submitit.helpers.TorchDistributedEnvironment`` sets them itself, and
    refuses where they are set already.
    """
    out, err = (f'"$HPCSCALE_OUTPUT_SUBMITIT/${{job}}_%t_log.{kind}"' for kind in ("out", "err"))
    call = [*inside, function.python, "-u -m submitit.core._submit", '"$HPCSCALE_OUTPUT_SUBMITIT"']
    if not function.use_srun:
        both = "2>&1" if function.stderr_to_stdout else f"2>> {err.replace('%t', '0')}"
        call += [f">> {out.replace('%t', '0')}", both]
        return Launch((), (), " ".join(call), rendezvous=False)
    logs = f"--output={out}" + ("" if function.stderr_to_stdout else f" --error={err}")
    # --wait=0 after the site's own words: each task has a result, and may take as long as it needs
    srun = [*_srun(spec, site), f"--wait=0 --unbuffered --open-mode=append {logs}", *pyxis]
    if function.srun_args:
        srun.append(words(function.srun_args))
    return Launch(tuple(srun), (), " ".join(call), rendezvous=False)


def _pyxis(container_env: list[str], pwd: str) -> list[str]:
    found = [
        '--container-image="$HPCSCALE_IMAGE" --container-mounts="$HPCSCALE_MOUNTS"',
        f"--container-workdir={pwd} --no-container-mount-home",
    ]
    if container_env:  # without this the image's own value wins
        found.append(f"--container-env={','.join(container_env)}")
    return found


def torchrun_words(command: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The interpreter (with its options), and what torch.distributed.run is to start.

    The module ``torch.distributed.run`` and not the ``torchrun`` program: that one names the
    interpreter it was installed with, which is not there in a moved venv or another image.

    Raises:
        UsageError: the command starts torchrun itself, or its interpreter has an odd name.
    """
    if command[0].rpartition("/")[2] in {"torchrun", "torch.distributed.run"}:
        raise UsageError(
            "the launcher torchrun starts torchrun by itself",
            where="command",
            hint="give the program alone: --launcher torchrun -- train.py …",
        )
    if not PYTHON.fullmatch(command[0]):
        script = command[0].endswith(".py")
        return ["python3"], [*([] if script else ["--no-python"]), *command]
    interpreter = [command[0]]
    rest = list(command[1:])
    while rest and rest[0].startswith("-") and rest[0] not in {"-m", "-c", "-"}:
        interpreter.append(rest.pop(0))
        if interpreter[-1] in {"-X", "-W"} and rest:
            interpreter.append(rest.pop(0))
    if not rest or rest[0] in {"-c", "-"}:
        raise UsageError(
            "torchrun starts a program file or a module",
            where="command",
            hint="--launcher torchrun -- train.py …, or -- python -m package.module …",
        )
    if odd := [word for word in interpreter if not _PLAIN_WORD.fullmatch(word)]:
        raise UsageError(f"{odd[0]!r} cannot be an interpreter's name or option", where="command")
    if rest[0] == "-m":
        if len(rest) < 2:
            raise UsageError("-m names no module", where="command")
        return interpreter, ["--module", *rest[1:]]
    return interpreter, rest


def port_offset(site: Site) -> int:
    """Keeps equal job ids of two sites apart where their nodes share a network, as in the lab."""
    return zlib.crc32(site.name.encode()) % 10000
