"""Which policy holds without, with a named and with a written one."""

import pytest

from hpcscale.burst.policies import find_policy, policy_names
from hpcscale.burst.policy import PolicyKind
from hpcscale.errors import NotFoundError, UsageError
from hpcscale.settings import config_dir, etc_dir

LAB_CLOUD = '[transport]\nhost = "127.0.0.1"\nuser = "me"\nslurm_conf = "/lab/slurm.conf"\n'


@pytest.fixture
def lab_sites(monkeypatch):
    """As if a lab were up: lab-onprem overflows to lab-cloud, and aws-p5 has no login node."""
    put(config_dir() / "sites", "lab-cloud.toml", LAB_CLOUD)
    monkeypatch.setenv("HPCSCALE_DEFAULT_SITE", "lab-onprem")
    monkeypatch.delenv("HPCSCALE_BURST_POLICY", raising=False)


def put(directory, name, text):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)


def test_each_policy_comes_along_as_a_file(lab_sites):
    names = policy_names()
    assert set(names) == set(PolicyKind) - {PolicyKind.RULES}
    for name in names:
        policy = find_policy(name)
        assert (policy.kind, policy.from_site, policy.to) == (name, "lab-onprem", ("lab-cloud",))


def test_without_a_word_it_is_value(lab_sites):
    assert find_policy().kind is PolicyKind.VALUE


def test_the_configured_one(lab_sites, monkeypatch):
    put(etc_dir(), "config.toml", 'burst_policy = "deadline"\n')
    assert find_policy().kind is PolicyKind.DEADLINE
    put(config_dir(), "config.toml", 'burst_policy = "mine.toml"\n')
    put(config_dir(), "mine.toml", 'policy = "always"\nto = ["aws-p5"]\n')
    assert (find_policy().kind, find_policy().to) == (PolicyKind.ALWAYS, ("aws-p5",))
    monkeypatch.setenv("HPCSCALE_BURST_POLICY", "no-wait")
    assert find_policy().kind is PolicyKind.NO_WAIT
    assert find_policy("never").kind is PolicyKind.NEVER


def test_a_file_of_a_stronger_layer_holds(lab_sites):
    put(etc_dir() / "policies", "value.toml", 'policy = "value"\nhour_usd = 5\n')
    put(etc_dir() / "policies", "night.toml", 'policy = "always"\nonly_between = "20:00-06:00"\n')
    assert find_policy().hour_usd == 5
    assert find_policy("night").kind is PolicyKind.ALWAYS
    put(config_dir() / "policies", "value.toml", 'policy = "value"\nhour_usd = 7\n')
    assert find_policy().hour_usd == 7


def test_an_unknown_name_says_which_are_known(lab_sites):
    with pytest.raises(NotFoundError, match="no policy is named 'valu', and no file") as caught:
        find_policy("valu")
    assert caught.value.hint == "--policy value"


def test_no_origin_and_no_target_say_what_to_write(monkeypatch):
    monkeypatch.delenv("HPCSCALE_DEFAULT_SITE", raising=False)
    with pytest.raises(UsageError, match="not whose queue overflows") as caught:
        find_policy()
    assert "default_site" in caught.value.hint
    monkeypatch.setenv("HPCSCALE_DEFAULT_SITE", "generic-ib")
    with pytest.raises(UsageError, match="no site that can be reached from generic-ib"):
        find_policy()
