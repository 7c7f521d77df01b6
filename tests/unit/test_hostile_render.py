"""Hostile words in every field of a job and of a site: the script, run by bash, runs none of them."""

import datetime as dt
import re
import subprocess
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hostile import EVERY, words

from hpcscale.errors import HpcscaleError
from hpcscale.render import render
from hpcscale.sbatch_script import read_script
from hpcscale.site import (
    Container,
    ContainerRuntime,
    Evidence,
    Fabric,
    FabricVariable,
    Launch,
    Software,
    load_site,
)
from hpcscale.spec import Checkpoint, JobSpec, Launcher, Resources

TODAY = dt.date(2026, 11, 22)
# stands for what Slurm and the site bring along: options are dropped, the rest is run
STUBS = {
    "srun": '#!/bin/sh\nwhile case $1 in -*) true;; *) false;; esac; do shift; done\nexec "$@"\n',
    "scontrol": "#!/bin/sh\necho node1\n",
    "module": "#!/bin/sh\nexit 0\n",
    "conda": "#!/bin/sh\nexit 0\n",
    "apptainer": "#!/bin/sh\nshift\n"
    "while case $1 in --nv) shift;; --pwd) shift 2;; *) false;; esac; do :; done\n"
    'shift\nexec "$@"\n',
}
# the command of every job here: writes down what it was given
PROBE = 'printf "%s\\0" "$V" "$@" > "$PROBED"'

SPEC_FIELDS = ("name", "comment", "partition", "account", "qos", "constraint", "reservation")
SITE_FIELDS = ("env", "fabric", "default_partition", "account", "qos", "directives", "srun_args",
               "modules", "title")  # fmt: skip


@pytest.fixture
def world(tmp_path):
    for name, text in STUBS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    (tmp_path / "submit").mkdir()
    return tmp_path


def run(world, script, *args):
    """As slurmstepd starts it; whether the job's command was reached, and what it was given."""
    file = world / "script.sh"
    file.write_text(script)
    probed = world / "probed"
    probed.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", str(file), *args],
        cwd=world / "submit",
        env={
            "PATH": f"{world}/bin:/usr/bin:/bin",
            "HOME": str(world),
            "PROBED": str(probed),
            "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(world / "submit"),
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_NODEID": "0",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS": "1",
            "SLURM_NNODES": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    if not probed.exists():
        return None, done.stderr.decode("utf-8", "replace")
    return probed.read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1], ""


def refused_or(make, text, fields):
    """Render with as many of these fields hostile as are taken; which were refused."""
    try:
        return make(text, set(fields)), set()
    except HpcscaleError:
        pass
    taken, refused = set(), set()
    for field in fields:
        try:
            make(text, {field})
        except HpcscaleError:
            refused.add(field)
        else:
            taken.add(field)
    return make(text, taken), refused


def make_values(text, fields):
    """A job whose words and whose site's words are hostile."""

    def pick(field, usual=None):
        return text if field in fields else usual

    site = load_site("lab-onprem").site
    changes = {}
    if "site.env" in fields:
        changes["env"] = {"SITE_V": text}
    if "site.fabric" in fields:
        variable = FabricVariable(value=text, source=text, as_of=TODAY, status=Evidence.RUN,
                                  note=text)  # fmt: skip
        changes["fabric"] = Fabric(kind=text, env={"NCCL_DEBUG": variable}, note=text)
    for key in ("default_partition", "account", "qos", "title"):
        if f"site.{key}" in fields:
            changes[key] = text
    if "site.directives" in fields:
        changes["directives"] = {"constraint": text}
    if "site.srun_args" in fields:
        changes["launch"] = Launch(srun_args=(f"--x={text}",))
    if "site.modules" in fields:
        changes["software"] = {"soft": Software(modules=(text,), note=text)}
    spec = JobSpec(
        command=("sh", "-c", PROBE, "sh", *([text] if "argument" in fields else [])),
        env={"V": text} if "env" in fields else {},
        name=pick("name", "x"),
        comment=pick("comment"),
        partition=pick("partition"),
        account=pick("account"),
        qos=pick("qos"),
        constraint=pick("constraint"),
        directives={"reservation": text} if "reservation" in fields else {},
        software="soft" if "site.modules" in fields else None,
        launcher=Launcher.SRUN,
        resources=Resources(tasks_per_node=1),
    )
    return render(spec, msgspec.structs.replace(site, **changes))


def directives(script):
    head = script.partition("\n\n")[0]
    return [
        line.split("=")[0].split()[1] for line in head.splitlines() if line.startswith("#SBATCH ")
    ]


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_words_and_a_sites_words_are_never_run(world, every):
    witness = world / "witness"
    fields = ["argument", "env", *SPEC_FIELDS, *(f"site.{f}" for f in SITE_FIELDS)]
    benign = set(directives(make_values("x", set(fields)).script))
    reached, refusals = 0, Counter()
    for word in words(witness, nul=True, every=every):
        rendered, refused = refused_or(make_values, word.text, fields)
        refusals.update(refused)
        assert set(directives(rendered.script)) <= benign, word
        given, error = run(world, rendered.script)
        assert not witness.exists(), word
        if given is None:
            pytest.fail(f"{word}: the command was not reached: {error}")
        reached += 1
        expected = [word.text] if "env" not in refused else [""]
        expected += [word.text] if "argument" not in refused else []
        assert given == expected, word
    assert reached == len(words(witness, nul=True, every=every))
    # what no shell can pass on is refused, and nothing else
    nul = sum("\0" in w.text for w in words(witness, nul=True, every=every))
    assert refusals["env"] == refusals["argument"] == nul


def make_paths(base, text, made):
    """A job whose paths, and whose site's paths, are hostile; ``made``: those that can exist."""
    site = load_site("lab-onprem").site
    software = Software(venv=f"{base}/venv/{text}", note=text)
    spec = JobSpec(
        command=("sh", "-c", PROBE, "sh", text, f"{base}/in/{text}"),
        env={"V": text},
        workdir=f"{base}/work/{text}" if made else str(base),
        inputs={"i": f"{base}/in/{text}"} if made else {},
        outputs={"o": f"{base}/out/{text}"},
        checkpoint=Checkpoint(dir=f"{base}/ckpt/{text}"),
        software="soft" if made else None,
    )
    return render(spec, msgspec.structs.replace(site, software={"soft": software}))


def exists_there(base, text):
    """Make what the job wants to find; False where no file can have this name."""
    if re.search(r"\$\{?(HOME|USER)\b", text):
        return False  # these two are expanded in a site's paths, on purpose
    try:
        for kind in ("work", "in", "venv", "out", "ckpt"):
            path = Path(f"{base}/{kind}/{text}")
            if not path.resolve().is_relative_to(base / kind) or path.resolve() == base / kind:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{base}/work/{text}").mkdir(exist_ok=True)
        Path(f"{base}/in/{text}").touch()
        activate = Path(f"{base}/venv/{text}/bin/activate")
        activate.parent.mkdir(parents=True, exist_ok=True)
        activate.touch()
    except (OSError, ValueError):
        return False
    return True


@pytest.mark.parametrize("every", EVERY)
def test_paths_are_never_run(world, every):
    witness = world / "witness"
    reached = 0
    for number, word in enumerate(words(witness, every=every)):
        base = world / str(number)
        base.mkdir()
        made = exists_there(base, word.text)
        try:
            script = make_paths(base, word.text, made).script
        except HpcscaleError:
            assert not made, word
            continue
        given, error = run(world, script)
        assert not witness.exists(), word
        assert given is not None or not made, f"{word}: {error}"
        if given is not None:
            reached += 1
            assert given[:2] == [word.text, word.text]
            if made:
                assert given[2].rstrip("/") == f"{base}/in/{word.text}".rstrip("/")
    assert reached > 0.8 * len(words(witness, every=every))


@pytest.mark.slow
@pytest.mark.timeout(1500)  # a script is rendered and run for every word
def test_an_image_its_mounts_and_a_conda_name_are_never_run(world):
    witness = world / "witness"
    site = load_site("lab-onprem").site
    reached = 0
    for word in words(witness):
        container = Container(runtime=ContainerRuntime.APPTAINER, mounts=(f"/x{word.text}:/y",))
        in_image = msgspec.structs.replace(
            site, container=container, software={"soft": Software(image=f"~/{word.text}")}
        )
        in_conda = msgspec.structs.replace(site, software={"soft": Software(conda=word.text)})
        for there in (in_image, in_conda):
            spec = JobSpec(command=("sh", "-c", PROBE, "sh", word.text), env={"V": "v"},
                           software="soft", launcher=Launcher.SRUN)  # fmt: skip
            try:
                script = render(spec, there).script
            except HpcscaleError:
                continue
            given, _ = run(world, script)
            assert not witness.exists(), (word, there.software)
            reached += given is not None
    assert reached > len(words(witness))


@pytest.mark.slow
def test_the_prologue_of_a_script_of_theirs_runs_nothing(world):
    """Their body is theirs to write; what we put before it is not."""
    witness = world / "witness"
    site = load_site("lab-onprem").site
    body = '#!/bin/bash\n#SBATCH --time=5\nsh -c \'printf "%s\\0" "$V" "$@" > "$PROBED"\' sh "$@"\n'
    reached = 0
    for word in words(witness):
        script = read_script(body, f"{word.text}.sh", "lab-onprem")
        spec = JobSpec(script=script, script_args=(word.text,), env={"V": word.text},
                       name=word.text, comment=word.text)  # fmt: skip
        rendered = render(spec, msgspec.structs.replace(site, env={"S": word.text}))
        given, error = run(world, rendered.script, *spec.script_args)
        assert not witness.exists(), word
        assert given is not None, f"{word}: {error}"
        reached += 1
        assert given[-1] == word.text
    assert reached == len(words(witness))
