"""The audit log: each act before it is done, and no line can go unnoticed."""

import json
import os
import re
import threading
from pathlib import Path

import msgspec
import pytest
from fake_sites import Sites

from hpcscale.burst.audit import AuditLog, anchor, audited, data_hash
from hpcscale.burst.handover import Handover
from hpcscale.burst.heads import compare, head_line
from hpcscale.cli.cancel import _audited, _cancel
from hpcscale.errors import StateError
from hpcscale.spec import BurstTerms, SecretSource


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "audit.log")


@pytest.fixture
def sites(tmp_path, monkeypatch, log):
    monkeypatch.setattr("hpcscale.burst.acts.BEGIN_S", 0.0)
    sites = Sites(tmp_path)
    sites.connections = {name: audited(c, log) for name, c in sites.connections.items()}
    sites.fill()
    yield sites
    sites.ledger.close()


def lines(log):
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def test_lines_follow_each_other(log):
    heads = [log.add("update", job=str(n)) for n in range(5)]
    head, hashes = log.verify()
    assert head == heads[-1]
    assert [hashes[h.number] for h in heads] == [h.sha256 for h in heads]
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_a_line_follows_one_of_any_length(log):
    log.add("update", fields={"ExcNodeList": ",".join(f"node{n * n}" for n in range(10_000))})
    log.add("cancel", job="1")
    head, _ = log.verify()
    assert head.number == 2


@pytest.mark.parametrize(
    ("change", "number"),
    [("edit", 4), ("remove", 3), ("insert", 3), ("swap", 3), ("remove first", 1)],
)
def test_the_first_line_that_does_not_follow_is_named(log, change, number):
    for n in range(6):
        log.add("update", job=str(n))
    text = log.path.read_text().splitlines()
    if change == "edit":
        text[2] = text[2].replace('"job": "2"', '"job": "9"')
    elif change == "remove":
        del text[2]
    elif change == "insert":
        text.insert(2, text[1])
    elif change == "swap":
        text[2], text[3] = text[3], text[2]
    else:
        del text[0]
    log.path.write_text("\n".join(text) + "\n")
    with pytest.raises(StateError, match=f"line {number} does not follow"):
        log.verify()


def test_a_line_that_a_crash_cut_short_is_vouched_for_by_the_next(log):
    log.add("update", job="1")
    with log.path.open("a") as file:
        file.write('{"n": 2, "at": "20')
    log.add("update", job="3")
    head, _ = log.verify()
    assert head.number == 3
    text = log.path.read_text().splitlines()
    text[1] += "x"
    log.path.write_text("\n".join(text) + "\n")
    with pytest.raises(StateError, match="line 3 does not follow"):
        log.verify()


def test_many_at_once_make_one_chain(log):
    threads = [
        threading.Thread(target=lambda: [AuditLog(log.path).add("x") for _ in range(20)])
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.verify()[0].number == 120


def test_what_cannot_be_written_down_is_not_done(sites, log):
    job = sites.submit()
    log.path.unlink()
    log.path.mkdir()
    done = sites.tick()
    assert any("audit log" in problem for problem in done.problems)
    assert not sites.cloud.jobs
    assert sites.excluded(job) == ""


def test_each_act_of_a_move_is_in_it_before_it_is_done(sites, log):
    job = sites.submit()
    sites.tick()
    sites.both(40)
    sites.begin(job)
    acts = [(line["act"], line["site"]) for line in lines(log)]
    for act, site in [
        ("submit", "lab-onprem"),
        ("submit", "lab-cloud"),
        ("update", "lab-onprem"),
        ("claim", "lab-onprem"),
        ("decide", "lab-cloud"),
        ("cancel", "lab-onprem"),
    ]:
        assert (act, site) in acts, acts
        acts = acts[acts.index((act, site)) :]
    found = {line["act"]: line for line in lines(log)}
    target = sites.target(job).submission_id
    assert any(line.get("fields", {}).get("ExcNodeList") == "node[1-4]" for line in lines(log))
    decision = found["decide"]
    assert found["claim"]["owner"] == target
    assert (decision["word"], decision["submission"]) == ("opened", target)
    assert log.verify()[0].number == len(lines(log))


def test_taking_back_is_in_it(sites, log):
    job = sites.submit()
    sites.tick()
    before = len(lines(log))
    Handover(sites.ledger, sites, sites.ledger.path.parent).undo(sites.move(job))
    acts = [line["act"] for line in lines(log)][before:]
    assert [act for act in acts if act != "update"] == ["decide", "cancel", "revoke"]


def test_decisions_are_in_it_with_the_hash_of_what_they_were_made_on(sites):
    job = sites.submit()
    sites.tick()
    (decided,) = [line for line in lines(AuditLog()) if line["act"] == "decide to move"]
    (decision,) = sites.ledger.decisions(job.run_id)
    assert decided["run"] == job.run_id
    assert decided["decision"] == data_hash(decision.data)


def test_no_secret_is_in_it(sites, log, monkeypatch):
    monkeypatch.setenv("TOKEN", "planted-secret-1234")
    sites.submit(
        secrets={"TOKEN": SecretSource(kind="env", name="TOKEN")}, env={"A": "planted-env"}
    )
    sites.tick()
    assert "planted" not in log.path.read_text() + AuditLog().path.read_text()


def test_heads_kept_at_a_site_tell_of_a_log_that_was_rewritten(sites, tmp_path):
    log = AuditLog(tmp_path / "own.log")
    for n in range(3):
        log.add("update", job=str(n))
    site = sites("lab-cloud")
    assert anchor(site, *log.verify()) == 0
    log.add("cancel", job="3")
    assert anchor(site, *log.verify()) == 1
    assert anchor(site, *log.verify()) == 2
    kept = log.path.read_text().splitlines()
    log.path.write_text("\n".join(kept[:3]) + "\n")  # its end is cut off: the chain still holds
    assert log.verify()[0].number == 3
    with pytest.raises(StateError, match="line 4 is not what it was when lab-cloud was told"):
        anchor(site, *log.verify())
    log.path.unlink()
    for n in range(4):
        log.add("update", job=f"other {n}")  # a whole chain, and another
    with pytest.raises(StateError, match="rewritten or cut"):
        anchor(site, *log.verify())


def test_each_head_goes_to_syslog(log, monkeypatch):
    said = []
    monkeypatch.setattr("syslog.syslog", lambda *words: said.append(words[-1]))
    head = log.add("update", job="1")
    assert said == [
        f'hpcscale audit: line 1 of uid {os.getuid()} is {head.sha256}, in "{log.path}"'
    ]
    assert re.fullmatch(r"[0-9a-f]{64}", head.sha256)


@pytest.mark.parametrize("name", ["audit.log", 'a "b" \\c', "two\nlines, in \x1b[31m", "Grüße"])
def test_a_head_is_read_back_of_whatever_path(name):
    path = Path("/home/somebody") / name
    line = head_line(path, 1000, 3, "ab" * 32)
    assert line.isascii()
    assert "\n" not in line
    stamped = f"Nov 22 21:00:00 login1 hpcscale: {line}"
    others = [
        "Nov 22 21:00:00 login1 sshd[3]: hpcscale audit: line 3",
        head_line(path, 1001, 3, "cd" * 32),
        head_line(Path("/home/other"), 1000, 3, "cd" * 32),
        "hpcscale audit: line 3 of uid 1000 is " + "cd" * 32 + ', in "\\x"',
    ]
    assert compare([*others, stamped], path, 1000, {3: "ab" * 32}, "auth.log") == 1
    with pytest.raises(StateError, match="line 3 is not what it was") as caught:
        compare([*others, stamped], path, 1000, {3: "cd" * 32}, "auth.log")
    assert caught.value.hint == "the head is in auth.log:5"


def test_hpcscale_cancel_writes_down_what_it_does_to_a_job_that_may_move(tmp_path, monkeypatch):
    sites = Sites(tmp_path)
    with sites.ledger:
        job = sites.submit()
        stays = sites.ledger.new_run(
            msgspec.structs.replace(sites.ledger.run(job.run_id).spec, burst=BurstTerms()),
            site="lab-onprem",
        )
        monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path / "own"))
        assert _audited(sites.ledger, sites, stays.run_id) is sites
        assert _cancel(sites.ledger, sites, sites.ledger.attempt(job.submission_id), None) == (
            "cancelled"
        )
    (line,) = lines(AuditLog())
    assert (line["act"], line["job"]) == ("cancel", str(job.ref.job_id))
