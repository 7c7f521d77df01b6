"""Paths that are in an object store and not in a file system."""

import re

_URL = re.compile(r"(?:s3|gs|gcs|az|abfs)://")


def is_url(path: str) -> bool:
    """Whether a declared path names an object store: ``s3://bucket/key``."""
    return _URL.match(path) is not None


def url_fault(url: str) -> str | None:
    """Why a URL cannot be used; None: it can."""
    bucket, _, key = url.partition("://")[2].partition("/")
    if not bucket:
        return "it names no bucket"
    if "@" in bucket or ":" in bucket:
        return "keys do not belong into it: they are read from the environment or ~/.aws"
    if not key.strip("/"):
        return "it names a whole bucket; write a prefix"
    if any(not c.isprintable() for c in url) or "?" in url or "#" in url:
        return "it holds what no key holds"
    return None
