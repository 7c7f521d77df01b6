"""Hostile words through every transport, and as names of real jobs: they arrive as they were sent."""

import os
import shutil
import subprocess

import pytest
from hostile import words

from hpcscale.errors import HpcscaleError
from hpcscale.slurm import remote
from hpcscale.slurm._remote_shell import command_line
from hpcscale.slurm.types import JobState

SHELLS = [s for s in ("sh", "bash", "dash", "zsh", "tcsh", "fish") if shutil.which(s)]


def lines(place, argv, **options):
    """What a command prints, cut at NUL."""
    done = place.transport.run(argv, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


def step(place):
    """Of how many words one is taken where each costs several logins."""
    return {"lab-ssh": 20, "lab-openssh": 80}.get(place.kind, 5)


def test_words_arrive_as_arguments_variables_input_and_directories(place):
    witness = f"{place.dir}/witness"
    texts = [w.text for w in words(witness)]
    assert lines(place, ["printf", r"%s\0", *texts]) == texts
    env = {f"V{n}": text for n, text in enumerate(texts)}
    seen = dict(line.partition("=")[::2] for line in lines(place, ["env", "-0"], env=env))
    assert {name: seen[name] for name in env} == env
    assert lines(place, ["cat"], stdin="\0".join(texts) + "\0") == texts
    for text in texts[:: step(place)]:  # one at a time: as the only word, and as the directory
        assert lines(place, ["printf", r"%s\0", text], env={"V": text}) == [text]
        directory = f"{place.dir}/d{text.replace('/', '_')[:80]}"
        remote.mkdir(place.transport, directory)
        assert place.transport.run(["pwd"], cwd=directory).stdout == f"{directory}\n"
    assert not remote.exists(place.transport, witness)


def test_words_as_file_names(place, tmp_path):
    witness = f"{place.dir}/witness"
    source = tmp_path / "source"
    source.mkdir()
    names = []
    for word in words(witness):
        name = f"f{word.text.replace('/', '_')}"
        if len(name.encode()) > 200:
            continue
        (source / name).write_text(word.text)
        names.append(name)
    assert len(names) > 100
    names.sort()
    there = f"{place.dir}/tree"
    remote.put_tree(place.transport, source, there)
    assert remote.list_dir(place.transport, there) == names
    assert sorted(remote.get_tree(place.transport, there, tmp_path / "back")) == names
    for name in names[:: step(place)]:
        data = name.encode()
        place.transport.put_bytes(data, f"{there}/{name}", mode=0o600)
        assert place.transport.read_bytes(f"{there}/{name}") == data
        assert remote.link_once(place.transport, f"{there}/{name}.claim", data)
        remote.remove(place.transport, f"{there}/{name}")
        assert not remote.exists(place.transport, f"{there}/{name}")
    assert not remote.exists(place.transport, witness)


def test_what_no_command_can_be_given_is_refused(place):
    for word in words("w", nul=True):
        if "\0" not in word.text:
            continue
        for options in ({}, {"env": {"V": word.text}}, {"cwd": f"/{word.text}"}):
            argv = ["true"] if options else ["echo", word.text]
            with pytest.raises(HpcscaleError, match="NUL"):
                place.transport.run(argv, **options)
    for name in ("A B", "A=B", "-i", "", "A;id", "A\nB"):
        with pytest.raises(HpcscaleError, match="name of an environment variable"):
            place.transport.run(["true"], env={name: "x"})


@pytest.mark.parametrize("shell", SHELLS)
def test_no_login_shell_reads_a_word_as_commands(tmp_path, shell):
    """csh ends a quote at a newline and acts on ``!`` inside; fish escapes inside quotes."""
    witness = tmp_path / "witness"
    found = words(witness)
    texts = [w.text for w in found]
    odd = [[text] for text in texts if set(text) & set("\n\r!\\'^")]
    several = [texts, *(odd if shell in {"tcsh", "fish"} else [])]
    for batch in several:
        env = {"V": batch[0]}
        # no backslash of ours: a line that needs no coding goes as it is
        line = command_line(["sh", "-c", 'printf "%s|" "$V" "$@"', "sh", *batch], env, None, 30)
        done = subprocess.run(
            [shell, "-c", line],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert not witness.exists(), batch
        expected = "".join(f"{text}|" for text in [batch[0], *batch])
        assert done.stdout.decode() == expected, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "real_place",
    [pytest.param(kind, marks=pytest.mark.lab) for kind in ("lab-local", "lab-ssh")],
    indirect=True,
)
def test_words_as_names_and_comments_of_jobs(real_place):
    witness = f"{real_place.dir}/witness"
    sent = {}
    for word in words(witness):
        try:
            job = real_place.submit(
                "--hold", f"--job-name={word.text}", f"--comment={word.text}", args=(word.text,)
            )
        except HpcscaleError:
            continue
        sent[str(job)] = word.text
    assert len(sent) > 0.8 * len(words(witness))
    seen = real_place.client.jobs().jobs
    # Slurm itself keeps of a name what it keeps; what squeue is asked must not be broken by it
    assert set(sent) <= set(seen)
    for job_id, text in sent.items():
        assert seen[job_id].name == text, repr(text)
        assert seen[job_id].comment == text, repr(text)
        assert seen[job_id].state is JobState.PENDING
    assert not remote.exists(real_place.transport, witness)
