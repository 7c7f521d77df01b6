"""An S3 store on loopback, in a process of its own: moto's server."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request


@contextlib.contextmanager
def s3_server():
    """Its endpoint, while it runs; ``BUCKET`` is there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    child = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **KEYS},
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert child.poll() is None, "moto's server ended"
                assert time.monotonic() < deadline, "moto's server does not answer"
                time.sleep(0.1)
        request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT", headers=_AUTH)
        urllib.request.urlopen(request, timeout=10).close()
        yield endpoint
    finally:
        child.kill()
        child.wait(30)


BUCKET = "lab-bucket"
SECRET_KEY = "s3-secret-key-planted-1234567890"
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED0000000000",
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
}
_AUTH = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=x",
    "Content-Type": "application/octet-stream",
}


def put(endpoint, key, data):
    """Write an object without any library of S3's."""
    request = urllib.request.Request(
        f"{endpoint}/{BUCKET}/{key}", data=data, method="PUT", headers=_AUTH
    )
    urllib.request.urlopen(request, timeout=30).close()


def get(endpoint, key):
    """An object's content; None when there is none."""
    request = urllib.request.Request(f"{endpoint}/{BUCKET}/{key}", headers=_AUTH)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code == 404:
            return None
        raise
