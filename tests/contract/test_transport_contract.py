"""What every Transport does, on real files and processes."""

import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from hpcscale.connect import connect
from hpcscale.errors import (
    HostKeyError,
    HpcscaleError,
    NotFoundError,
    NotSentError,
    SubmitUnknownError,
    UnreachableError,
)
from hpcscale.lab import faults
from hpcscale.site import load_site
from hpcscale.slurm import remote
from hpcscale.slurm.cli import CliClient
from hpcscale.slurm.openssh import OpensshTransport
from hpcscale.slurm.ssh import SshTransport

NASTY = ["a b", "$(id) `id`", 'it\'s "q"', "new\nline", "back\\slash!", "*?[a]~", "", "é 名"]


def test_argv_arrives_as_given(place):
    done = place.transport.run(["printf", "<%s>", *NASTY])
    assert done.returncode == 0
    assert done.stdout == "".join(f"<{w}>" for w in NASTY)


def test_exit_codes_and_streams(place):
    done = place.transport.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert place.transport.run(["sh", "-c", "kill -9 $$"]).returncode == 137
    assert place.transport.run(["sh", "-c", "exit 255"]).returncode == 255
    assert place.transport.run(["no-such-command-anywhere"]).returncode == 127
    assert place.transport.run(["printf", r"\377ok"]).stdout == "\ufffdok"


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_standard_input_arrives_whole(place, size):
    data = bytes(range(256)) * (size // 256 + 1)
    done = place.transport.run(["wc", "-c"], stdin=data[:size])
    assert done.stdout.strip() == str(size)


def test_a_command_may_leave_its_input_unread(place):
    assert place.transport.run(["true"], stdin=b"x" * 1_000_000).returncode == 0
    assert place.transport.run(["cat"]).stdout == ""


def test_environment_and_directory(place):
    env = {"HPCSCALE_TEST": "a b'c\"$x\n=", "SLURM_TIME_FORMAT": "%s"}
    done = place.transport.run(["sh", "-c", 'printf %s "$HPCSCALE_TEST"'], env=env)
    assert done.stdout == env["HPCSCALE_TEST"]
    assert place.transport.run(["printenv", "SLURM_TIME_FORMAT"], env=env).stdout == "%s\n"
    assert place.transport.run(["pwd"], cwd=place.dir).stdout.strip() == place.dir
    with pytest.raises(NotFoundError, match="does not exist"):
        place.transport.run(["pwd"], cwd=f"{place.dir}/nowhere")


def test_a_timeout_kills_the_whole_process_group(place):
    mark = f"47{time.time_ns() % 10**9}"
    script = f"echo $$ > {place.dir}/pid; sleep {mark} & sleep {mark}"
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="within 1 s"):
        place.transport.run(["sh", "-c", script], timeout_s=1)
    assert time.monotonic() - began < 12
    left = ["sh", "-c", f"ps -eo args | grep '[s]leep {mark}' || true"]
    place.until(lambda: place.transport.run(left).stdout == "", "its children are gone", 10)


def test_files_go_and_come(place, tmp_path):
    transport, path = place.transport, f"{place.dir}/file name"
    data = os.urandom(300_000)
    transport.put_bytes(data, path, mode=0o600)
    assert remote_mode(transport, path) == "600"
    assert transport.read_bytes(path) == data
    assert transport.read_bytes(path, offset=10, limit=5) == data[10:15]
    assert transport.read_bytes(path, offset=10**9) == b""
    transport.get_file(path, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    program = tmp_path / "program"
    program.write_bytes(b"#!/bin/sh\necho hi\n")
    program.chmod(0o755)
    transport.put_file(program, f"{place.dir}/program")
    assert transport.run([f"{place.dir}/program"]).stdout == "hi\n"
    transport.put_bytes(b"new", path)  # replaces
    assert transport.read_bytes(path) == b"new"
    assert remote_mode(transport, path) == "600"  # what was there had it too; so has a new one:
    transport.put_bytes(b"new", f"{path} 2")
    assert remote_mode(transport, f"{path} 2") == "600"
    leftovers = [n for n in remote.list_dir(transport, place.dir) if n.endswith(".tmp")]
    assert leftovers == []


def remote_mode(transport, path):
    return transport.run(["stat", "-c%a", path]).stdout.strip()


def test_file_errors_name_the_file(place, tmp_path):
    with pytest.raises(NotFoundError, match="nowhere"):
        place.transport.read_bytes(f"{place.dir}/nowhere")
    with pytest.raises(NotFoundError, match="nowhere"):
        place.transport.get_file(f"{place.dir}/nowhere", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(NotFoundError, match="nowhere"):
        place.transport.put_bytes(b"x", f"{place.dir}/nowhere/x")
    with pytest.raises(HpcscaleError, match="cannot"):
        place.transport.put_bytes(b"x", place.dir)  # a directory


def test_small_acts(place):
    transport = place.transport
    deep = f"{place.dir}/a b/c"
    remote.mkdir(transport, deep)
    remote.mkdir(transport, deep)
    assert remote_mode(transport, deep) == "700"
    assert remote.exists(transport, deep)
    assert not remote.exists(transport, f"{deep}/x")
    transport.put_bytes(b"1", f"{deep}/-x\nnew line")
    assert remote.list_dir(transport, deep) == ["-x\nnew line"]
    with pytest.raises(NotFoundError):
        remote.list_dir(transport, f"{deep}/x")
    remote.remove(transport, f"{deep}/x")
    with pytest.raises(HpcscaleError):
        remote.remove(transport, deep)  # a directory, not asked for
    remote.remove(transport, f"{place.dir}/a b", recursive=True)
    assert not remote.exists(transport, deep)


def test_a_link_is_made_once(place):
    path = f"{place.dir}/claim"
    assert remote.link_once(place.transport, path, b"first")
    assert not remote.link_once(place.transport, path, b"second")
    assert place.transport.read_bytes(path) == b"first"
    assert remote.list_dir(place.transport, place.dir) == ["claim"]


def test_expand(place):
    home = place.transport.run(["sh", "-c", "echo $HOME"]).stdout.strip()
    user = place.transport.run(["id", "-un"]).stdout.strip()
    assert remote.expand(place.transport, "~/x/$USER/${HOME}") == f"{home}/x/{user}/{home}".replace(
        "//", "/"
    )
    assert remote.expand(place.transport, "/a/../b/$(id)") == "/b/$(id)"
    assert remote.expand(place.transport, "rel") == f"{home}/rel"
    with pytest.raises(NotFoundError, match="NO_SUCH_VARIABLE"):
        remote.expand(place.transport, "$NO_SUCH_VARIABLE/x")


def test_a_tree_goes_and_comes(place, tmp_path):
    source = tmp_path / "source"
    (source / "sub dir" / "empty").mkdir(parents=True)
    (source / "sub dir" / "data\n1").write_bytes(os.urandom(200_000))
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    (source / "link").symlink_to("run.sh")
    target = f"{place.dir}/tree"
    remote.put_tree(place.transport, source, target)
    assert sorted(remote.list_dir(place.transport, target)) == ["link", "run.sh", "sub dir"]
    back = tmp_path / "back"
    names = remote.get_tree(place.transport, target, back)
    assert sorted(names) == ["link", "run.sh", "sub dir/data\n1"]
    assert (back / "sub dir" / "data\n1").read_bytes() == (
        source / "sub dir" / "data\n1"
    ).read_bytes()
    assert (back / "link").readlink() == Path("run.sh")
    assert stat.S_IMODE((back / "run.sh").stat().st_mode) == 0o755
    assert (back / "sub dir" / "empty").is_dir()
    only = tmp_path / "only"
    assert remote.get_tree(place.transport, target, only, ["run.sh"]) == ["run.sh"]
    with pytest.raises(NotFoundError):
        remote.get_tree(place.transport, target, only, ["nowhere"])
    assert remote.list_dir(place.transport, place.dir) == ["tree"]


def test_a_tree_that_leads_out_is_refused(place, tmp_path):
    evil = f"{place.dir}/evil"
    remote.mkdir(place.transport, evil)
    assert place.transport.run(["ln", "-s", "/etc", f"{evil}/out"]).returncode == 0
    place.transport.put_bytes(b"x", f"{evil}/first")
    with pytest.raises(HpcscaleError, match="leads out"):
        remote.get_tree(place.transport, evil, tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


# ---- real places only


def test_startup_files_do_not_change_a_submit(real_place, monkeypatch):
    """A .bashrc or environment that exports SBATCH_PARTITION and the like has no say."""
    poison = {"SBATCH_PARTITION": "nosuch", "SQUEUE_FORMAT": "%i", "SQUEUE_STATES": "FAILED",
              "SLURM_TIME_FORMAT": "relative", "SINFO_FORMAT": "%n", "SBATCH_HOLD": "x"}  # fmt: skip
    home = None
    if real_place.transport.is_local:
        for name, value in poison.items():
            monkeypatch.setenv(name, value)
    else:
        home = real_place.transport.run(["sh", "-c", "echo $HOME"]).stdout.strip()
        text = "".join(f"export {k}={v}\n" for k, v in poison.items())
        real_place.transport.put_bytes(text.encode(), f"{home}/.bashrc")
    try:
        seen = real_place.transport.run(["env"]).stdout
        assert not [line for line in seen.splitlines() if line.partition("=")[0] in poison]
        job = real_place.client.sbatch(
            "#!/bin/sh\n#SBATCH --partition=gpu --output=/dev/null\nsleep 60\n", ["--time=5"]
        )
        status = real_place.client.show(job)
        assert status.partition == "gpu"
        assert status.submit_time is not None
        assert status.time_limit_s == 300
        assert real_place.client.cancel(job)
    finally:
        if home:
            remote.remove(real_place.transport, f"{home}/.bashrc")


def ssh_kinds(config, **changes):
    options = {
        "port": config.port,
        "user": config.user,
        "identity_file": config.identity_file,
        "known_hosts": config.known_hosts,
        **changes,
    }
    return [SshTransport(config.host, **options), OpensshTransport(config.host, **options)]


@pytest.fixture
def cloud_config(lab, monkeypatch):
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", lab.env()["HPCSCALE_CONFIG_DIR"])
    return load_site("lab-cloud").site.transport


@pytest.mark.lab
@pytest.mark.parametrize("index", [0, 1], ids=["ssh", "openssh"])
def test_an_unknown_or_changed_host_key_is_refused(cloud_config, tmp_path, index):
    empty = tmp_path / "known"
    with pytest.raises(HostKeyError) as caught:
        ssh_kinds(cloud_config, known_hosts=str(empty))[index].run(["true"])
    port = cloud_config.port
    assert f"ssh-keyscan -p {port} 127.0.0.1 >> {empty}" in caught.value.hint
    assert not caught.value.transient
    other = Path(cloud_config.identity_file + ".pub").read_text().split()
    empty.write_text(f"[127.0.0.1]:{port} {other[0]} {other[1]}\n")
    with pytest.raises(HostKeyError) as caught:
        ssh_kinds(cloud_config, known_hosts=str(empty))[index].run(["true"])
    assert f"ssh-keygen -R '[127.0.0.1]:{port}'" in caught.value.hint
    assert empty.read_text().count("\n") == 1  # nothing was learned


@pytest.mark.lab
@pytest.mark.parametrize("index", [0, 1], ids=["ssh", "openssh"])
def test_a_refused_login_says_what_to_type(cloud_config, tmp_path, index):
    key = tmp_path / "key"
    assert os.spawnlp(os.P_WAIT, "ssh-keygen", "ssh-keygen", "-q", "-t", "ed25519", "-N", "",
                      "-f", str(key)) == 0  # fmt: skip
    transport = ssh_kinds(cloud_config, identity_file=str(key))[index]
    with pytest.raises(NotSentError) as caught:
        transport.run(["true"])
    line = "ssh -fN -o ControlMaster=yes" if index else f"ssh -i {key}"
    assert line in caught.value.hint
    with pytest.raises(NotSentError, match="login was refused"):
        ssh_kinds(cloud_config, identity_file=str(tmp_path / "none"))[index].run(["true"])


@pytest.mark.parametrize("kind", [SshTransport, OpensshTransport])
def test_nobody_listening_is_known_before_anything_was_sent(kind, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        transport = kind("127.0.0.1", port=taken.getsockname()[1], user="x",
                         known_hosts=str(tmp_path / "known"), identity_file="/nonexistent",
                         connect_timeout_s=2)  # fmt: skip
        with pytest.raises(NotSentError):
            transport.run(["true"])
        with pytest.raises(NotSentError):
            transport.read_bytes("/etc/passwd")


@pytest.mark.parametrize("kind", [SshTransport, OpensshTransport])
def test_a_server_that_never_speaks_costs_the_connect_timeout_only(kind, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        transport = kind("127.0.0.1", port=server.getsockname()[1], user="x",
                         known_hosts=str(tmp_path / "known"), identity_file="/nonexistent",
                         connect_timeout_s=1)  # fmt: skip
        began = time.monotonic()
        with pytest.raises(UnreachableError):
            transport.run(["true"], timeout_s=1)
        assert time.monotonic() - began < 20


@pytest.mark.lab
@pytest.mark.parametrize("index", [0, 1], ids=["ssh", "openssh"])
def test_a_cut_after_the_request_leaves_the_submit_unknown(lab, cloud_config, index):
    transport = ssh_kinds(cloud_config)[index]
    client = CliClient(transport, slurm_conf=cloud_config.slurm_conf)
    client.now()
    faults.ssh_cut(lab, "after", match="sbatch")
    with pytest.raises(SubmitUnknownError):
        client.sbatch("#!/bin/sh\nsleep 60\n",
                      ["--hold", "--comment=hpcscale=hs-cut", "--output=/dev/null"])  # fmt: skip
    # it is there, once; and the transport is usable again
    found = [s for s in client.jobs().jobs.values() if s.comment == "hpcscale=hs-cut"]
    assert len([s for s in found if not s.state.terminal]) == 1
    transport.close()


@pytest.mark.lab
def test_a_dropped_connection_is_opened_again_for_the_next_command(lab, cloud_config):
    transport = ssh_kinds(cloud_config)[0]
    assert transport.run(["echo", "1"]).stdout == "1\n"
    faults.ssh_cut(lab, "refuse")
    with pytest.raises(UnreachableError):
        transport.run(["echo", "lost"])
    faults.ssh_cut(lab, "normal")
    assert transport.run(["echo", "2"]).stdout == "2\n"
    assert transport.read_bytes("/etc/passwd", limit=4)
    transport.close()


@pytest.mark.lab
def test_one_connection_serves_threads(cloud_config):
    transport = ssh_kinds(cloud_config)[0]
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(transport.run(["echo", str(n)]).stdout))
        for n in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [f"{n}\n" for n in range(5)]
    transport.close()


@pytest.mark.lab
def test_connect_joins_them(lab, monkeypatch):
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", lab.env()["HPCSCALE_CONFIG_DIR"])
    for name in ("lab-onprem", "lab-cloud"):
        with connect(load_site(name).site) as connection:
            assert connection.state_dir.startswith("/")
            assert abs(connection.clock.offset_s()) < 30
            assert connection.client.facts().cluster == name
            assert connection.transport.is_local == (name == "lab-onprem")
