"""Hostile words from users, files and sites: what is shown is plain text, and none is run."""

import json

import msgspec
import pytest
from click.testing import CliRunner
from hostile import EVERY, words

from hpcscale.cli import main, report_error
from hpcscale.cli._output import emit_table, notice
from hpcscale.connect import Connection
from hpcscale.errors import HpcscaleError, InvalidFileError
from hpcscale.settings import config_dir
from hpcscale.site import load_site
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.transport import Completed
from hpcscale.testing import FakeSlurm


def harmless(text):
    """Nothing that a terminal obeys, and no mark that turns the writing."""
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.fixture
def witness(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "witness"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """lab-onprem, faked."""
    fake = FakeSlurm()
    monkeypatch.setenv("HPCSCALE_SITE__LAB_ONPREM__STATE_DIR", str(tmp_path / "site"))

    def connect(site):
        return Connection(site=site, transport=fake, client=CliClient(fake), clock=fake.clock)

    monkeypatch.setattr("hpcscale.connect.connect", connect)
    return fake


def hpcscale(*args, code=0):
    result = CliRunner().invoke(main, args, standalone_mode=False)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        if code is None and isinstance(result.exception, HpcscaleError):
            return None
        raise result.exception
    return result


def test_errors_tables_and_notices_are_plain_text(witness, capsys):
    for word in words(witness, nul=True):
        report_error(HpcscaleError(word.text, where=word.text, hint=word.text))
        shown = capsys.readouterr().err
        assert harmless(shown), word
        # a site's words cannot pass for a message of ours
        first, *more = shown.splitlines()
        assert first.startswith("hpcscale: error: ")
        assert all(line.startswith(("    ", "  try: ")) for line in more), word
        emit_table(["A", "B"], [[word.text, "x"], ["y", word.text]])
        table = capsys.readouterr().out
        assert harmless(table), word
        assert table.count("\n") == 3
        notice(word.text)
        assert harmless(capsys.readouterr().err), word


def test_what_sbatch_and_squeue_say_is_shown_plainly(witness, capsys):
    class Says:
        name, is_local = "there", False

        def __init__(self, text):
            self.text = text

        def run(self, argv, **_):
            error = f"{argv[0]}: error: {self.text}\n"
            return Completed(tuple(argv), 1, self.text, error)

    for word in words(witness, nul=True):
        client = CliClient(Says(word.text))
        for ask in (lambda c: c.sbatch("#!/bin/sh\n", []), lambda c: c.jobs(), lambda c: c.now(),
                    lambda c: c.facts()):  # fmt: skip
            with pytest.raises(HpcscaleError) as caught:
                ask(client)
            report_error(caught.value)
            assert harmless(capsys.readouterr().err), word
    assert not witness.exists()


@pytest.mark.parametrize("every", EVERY)
def test_jobs_of_any_name_are_submitted_listed_and_cancelled(slurm, witness, every):
    kept = {}
    for word in words(witness, every=every):
        done = hpcscale("submit", "--site=lab-onprem", "--no-code", f"--name={word.text}",
                        "--time=5", f"--env=V={word.text}", "--json", "--", "echo", word.text,
                        code=None)  # fmt: skip
        if done is not None:
            kept[json.loads(done.stdout)["data"]["run_id"]] = word.text
    assert len(kept) > 0.8 * len(words(witness, every=every))
    assert len(slurm.jobs) == len(kept)
    text = hpcscale("status", "--all").output
    assert harmless(text)
    assert len(text.splitlines()) >= len(kept)
    runs = json.loads(hpcscale("status", "--all", "--json").stdout)["data"]["runs"]
    assert {run["run_id"]: run["name"] for run in runs} == kept
    for run_id in list(kept)[:10]:
        assert harmless(hpcscale("cancel", "--yes", run_id).output)
    assert not witness.exists()
    assert not any(c for c in witness.parent.iterdir() if c.name not in {"site", "state", "home"})


def text_keys(type_, at=""):
    """Every key of a site file whose value is text, dotted."""
    for field in msgspec.structs.fields(type_):
        key = f"{at}{field.encode_name}"
        kind = field.type
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from text_keys(kind, f"{key}.")
        elif kind in {str, str | None}:
            yield key


@pytest.mark.parametrize("every", EVERY)
def test_a_hostile_site_file_is_refused_or_shown_plainly(witness, capsys, every):
    from hpcscale.site import Site

    keys = [key for key in text_keys(Site) if key != "name"]
    assert {"transport.host", "state_dir", "fabric.kind", "note"} <= set(keys)
    refused = set()
    for word in words(witness):
        try:
            load_site("generic-ib", [f"{key}={word.text}" for key in keys])
        except InvalidFileError as exc:
            report_error(exc)
            assert harmless(capsys.readouterr().err), word
        for key in ("transport.host", "transport.user", "transport.proxy_jump"):
            try:
                load_site("generic-ib", [f"{key}={word.text}"])
            except InvalidFileError:
                refused.add((key, word.text))
    # nothing with a blank, a quote, a leading dash or a shell's sign reaches ssh's command line
    odd = {w.text for w in words(witness) if set(w.text) & set(" \n;'\"`$&|<>(){}\\!*?#")}
    assert {(key, text) for key, text in refused if key == "transport.host"} >= {
        ("transport.host", text) for text in odd
    }
    path = config_dir() / "sites" / "evil.toml"
    path.parent.mkdir(parents=True)
    for word in words(witness, every=every):
        value = json.dumps(word.text, ensure_ascii=False).replace("\x7f", "\\u007F")
        path.write_text(
            f"as_of = 2026-01-01\ntitle = {value}\nnote = {value}\n[fabric]\nkind = {value}\n"
            f"[partitions.{value}]\nnote = {value}\n[env]\nX = {value}\n"
        )
        for command in (("list",), ("show", "evil", "--origin")):
            shown = hpcscale("site", *command, code=None)
            assert shown is None or harmless(shown.output), word
    assert not witness.exists()
