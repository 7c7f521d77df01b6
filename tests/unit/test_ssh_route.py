"""The way to a login node, from the profile and the user's ssh_config."""

from pathlib import Path

import pytest

from hpcscale.errors import InvalidFileError, NotSentError
from hpcscale.site import load_site
from hpcscale.slurm._ssh_route import Wish, route
from hpcscale.slurm.openssh import OpensshTransport
from hpcscale.slurm.ssh import SshTransport

CONFIG = """
# a comment
Host cluster
    HostName login.example.org
    User ann
    Port 2222
    IdentityFile ~/.ssh/cluster
    IdentitiesOnly yes
    ProxyJump bastion
Host bastion
    HostName=gate.example.org
    ProxyJump outer
Host outer
    User "bob"
Host circle1
    ProxyJump circle2
Host circle2
    ProxyJump circle1
Host tunnel
    ProxyCommand corkscrew %h %p
Host direct
    ProxyJump none
Match host matched
    Port 77
Host *
    User everyone
"""


@pytest.fixture
def ssh_dir():
    directory = Path("~/.ssh").expanduser()
    directory.mkdir()
    (directory / "config").write_text(CONFIG)
    return directory


def test_aliases_users_ports_keys_and_jump_hosts(ssh_dir):
    outer, bastion, login = route(Wish("cluster"))
    assert (login.address, login.port, login.user) == ("login.example.org", 2222, "ann")
    assert login.identity_files == (str(ssh_dir / "cluster"),)
    assert login.only_these_keys
    assert (bastion.address, bastion.port, bastion.user) == ("gate.example.org", 22, "everyone")
    assert (outer.address, outer.user) == ("outer", "bob")
    assert not outer.only_these_keys
    assert [hop.port for hop in route(Wish("matched"))] == [77]
    assert len(route(Wish("direct"))) == 1


def test_the_profile_wins(ssh_dir):
    wish = Wish("cluster", port=1022, user="me", identity_file="~/key", known_hosts="/pinned",
                proxy_jump="x@[::1]:9,third")  # fmt: skip
    first, second, login = route(wish)
    assert (first.address, first.port, first.user) == ("::1", 9, "x")
    assert second.address == "third"
    # a jump host without a key of its own is tried with the login node's
    assert first.identity_files == (str(Path("~/key").expanduser()),)
    assert (login.port, login.user, login.known_hosts) == (1022, "me", (Path("/pinned"),))
    assert login.identity_files == (str(Path("~/key").expanduser()),)
    assert len(route(Wish("cluster", proxy_jump="none"))) == 1


def test_without_a_configuration_the_host_is_the_host():
    (hop,) = route(Wish("login"))
    assert (hop.address, hop.port, hop.user, hop.identity_files) == ("login", 22, None, ())
    assert hop.known_hosts[0] == Path("~/.ssh/known_hosts").expanduser()


def test_includes_stand_where_they_are_written(ssh_dir):
    (ssh_dir / "config.d").mkdir()
    (ssh_dir / "config.d" / "a").write_text("Host included\n  Port 5\n")
    (ssh_dir / "config.d" / "b").write_text("Host other\n  Port 6\n")
    (ssh_dir / "config").write_text("Include config.d/*\nUser global\nHost included\n  User late\n")
    assert route(Wish("included"))[0].port == 5
    assert route(Wish("included"))[0].user == "global"  # the first one counts
    assert route(Wish("other"))[0].port == 6
    (ssh_dir / "config").write_text("Host x\n  Include config.d/*\n")
    with pytest.raises(NotSentError, match="below a Host line"):
        route(Wish("x"))
    (ssh_dir / "config.d" / "a").write_text("Port 5\n")
    (ssh_dir / "config.d" / "b").unlink()
    assert route(Wish("x"))[0].port == 5
    assert route(Wish("y"))[0].port == 22


@pytest.mark.parametrize(
    ("text", "host", "says"),
    [
        (CONFIG, "tunnel", "ProxyCommand of tunnel"),
        (CONFIG, "circle1", "circle"),
        ('Match exec "touch witness"\n  Port 5\n', "x", "Match exec"),
        ("Host a\n  ProxyJump $(id)\n", "a", "is not"),
        ("Host a\n  ProxyJump -oProxyCommand=id\n", "a", "is not"),
        ("CanonicalizeHostname yes\n", "x", "canonicaldomains"),
        ("nonsense\n", "x", "nonsense"),
    ],
)
def test_what_paramiko_cannot_do_is_said_and_nothing_is_run(ssh_dir, monkeypatch, text, host, says):
    monkeypatch.chdir(ssh_dir)
    (ssh_dir / "config").write_text(text)
    with pytest.raises(NotSentError, match=says.replace("(", r"\(")) as caught:
        SshTransport(host).run(["true"])
    assert caught.value.hint
    assert not (ssh_dir / "witness").exists()


def test_a_configuration_that_was_named_must_exist(tmp_path):
    with pytest.raises(NotSentError, match="no file"):
        route(Wish("x", ssh_config=str(tmp_path / "none")))


@pytest.mark.parametrize(
    "override",
    [
        "transport.host=-oProxyCommand=touch witness",
        "transport.host=a;b",
        "transport.host=$(id)",
        "transport.host=a b",
        "transport.user=-l",
        "transport.user=a`id`",
        "transport.user=",
        "transport.proxy_jump=-J",
        "transport.proxy_jump=a;id",
        "transport.proxy_jump=a b",
        "transport.cluster=-M",
        "transport.cluster=a,b",
        "transport.cluster=a\nb",
    ],
)
def test_words_that_reach_command_lines_are_plain(override):
    with pytest.raises(InvalidFileError, match=override.partition("=")[0]):
        load_site("generic-ib", [override])


def test_the_line_that_opens_a_master_is_one_to_type():
    transport = OpensshTransport("login", user="ann", port=2222, proxy_jump="gate",
                                 ssh_config="/etc/my config")  # fmt: skip
    line = transport.master_command()
    assert line.startswith("ssh -fN -o ControlMaster=yes ")
    assert "-F '/etc/my config' -J gate -p 2222" in line
    assert line.endswith(" ann@login")
