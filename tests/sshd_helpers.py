"""A second sshd inside a lab's cloud site, and a TCP relay that can go deaf."""

import contextlib
import signal
import socket
import subprocess
import threading
import time

from lab_helpers import until

from hpcscale.lab import namespace
from hpcscale.lab.process import find, kill, start_time


def keygen(path, passphrase=""):
    """A fresh key pair; the private key's path."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", path.name, "-f", str(path)],
        check=True,
        timeout=20,
        capture_output=True,
    )
    return path


class Sshd:
    """An sshd on loopback with one user key, in the mount namespace of a lab's site."""

    def __init__(self, site, name, user_key):
        self.site, self.name = site, name
        self.user = site.lab.user
        etc = site.paths.etc
        for old in etc.glob(f"{name}.*"):
            old.unlink()
        self.host_key = keygen(etc / f"{name}.host")
        self.keys = etc / f"{name}.keys"
        self.keys.write_text(user_key.with_name(user_key.name + ".pub").read_text())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = etc / f"{name}.log"
        self.config = etc / f"{name}.conf"
        self.config.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.host_key}\n"
            f"PidFile {site.paths.run}/{name}.pid\nAuthorizedKeysFile {self.keys}\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nUseDNS no\nLogLevel VERBOSE\n"
            "Subsystem sftp internal-sftp\nPermitRootLogin prohibit-password\n"
        )
        self.start()

    def start(self):
        self.site.start(self.name, [find("sshd"), "-f", str(self.config), "-E", str(self.log)])
        until(self.answers, 10, "sshd answers")

    def answers(self):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as s:
            return s.recv(4) == b"SSH-"
        return False

    def kill(self):
        """The listener and every session, as when the machine goes down."""
        listener = self.site.pid_of(self.name)
        if listener is None:
            return
        # of an ordinary user each session has two processes, and then there are their commands
        doomed = [listener, *sorted(namespace.descendants([listener]))]
        for pid in doomed:
            kill(pid, signal.SIGKILL)
        until(lambda: not any(map(start_time, doomed)), 10, "all of it is gone")

    def stop(self):
        with contextlib.suppress(Exception):
            self.kill()

    def logins(self):
        return self.log.read_text().count("Accepted publickey")

    def known_hosts_line(self):
        kind, key = self.host_key.with_name(self.host_key.name + ".pub").read_text().split()[:2]
        return f"[127.0.0.1]:{self.port} {kind} {key}\n"


class Relay:
    """Passes TCP connections on; counts the client's bytes; goes deaf on demand."""

    def __init__(self, port):
        self.to = port
        self.sent = 0
        self.connections = 0
        self.deaf = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self.to))
            self._open += [client, server]
            number = self.connections
            for source, target, counts in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pump, args=(source, target, counts, number), daemon=True
                ).start()

    def _pump(self, source, target, counts, number):
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                if counts:
                    self.sent += len(block)
                # only the connection that was open goes deaf; a new one gets through
                while self.deaf == number:
                    time.sleep(0.05)
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)

    def go_deaf(self):
        self.deaf = self.connections

    def close(self):
        self.deaf = False
        for sock in (self._server, *self._open):
            with contextlib.suppress(OSError):
                sock.close()
