"""Jobs and sites of the golden scripts: compared byte for byte, checked by shellcheck, and run.

Each command says what it was given; ``EXPECTED`` is what a run on real Slurm must print.
"""

import datetime as dt
from dataclasses import dataclass, field
from decimal import Decimal

from hpcscale.render import Gate, RenderedJob, render
from hpcscale.sbatch_script import read_script
from hpcscale.site import (
    BurstTarget,
    Container,
    ContainerRuntime,
    Evidence,
    Fabric,
    FabricVariable,
    Launch,
    Partition,
    Site,
    Software,
    TransportConfig,
    TransportKind,
)
from hpcscale.spec import (
    BurstMode,
    BurstTerms,
    Checkpoint,
    Function,
    JobSpec,
    Launcher,
    Resources,
    SecretSource,
)

AS_OF = dt.date(2026, 11, 22)
WORKDIR = "/home/ada/project"
ODD = 'it\'s "odd"; $(touch /tmp/injected) `id` \\ # \n#SBATCH --partition=urgent, a,b'


def variable(value: str) -> FabricVariable:
    return FabricVariable(value=value, source="a page", as_of=AS_OF, status=Evidence.DOCUMENTED)


def site(name: str = "onprem", **fields) -> Site:
    fields.setdefault("fabric", Fabric(kind="loopback", env={"GLOO_SOCKET_IFNAME": variable("lo")}))
    fields.setdefault("default_partition", "gpu")
    return Site(name=name, as_of=AS_OF, **fields)


ONPREM = site(env={"OMP_NUM_THREADS": "1"})
IB = site(
    "ib",
    fabric=Fabric(
        kind="infiniband",
        env={"NCCL_IB_HCA": variable("=mlx5_0,mlx5_1"), "NCCL_SOCKET_IFNAME": variable("eth0")},
        forbidden={"NCCL_IB_DISABLE": "the network would be unused"},
    ),
    launch=Launch(srun_args=("--kill-on-bad-exit=1", "--wait=60", "--cpu-bind=none")),
)
EFA = site(
    "efa",
    transport=TransportConfig(kind=TransportKind.SSH, host="login"),
    fabric=Fabric(
        kind="efa",
        env={"FI_EFA_USE_HUGE_PAGE": variable("0"), "NCCL_SOCKET_IFNAME": variable("en")},
        forbidden={"FI_PROVIDER": "the plug-in selects EFA itself"},
    ),
)
SOFTWARE = site(
    software={
        "tools": Software(modules=("tool/1.0",), venv="$HOME/envs/my env"),
        "conda": Software(conda="py311"),
    }
)
PYXIS = site(
    "pyxis",
    container=Container(runtime=ContainerRuntime.PYXIS, mounts=("$HOME/.cache:/root/.cache",)),
    software={"torch": Software(image="nvcr.io#nvidia/pytorch:25.01-py3")},
    shared_dirs=("/lustre",),
)
APPTAINER = site(
    "apptainer",
    container=Container(runtime=ContainerRuntime.APPTAINER),
    software={"torch": Software(image="$HOME/images/torch.sif")},
)

CLOUD_PARTITION = site(
    "hpc",
    fabric=Fabric(kind="infiniband", env={"NCCL_IB_HCA": variable("=mlx5_0")}),
    env={"OMP_NUM_THREADS": "1", "SCRATCH": "/lustre/scratch"},
    container=Container(runtime=ContainerRuntime.PYXIS, mounts=("/lustre:/lustre",)),
    software={
        "torch": Software(image="/lustre/images/torch.sqsh"),
        "tools": Software(modules=("tool/1.0",)),
    },
    partitions={
        "gpu": Partition(),
        "cloud": Partition(
            gpu_hour_usd=Decimal("6.88"),
            fabric=Fabric(kind="efa", env={"FI_EFA_USE_HUGE_PAGE": variable("0")}),
            env={"SCRATCH": "/nvme\n$(id)"},
            container=Container(runtime=ContainerRuntime.PYXIS, mounts=("/fsx:/fsx",)),
            software={
                "torch": Software(image="/fsx/torch.sqsh", modules=("efa/1.0",)),
                "tools": Software(modules=("tool/2.0",)),
            },
            burst=BurstTarget(target=True, boot_allowance_s=300),
        ),
    },
)
AUTO = BurstTerms(mode=BurstMode.AUTO)

FOREIGN = """#!/bin/bash
#SBATCH -N 2 --ntasks-per-node=2   # two by two
#SBATCH --partition=gpu --time=00:10:00
#SBATCH --account=physics
# a comment of the author's

echo "foreign $1 of $#"; export MINE="it's mine"
srun bash -c 'echo "rank $SLURM_PROCID $MINE $GLOO_SOCKET_IFNAME"'
exit 3
"""


@dataclass(frozen=True)
class Case:
    """One golden script.

    ``lines``: what its run prints (sorted); None: it is not run (needs software that is not here).
    """

    spec: JobSpec
    site: Site
    lines: list[str] | None = None
    exit_code: int = 0
    files: dict[str, str] = field(default_factory=dict)
    gate: Gate | None = None

    def render(self) -> RenderedJob:
        return render(self.spec, self.site, gate=self.gate)


def job(
    *command: str, nodes: int = 1, gpus: int = 0, tasks: int | None = None, **fields
) -> JobSpec:
    fields.setdefault("workdir", WORKDIR)
    fields.setdefault("name", "golden")
    resources = Resources(
        nodes=nodes, gpus_per_node=gpus, tasks_per_node=tasks, time_limit_s=600,
        **fields.pop("resources", {}),
    )  # fmt: skip
    return JobSpec(command=command, resources=resources, **fields)


def says(text: str) -> tuple[str, ...]:
    return ("bash", "-c", text)


RANKS = 'echo "rank $RANK of $WORLD_SIZE, local $LOCAL_RANK of $LOCAL_WORLD_SIZE, node $NODE_RANK"'
PROBE = """import os
e = os.environ
line = f"rank {e['RANK']} of {e['WORLD_SIZE']} node {e['GROUP_RANK']} {e['MASTER_ADDR']}\\n"
os.write(1, line.encode())  # in one piece: ranks share a pipe
"""
WHERE = (
    'cat "$HPCSCALE_INPUT_TRAIN_SET"/part; cat "$HPCSCALE_INPUT_NOTE"; '
    'echo result > "$HPCSCALE_OUTPUT_TABLE"; echo more > "$HPCSCALE_OUTPUT_PLOTS/one"; '
    'echo "$ODD"; echo "token $API_TOKEN"; echo "in $PWD"; cat here.txt; '
    'echo "$HPCSCALE_SITE $HPCSCALE_RESTART_COUNT ${SECRETLY-unset}"; exit 5'
)

CASES: dict[str, Case] = {
    "function": Case(
        job(
            "python3", "-u", "-m", "submitit.core._submit", nodes=2, tasks=2, array="0-9%4", code="",
            inputs={"submitit": "/home/ada/jobs/.hpcscale/0"},
            outputs={"submitit": "/home/ada/jobs/"}, software="conda",
            directives={"signal": "USR2@90", "requeue": None},
            function=Function(setup=("module list",), teardown=("echo over",)),
        ),
        SOFTWARE,
    ),
    # --wait=0 after the site's words, ranks by Slurm's own variables: submitit sets torch's itself
    "function-pyxis": Case(
        job(
            "python", "-u", "-m", "submitit.core._submit", nodes=2, gpus=4, tasks=4, code="",
            inputs={"submitit": "/lustre/ada/jobs/.hpcscale/0"},
            outputs={"submitit": "/lustre/ada/jobs/"}, software="torch",
            directives={"signal": "USR2@90", "requeue": None}, env={"LR": "0.1"},
            function=Function(python="python"),
        ),
        PYXIS,
    ),
    "function-apptainer": Case(
        job(
            "python", "-u", "-m", "submitit.core._submit", nodes=2, gpus=4, tasks=4, array="0-1",
            inputs={"submitit": "/home/ada/jobs/.hpcscale/0"},
            outputs={"submitit": "/home/ada/jobs/"}, software="torch", code="/home/ada/project",
            directives={"signal": "USR2@90", "requeue": None},
            function=Function(python="python"),
        ),
        APPTAINER,
    ),
    "plain": Case(job(*says("echo hello; exit 7")), ONPREM, ["hello"], exit_code=7),
    "srun-ranks": Case(
        job(*says(RANKS), nodes=2, gpus=2, launcher=Launcher.SRUN,
            resources={"cpus_per_task": 2, "mem_gb": 4.0}),
        IB,
        [
            f"rank {r} of 4, local {r % 2} of 2, node {r // 2}" for r in range(4)
        ],
    ),
    "torchrun": Case(
        job("python", "-u", "probe.py", "it's", nodes=2, tasks=2, launcher=Launcher.TORCHRUN),
        ONPREM,
        [f"rank {r} of 4 node {r // 2} onprem1" for r in range(4)],
        files={"code/probe.py": PROBE},
    ),
    "torchrun-efa": Case(
        job("train.py", nodes=4, gpus=8, launcher=Launcher.TORCHRUN, software=None,
            resources={"exclusive": True, "mem_gb": 0.0, "cpus_per_task": 12}),
        EFA,
    ),
    "everything": Case(
        job(
            *says(WHERE), "--data=/data/sets/train/part", "/home/ada/project/x",
            name='job "x" $(id)',
            env={"ODD": ODD, "EMPTY": ""},
            inputs={"train-set": "/data/sets/train", "note": "/home/ada/note.txt"},
            outputs={"table": "/home/ada/out/table.csv", "plots": "/home/ada/out/plots/"},
            secrets={"API_TOKEN": SecretSource(kind="env", name="MY_TOKEN")},
            account="physics", qos="normal", constraint="h100",
            directives={"hint": "nomultithread", "no-kill": None, "comment": "mine"},
        ),
        site(account="others", directives={"nice": "10"}, keep_env=("LANG", "TERM")),
        ["train", "note", *ODD.split("\n"), "token s3cret", "in RUN_DIR/code", "here",
         "onprem 0 unset"],
        exit_code=5,
        files={
            "inputs/train-set/part": "train\n", "inputs/note": "note\n", "code/here.txt": "here\n",
            "secrets/SUBMISSION/API_TOKEN": "s3cret",
        },
    ),
    "checkpoint": Case(
        job("./train.sh", checkpoint=Checkpoint(dir="/home/ada/ckpt", lead_s=60, stop_wait_s=20)),
        ONPREM,
        ["restart 0"],
        files={"code/train.sh": "#!/bin/sh\necho restart $HPCSCALE_RESTART_COUNT\n"},
    ),
    "checkpoint-array": Case(
        job(*says('echo "task $SLURM_ARRAY_TASK_ID ${HPCSCALE_CHECKPOINT_DIR##*/}"; '
                  'ls -d "$HPCSCALE_CHECKPOINT_DIR" > /dev/null; echo "${HPCSCALE_STOP_FILE##*.}"'),
            array="0-2%2", checkpoint=Checkpoint(dir="ckpt", max_restarts=3)),
        ONPREM,
        sorted([f"task {i} task-{i}" for i in range(3)] + [f"task{i}" for i in range(3)]),
    ),
    "software": Case(job("tool", "--version", software="tools"), SOFTWARE),
    "conda": Case(job("python", "x.py", software="conda"), SOFTWARE),
    "pyxis": Case(
        job("python", "train.py", "--data=/lustre/sets/a/x", nodes=2, gpus=4,
            launcher=Launcher.TORCHRUN, software="torch", inputs={"set": "/lustre/sets/a"},
            env={"LR": "0.1"}, code="/lustre/ada", workdir="/lustre/ada/run 1"),
        PYXIS,
    ),
    "apptainer": Case(
        job("./solve", "--n", "3", nodes=2, gpus=4, launcher=Launcher.SRUN, software="torch"),
        APPTAINER,
    ),
    "foreign": Case(
        JobSpec(
            name="foreign.sbatch", workdir=WORKDIR, script_args=("it's", "two"),
            script=read_script(FOREIGN, "foreign.sbatch", "onprem"),
            partition="gpu", account="physics",
            resources=Resources(nodes=2, tasks_per_node=2, time_limit_s=1200),
        ),
        ONPREM,
        ["foreign it's of 2", *(f"rank {r} it's mine " for r in range(4))],
        exit_code=3,
    ),
    "foreign-moved": Case(
        JobSpec(
            name="foreign.sbatch", workdir=WORKDIR, script_args=("one",), env={"MORE": "x"},
            script=read_script(FOREIGN, "foreign.sbatch", "elsewhere"),
            resources=Resources(nodes=2, tasks_per_node=2, time_limit_s=600),
        ),
        ONPREM,
        ["foreign one of 1", *(f"rank {r} it's mine lo" for r in range(4))],
        exit_code=3,
    ),
    "partitions": Case(
        job("train.py", nodes=2, gpus=4, launcher=Launcher.TORCHRUN, software="torch", burst=AUTO,
            env={"LR": "0.1"}),
        CLOUD_PARTITION,
    ),
    "partitions-host": Case(job("tool", software="tools", burst=AUTO, array="0-1"), CLOUD_PARTITION),
    "gate": Case(job(*says("echo hello"), nodes=2, array="0-1"), ONPREM, gate=Gate(lease_s=600)),
    "foreign-gate": Case(
        JobSpec(
            name="foreign.sbatch", workdir=WORKDIR,
            script=read_script(FOREIGN, "foreign.sbatch", "elsewhere"),
            resources=Resources(nodes=2, tasks_per_node=2, time_limit_s=600),
        ),
        ONPREM,
        gate=Gate(lease_s=600),
    ),
}  # fmt: skip
