"""Login nodes as sites have them: behind jump hosts, with aliases, agents, masters and outages."""

import os
import shlex
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from sshd_helpers import Relay, Sshd, keygen

from hpcscale.connect import make_transport
from hpcscale.errors import HostKeyError, NotSentError, UnreachableError
from hpcscale.lab.process import patience
from hpcscale.site import TransportConfig, TransportKind, load_site
from hpcscale.slurm import _ssh_login
from hpcscale.slurm.openssh import OpensshTransport
from hpcscale.slurm.ssh import SshTransport

pytestmark = pytest.mark.lab

KINDS = ["ssh", "openssh"]
HOW = [
    pytest.param(("ssh", "profile"), id="ssh-profile"),
    pytest.param(("ssh", "config"), id="ssh-config", marks=pytest.mark.slow),
    pytest.param(("openssh", "profile"), id="openssh-profile", marks=pytest.mark.slow),
    pytest.param(("openssh", "config"), id="openssh-config"),
]


@pytest.fixture
def target(lab, monkeypatch):
    """The lab's login node, by its profile."""
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", lab.env()["HPCSCALE_CONFIG_DIR"])
    return load_site("lab-cloud").site.transport


@pytest.fixture
def key(tmp_path):
    return keygen(tmp_path / "key")


@pytest.fixture
def sshd(lab, key):
    sshd = Sshd(lab.site("lab-cloud"), "second", key)
    yield sshd
    sshd.stop()


def config(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    return str(file)


def jump_files(tmp_path, sshd, key, target):
    """An ssh_config that knows the jump host and the alias of the login node behind it."""
    hosts = tmp_path / "known"
    hosts.write_text(sshd.known_hosts_line())
    (tmp_path / "more").write_text(
        f"Host bastion\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {sshd.user}\n"
        f"  IdentityFile {key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {hosts}\n"
    )
    return config(
        tmp_path,
        "config",
        f"Include {tmp_path}/mo*\n"
        f"Host lab-login\n  HostName 127.0.0.1\n  Port {target.port}\n  User {target.user}\n"
        f"  IdentityFile {target.identity_file}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {target.known_hosts}\n  ForwardAgent yes\n"
        "  ProxyJump bastion\n",
    )


@pytest.mark.parametrize("how", HOW)
def test_through_a_jump_host(tmp_path, sshd, key, target, how):
    kind, by = how
    file = jump_files(tmp_path, sshd, key, target)
    if by == "config":
        wish = TransportConfig(kind=TransportKind(kind), host="lab-login", ssh_config=file)
    else:
        wish = TransportConfig(
            kind=TransportKind(kind),
            host=target.host,
            port=target.port,
            user=target.user,
            identity_file=target.identity_file,
            known_hosts=target.known_hosts,
            proxy_jump="bastion",
            ssh_config=file,
        )
    transport = make_transport(wish, "x")
    try:
        assert transport.run(["printf", "<%s>", "a b", "$(id)"]).stdout == "<a b><$(id)>"
        assert sshd.logins() == 1
        transport.put_bytes(b"x" * 100_000, "/tmp/through-the-jump")
        assert len(transport.read_bytes("/tmp/through-the-jump")) == 100_000
        # neither kind takes the user's agent along, whatever the configuration says
        assert transport.run(["printenv", "SSH_AUTH_SOCK"]).stdout == ""
        if kind == "ssh":
            assert sshd.logins() == 1  # one connection for all of it
        sshd.kill()
        with pytest.raises(UnreachableError):
            transport.run(["true"])
        sshd.start()
        assert transport.run(["echo", "again"]).stdout == "again\n"
    finally:
        transport.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_jump_host_is_refused(tmp_path, sshd, key, target, kind):
    file = jump_files(tmp_path, sshd, key, target)
    (tmp_path / "known").write_text("")
    transport = make_transport(
        TransportConfig(kind=TransportKind(kind), host="lab-login", ssh_config=file), "x"
    )
    with pytest.raises(HostKeyError, match=r"bastion|jump host") as caught:
        transport.run(["true"])
    assert "fingerprint" in caught.value.hint
    assert (tmp_path / "known").read_text() == ""
    assert sshd.logins() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_jump_host_that_does_not_reach_on(tmp_path, sshd, key, target, kind):
    file = jump_files(tmp_path, sshd, key, target)
    wish = TransportConfig(
        kind=TransportKind(kind),
        host="127.0.0.1",
        port=1,
        user="x",
        proxy_jump="bastion",
        ssh_config=file,
    )
    with pytest.raises(NotSentError):
        make_transport(wish, "x").run(["true"])


def own_config(tmp_path, sshd, key, extra=""):
    known = tmp_path / "known"
    known.write_text(sshd.known_hosts_line())
    return config(
        tmp_path,
        "config",
        f"Host login\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {sshd.user}\n"
        f"  IdentityFile {key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n{extra}",
    )


def askpass(tmp_path, answer):
    """What would ask the user; leaves a trace when it did."""
    program = tmp_path / "askpass"
    program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho {answer}\n")
    program.chmod(0o755)
    return {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":9"}


def test_a_login_that_asks_goes_through_the_master_that_the_user_opens(lab, tmp_path, monkeypatch):
    """The key has a passphrase: it stands for the second factor that only a person has."""
    key = keygen(tmp_path / "key", "second factor")
    sshd = Sshd(lab.site("lab-cloud"), "second", key)
    try:
        # the lab's directory has a short path, as a socket needs
        control = f"{lab.state.directory}/ssh/cm-%C"
        file = own_config(tmp_path, sshd, key, f"  ControlPath {control}\n")
        person = askpass(tmp_path, "second factor")
        for name, value in person.items():
            monkeypatch.setenv(name, value)
        transport = OpensshTransport("login", ssh_config=file)
        with pytest.raises(NotSentError) as caught:
            transport.run(["true"])
        assert not (tmp_path / "asked").exists()  # we never do
        line = caught.value.hint.partition(": ")[2]
        assert line == transport.master_command()
        assert line.startswith("ssh -fN -o ControlMaster=yes")
        subprocess.run(
            ["bash", "-c", line], env={**os.environ, **person}, check=True, timeout=patience(60),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert (tmp_path / "asked").read_text() == "asked\n"
        for n in range(5):
            assert transport.run(["echo", str(n)]).stdout == f"{n}\n"
        assert sshd.logins() == 1
        # the master goes: said again, at once, with the same line
        assert transport.run(["true"]).returncode == 0
        ended = ["ssh", "-F", file, "-O", "exit", "login"]
        subprocess.run(ended, check=True, timeout=patience(60), capture_output=True)
        with pytest.raises(NotSentError) as caught:
            transport.run(["true"])
        assert caught.value.hint.endswith(line)
        assert (tmp_path / "asked").read_text() == "asked\n"
    finally:
        sshd.stop()


def test_a_locked_key_wants_the_agent(lab, tmp_path, monkeypatch):
    key = keygen(tmp_path / "key", "secret")
    sshd = Sshd(lab.site("lab-cloud"), "second", key)
    (tmp_path / "known").write_text(sshd.known_hosts_line())
    person = askpass(tmp_path, "secret")
    for name, value in person.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    agent = None
    try:
        transport = SshTransport(
            "127.0.0.1", port=sshd.port, user=sshd.user, identity_file=str(key),
            known_hosts=str(tmp_path / "known"),
        )  # fmt: skip
        with pytest.raises(NotSentError, match="passphrase") as caught:
            transport.run(["true"])
        assert not (tmp_path / "asked").exists()
        assert f"ssh-add {shlex.quote(str(key))}" in caught.value.hint
        socket = str(tmp_path / "agent")
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        deadline = time.monotonic() + patience(30)
        while not os.path.exists(socket) and time.monotonic() < deadline:  # noqa: PTH110
            time.sleep(0.02)
        subprocess.run(["ssh-add", str(key)], env={**os.environ, **person}, check=True,
                       timeout=patience(60), capture_output=True, stdin=subprocess.DEVNULL)  # fmt: skip
        assert transport.run(["echo", "in"]).stdout == "in\n"
        transport.close()
        by_default = SshTransport(
            "127.0.0.1", port=sshd.port, user=sshd.user, known_hosts=str(tmp_path / "known")
        )
        assert by_default.run(["echo", "in"]).stdout == "in\n"
        assert by_default.run(["printenv", "SSH_AUTH_SOCK"]).returncode != 0
        by_default.close()
    finally:
        if agent is not None:
            agent.kill()
            agent.wait()
        sshd.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_an_sshd_that_goes_and_comes_back(tmp_path, sshd, key, kind, monkeypatch):
    file = own_config(tmp_path, sshd, key)
    transport = make_transport(
        TransportConfig(kind=TransportKind(kind), host="login", ssh_config=file), "x"
    )
    witness = f"/tmp/witness-{sshd.port}"
    try:
        assert transport.run(["echo", "1"]).stdout == "1\n"
        # in the middle of a command: no answer, and it is not sent a second time
        killer = threading.Thread(
            target=lambda: (wait_for(transport_reader(sshd), witness), sshd.kill())
        )
        killer.start()
        with pytest.raises(UnreachableError) as caught:
            transport.run(["sh", "-c", f"echo once >> {witness}; sleep 30"], timeout_s=40)
        killer.join(30)
        assert not isinstance(caught.value, NotSentError)
        assert transport_reader(sshd)(witness) == "once\n"
        # away for a moment: the next command waits for it instead of failing
        pauses = []

        def pause(seconds):
            if not pauses:
                sshd.start()
            pauses.append(seconds)
            time.sleep(seconds)

        module = sys.modules[type(transport).__module__]
        monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "sleep": pause}))
        assert transport.run(["echo", "2"]).stdout == "2\n"
        assert pauses
        assert transport_reader(sshd)(witness) == "once\n"
    finally:
        transport.close()


def transport_reader(sshd):
    """Reads a file of the site without ssh."""
    return lambda path: sshd.site.exec(["cat", path]).stdout


def wait_for(read, path, timeout_s=20):
    deadline = time.monotonic() + patience(timeout_s)
    while not read(path) and time.monotonic() < deadline:
        time.sleep(0.05)


def test_an_idle_connection_is_kept_alive_and_a_dead_one_replaced(tmp_path, sshd, key, monkeypatch):
    monkeypatch.setattr(_ssh_login, "_KEEPALIVE_S", 1)
    relay = Relay(sshd.port)
    known = tmp_path / "known"
    known.write_text(sshd.known_hosts_line().replace(str(sshd.port), str(relay.port)))
    transport = SshTransport(
        "127.0.0.1", port=relay.port, user=sshd.user, identity_file=str(key),
        known_hosts=str(known), connect_timeout_s=2,
    )  # fmt: skip
    try:
        assert transport.run(["echo", "1"]).stdout == "1\n"
        before = relay.sent
        deadline = time.monotonic() + patience(30)
        while relay.sent == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert relay.sent > before  # nobody asked for anything
        assert relay.connections == 1
        relay.go_deaf()  # as when a firewall forgets a connection
        began = time.monotonic()
        assert transport.run(["echo", "2"]).stdout == "2\n"
        assert time.monotonic() - began < patience(8)
        assert relay.connections == 2
    finally:
        transport.close()
        relay.close()


def test_a_command_that_ends_as_ssh_would_is_not_sent_again(tmp_path, sshd, key):
    """Exit code 255 and ssh's own words: it ran, so it is not for ssh to be tried again."""
    transport = OpensshTransport("login", ssh_config=own_config(tmp_path, sshd, key))
    witness = f"/tmp/witness-{sshd.port}"
    script = (
        f"echo ran >> {witness}; echo 'ssh: connect to host x port 22: Connection refused' >&2; "
        "exit 255"
    )
    assert transport.run(["sh", "-c", script]).returncode == 255
    assert transport_reader(sshd)(witness) == "ran\n"
    assert transport.run(["sh", "-c", "echo said >&2"]).stderr == "said\n"
