"""A rendered script in a real shell, for tests of what claim and gate let begin."""

import dataclasses
import shutil
import subprocess

from render_cases import ONPREM, job, says

from hpcscale.burst.claims import take
from hpcscale.render import render
from hpcscale.sbatch_script import read_script
from hpcscale.spec import JobSpec, Resources
from hpcscale.testing import FakeSlurm

SID, TARGET, OTHER = (f"hs-{c * 16}" for c in "abc")
TOOLS = ("bash", "sh", "cat", "date", "ln", "mkdir", "mv", "rm", "sleep", "timeout")


@dataclasses.dataclass
class Place:
    """What ``take`` reads of an attempt."""

    run_id: str
    submission_id: str
    run_dir: str
    task: int | None = None


class Job:
    """A rendered script that is run as slurmd would, with a witness that only user code writes."""

    def __init__(self, tmp_path, *, gate=None, foreign=False, array=None, command="echo ran >>"):
        self.state = tmp_path / "state"
        self.run_dir = self.state / "runs" / "rabc"
        self.run_dir.mkdir(parents=True)
        self.project = tmp_path / "project"
        self.project.mkdir()
        self.witness = tmp_path / "witness"
        self.bin = tmp_path / "bin"  # no Slurm in it
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        command = f"{command} {self.witness}"
        if foreign:
            text = "#!/bin/sh\n#SBATCH --time=5\n" + command + "\n"
            spec = JobSpec(
                name="f", script=read_script(text, "f.sh", ONPREM.name), code="",
                resources=Resources(time_limit_s=300),
            )  # fmt: skip
        else:
            spec = job(*says(command), workdir=None, code="", array=array)
        self.script = tmp_path / "script.sh"
        self.script.write_text(render(spec, ONPREM, gate=gate).script)
        self.shell = "sh" if foreign else "bash"

    def start(self, restart=0, sid=SID, task=None, args=True, umask=0o022):
        env = {"PATH": str(self.bin), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1",
               "SLURM_SUBMIT_DIR": str(self.project), "HOME": str(self.project)}  # fmt: skip
        if restart:
            env["SLURM_RESTART_COUNT"] = str(restart)
        if task is not None:
            env |= {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "7"}
        given = [sid, str(self.run_dir)] if args else []
        return subprocess.Popen(
            [self.shell, str(self.script), *given], env=env, cwd=self.project,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, umask=umask,
        )  # fmt: skip

    def run(self, **kw):
        process = self.start(**kw)
        self.said, _ = process.communicate(timeout=30)
        return process.returncode

    @property
    def ran(self):
        return self.witness.read_text().count("ran") if self.witness.exists() else 0

    @property
    def attempt(self):
        return Place("rabc", SID, str(self.run_dir))

    def take(self, owner=TARGET, restarts=0):
        return take(FakeSlurm(), self.attempt, owner, restarts)
