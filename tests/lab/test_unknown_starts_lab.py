"""What is decided where little is shown: an ordinary user, no slurmdbd, other people's jobs hidden."""

import os
import re

import pytest
from lab_helpers import job_state, sbatch, until
from lab_person import CLOUD, ONPREM, Person, job, let_in

pytestmark = [
    pytest.mark.slow,  # a lab of its own, and a dozen commands
    pytest.mark.skipif(os.getuid() != 0, reason="only root's slurmd runs jobs of two users"),
]


def decided(person, job_id, *lines):
    """What ``burst plan`` says of one job, under a policy of these lines."""
    policy = person.home / "policy.toml"
    head = [f'from = "{ONPREM}"', f'to = ["{CLOUD}"]', 'policy = "value"', "deadline = false"]
    policy.write_text("\n".join([*head, *lines, ""]))
    said = person.data("burst", "plan", "--policy", policy)
    (decision,) = [d for d in said["decisions"] if d["ref"] == f"{ONPREM}:{job_id}"]
    shown = person.hpcscale("burst", "explain", f"{ONPREM}:{job_id}", "--policy", policy).stdout
    first = decision["reason"].split(";")[0]
    assert said_of(first) in said_of(shown), "explain says the same a moment later"
    assert f": {decision['action']} to {CLOUD}" in shown
    return decision


def said_of(text):
    """Words without figures."""
    return re.sub(r"\d\S*", "#", text)


def levels(person, job_id):
    """What ``forecast`` says of the same job."""
    return person.data("forecast", "--site", ONPREM, f"{ONPREM}:{job_id}")[0]


def hide_others(site):
    """PrivateData=jobs, from now on."""
    conf = site.paths.slurm_conf
    conf.write_text(conf.read_text() + "PrivateData=jobs,usage\n")
    site.exec(["scontrol", "reconfigure"], check=True)

    def hidden():
        shown = site.exec(["scontrol", "show", "config"], check=True).stdout
        return any("PrivateData" in x and "jobs" in x for x in shown.splitlines())

    until(hidden, 60, "the controller has read it")


def test_unknown_starts_leave_the_decision_to_the_threshold(lab_factory):
    lab = lab_factory(nodes=2)
    let_in(lab)
    person, site = Person(lab, "bin"), lab.site(ONPREM)
    stranger = sbatch(site, "-N2", "--exclusive", "-t60", "-o/dev/null")
    until(lambda: job_state(site, stranger) == "RUNNING", 60, "the nodes are taken")
    mine = person.submit("exit 0", "--burst", "auto")["job_id"]

    # no slurmdbd: the stranger is seen, and limits are all that is known
    said = levels(person, mine)
    assert (said["queue_level"], said["history_level"]) == ("full", "absent")
    stay = decided(person, mine, "hour_usd = 0.01", 'max_wait = "1s"')
    assert (stay["action"], stay["rule"]) == ("stay", None)
    assert stay["reason"].startswith("start p50 "), "a known start is not left to the threshold"
    move = decided(person, mine, "hour_usd = 10000")
    assert (move["action"], move["rule"]) == ("move", "value")

    hide_others(site)
    assert job(person, stranger) == {}, "the stranger is not seen any more"
    slurms_own = "use_start_estimate = false"
    assert levels(person, mine)["queue_level"] == "own jobs only"
    stay = decided(person, mine, "hour_usd = 10000", slurms_own, 'max_wait = "10h"')
    assert (stay["action"], stay["start_p50"], stay["start_p90"]) == ("stay", None, None)
    unknown = f"when it starts here is unknown ({ONPREM} hides other people's jobs (PrivateData))"
    assert stay["reason"].startswith(f"{unknown}; it has waited ")
    assert "of max_wait = 10h" in stay["reason"]
    # a dear hour does not move it, and a cheap one does not keep it
    short = ("hour_usd = 0.01", slurms_own, 'max_wait = "1s"')
    until(lambda: decided(person, mine, *short)["action"] == "move", 60, "it waited a second")
    move = decided(person, mine, *short)
    assert move["rule"] == "max_wait"
    assert move["reason"].startswith(f"{unknown}; it has waited ")
    stay = decided(person, mine, "hour_usd = 10000", slurms_own)
    assert (stay["action"], stay["rule"]) == ("stay", None)
    assert stay["reason"] == f"{unknown}, and the policy sets no max_wait"

    assert job(person, mine)["JobState"] == "PENDING", "nothing but reading was done"
    assert person.data("burst", "status", "--all")["moves"] == []
