"""What a user may get wrong besides the contents of a file: streams, encodings, places, sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_site import FakeSite

from hpcscale.cli import main, run
from hpcscale.cli.cancel import _cancel
from hpcscale.errors import InvalidFileError, NotFoundError, NotSentError
from hpcscale.jobkeys import JobKeys
from hpcscale.ledger import Ledger
from hpcscale.slurm import _answers, _refusals
from hpcscale.slurm.ssh import SshTransport
from hpcscale.slurm.transport import Completed
from hpcscale.slurm.types import Answer
from hpcscale.textfile import MAX_BYTES, read_text
from hpcscale.tomlfile import convert_toml

SCRIPT = "#!/bin/bash\nhostname\n"


def hpcscale(arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``hpcscale`` as a shell runs it, redirections included."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "from hpcscale.cli import run; run()" {arguments}', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )  # fmt: skip


# ---- streams ----


def test_closed_streams():
    assert hpcscale("site list >&-").returncode == 0
    assert hpcscale("lint - <&-").returncode == 0
    done = hpcscale("site show nowhere 2>&-")
    assert (done.returncode, done.stdout) == (8, "")


def test_a_full_disk_below_standard_output_is_said():
    done = hpcscale("site list > /dev/full")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "internal error" not in done.stderr


def test_arguments_that_are_no_utf8():
    done = hpcscale("render --name $'\\xff' -- hostname")
    assert done.returncode == 2
    assert "not UTF-8" in done.stderr


def test_a_table_too_wide_for_the_terminal_is_not_cut(tmp_path):
    transcript = tmp_path / "out"
    program = f"{sys.executable} -c 'from hpcscale.cli import run; run()'"
    for columns, dressed in ((50, False), (200, True)):
        subprocess.run(
            ["script", "-qec", f"stty cols {columns}; {program} site list", str(transcript)],
            capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k not in {"COLUMNS", "NO_COLOR"}}
            | {"TERM": "xterm"},
        )  # fmt: skip
        text = transcript.read_text(encoding="utf-8")
        assert "infiniband" in text
        assert ("─" in text) is dressed


# ---- files ----


def test_line_ends_stay_as_they_are(tmp_path):
    path = tmp_path / "a.sbatch"
    path.write_bytes(b"#!/bin/bash\nprintf 'a\rb'\n")
    assert read_text(path) == "#!/bin/bash\nprintf 'a\rb'\n"


@pytest.mark.parametrize("verb", [["lint"], ["render", "--site", "lab-onprem"]])
def test_windows_line_ends_are_refused(tmp_path, verb):
    path = tmp_path / "a.sbatch"
    path.write_bytes(SCRIPT.replace("\n", "\r\n").encode())
    result = CliRunner().invoke(main, [*verb, str(path)])
    assert isinstance(result.exception, InvalidFileError)
    assert "Windows" in result.exception.message
    assert "sed -i" in (result.exception.hint or "")


@pytest.mark.parametrize("suffix", [".sh", ".toml"])
def test_no_more_is_read_than_makes_sense(tmp_path, suffix):
    path = tmp_path / f"huge{suffix}"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for verb in (["lint"], ["render", "--site", "lab-onprem"]):
        result = CliRunner().invoke(main, [*verb, str(path)])
        assert isinstance(result.exception, InvalidFileError)
        assert "larger than 4 MB" in result.exception.message
    with pytest.raises(InvalidFileError, match="larger"):
        read_text(Path("/dev/zero"))  # its size says 0


def test_a_directory_is_no_text(tmp_path):
    with pytest.raises(InvalidFileError, match="directory"):
        read_text(tmp_path)
    with pytest.raises(NotFoundError):
        read_text(tmp_path / "none")


@pytest.mark.parametrize(
    ("key", "tables"), [("nodes", "[resources]"), ("deadline", "[burst]"), ("lead", "[checkpoint]")]
)
def test_a_known_key_in_the_wrong_table(key, tables):
    with pytest.raises(InvalidFileError) as caught:
        convert_toml({key: "1"}, JobKeys, "job.toml")
    assert caught.value.hint == f"it belongs below {tables}"


def test_an_empty_command_is_nothing_to_run():
    result = CliRunner().invoke(main, ["render", "--site", "lab-onprem", "--", ""])
    assert "nothing to run" in str(result.exception)


# ---- sbatch's own command line (texts of 22.05, tried) ----

USAGE = [
    "sbatch: unrecognized option '--nosuch=1'\nTry \"sbatch --help\" for more information\n",
    "sbatch: error: Invalid --time specification\n",
    "Invalid time specification (pos=0): foo\nsbatch: error: Invalid --begin specification\n",
    "sbatch: error: Invalid --distribution specification\n",
]


@pytest.mark.parametrize("stderr", USAGE)
def test_options_that_sbatch_does_not_know_are_a_refusal(stderr):
    done = Completed(argv=("sbatch",), returncode=255, stdout="", stderr=stderr)
    assert _answers.no_answer(done, "here") is None
    said, hint = _refusals.explain(_answers.message(done), SCRIPT, [], None)
    assert said.startswith("sbatch refused the job: ")
    assert hint or "--time" in stderr  # with the site's facts: what the partition allows


def test_a_killed_sbatch_is_still_no_answer():
    for returncode, stderr in ((255, ""), (137, USAGE[1]), (255, "Connection reset by peer")):
        done = Completed(argv=("sbatch",), returncode=returncode, stdout="", stderr=stderr)
        assert _answers.no_answer(done, "here") is not None


def test_each_refusal_names_a_next_step():
    for message in ("Invalid feature specification", "unrecognized option '--nosuch=1'"):
        assert _refusals.explain(message, SCRIPT, [], None)[1]
    assert _refusals.kind("Memory specification can not be satisfied") == "shape"


# ---- sites ----


def test_status_of_an_unknown_site_is_not_empty():
    Ledger.open().close()
    result = CliRunner().invoke(main, ["status", "--site", "nowhere"])
    assert isinstance(result.exception, NotFoundError)
    result = CliRunner().invoke(main, ["status", "--site", "generic-ib"])
    assert (result.exit_code, "no jobs" in result.output) == (0, True)


def test_a_name_that_the_system_refuses_is_no_bug():
    """Longer than any file's name may be: an OSError that no module foresaw."""
    for arguments in (f"render {'a' * 5000}", f"lint {'a' * 5000}", "render --code a/b -- x"):
        done = hpcscale(f"{arguments} </dev/null")
        assert done.returncode in {2, 3, 8}, done.stderr
        assert "internal error" not in done.stderr


def test_an_unforeseen_oserror_names_its_file(monkeypatch, capsys):
    def broken(**_):
        raise PermissionError(13, "Permission denied", "/closed/file")

    monkeypatch.setattr(sys, "argv", ["hpcscale"])
    monkeypatch.setattr(main, "main", broken)
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 3
    assert "/closed/file: cannot be used: Permission denied" in capsys.readouterr().err


def test_a_known_hosts_file_that_cannot_be_read_is_no_bug(tmp_path):
    transport = SshTransport(host="127.0.0.1", port=1, known_hosts=str(tmp_path / ("x" * 300)))
    with pytest.raises(NotSentError, match="cannot be read: File name too long"):
        transport.run(["true"])


# ---- cancel ----


def test_a_job_that_slurm_does_not_list_was_not_cancelled(tmp_path, monkeypatch):
    site = FakeSite(tmp_path)
    with site.ledger:
        got = site.submit()
        client = site.connection.client
        with monkeypatch.context() as silent:
            silent.setattr(client, "show", lambda _: None)
            silent.setattr(client, "jobs", lambda *_, **__: Answer({}, complete=True))
            silent.setattr(client, "history", lambda *_, **__: Answer({}, complete=False))
            for task in (None, 3):
                with pytest.raises(NotFoundError, match="nothing was cancelled"):
                    _cancel(site.ledger, lambda _: site.connection, got.attempt, task)
        assert not client.show(got.ref.job_id).state.terminal
        again = site.ledger.attempt(got.submission_id)
        assert _cancel(site.ledger, lambda _: site.connection, again, None) == "cancelled"


def test_the_record_of_a_lost_job_can_be_closed(tmp_path):
    site = FakeSite(tmp_path)
    with site.ledger:
        lost, kept = site.submit(), site.submit()
        site.observe()
        site.forget(lost)
        connections = lambda _: site.connection  # noqa: E731 # what the pool is to it
        said = [
            _cancel(site.ledger, connections, s.attempt, None, forget=True) for s in (lost, kept)
        ]
        assert said[0].startswith("forgotten")
        assert said[1] == "cancelled", "what Slurm lists is never only forgotten"
        attempt = site.ledger.attempt(lost.submission_id)
        assert (attempt.ended, attempt.state.value) == (True, "UNKNOWN")
        assert site.ledger.open_attempts() == []
