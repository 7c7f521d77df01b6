"""Which burst policy holds: the file or the name that was given, else the one that is configured.

Bundled names: ``never``, ``always``, ``no-wait``, ``threshold``, ``constant-wait``,
``compute-wait``, ``deadline`` and ``value``. A file of the same name in the machine's or the user's
``policies`` directory is stronger.
"""

import difflib
from pathlib import Path

from hpcscale.assets import bundled_dir
from hpcscale.burst.policy import Policy
from hpcscale.burst.policy_file import load_policy
from hpcscale.errors import HpcscaleError, NotFoundError, UsageError
from hpcscale.settings import burst_policy, config_dir, default_site, etc_dir, user_config_path
from hpcscale.site import load_site, require_host, site_names

DEFAULT = "value"


def policy_dirs() -> list[Path]:
    """Where named policies are, the weakest layer first."""
    return [
        bundled_dir("site-configs") / "policies",
        etc_dir() / "policies",
        config_dir() / "policies",
    ]


def policy_names() -> list[str]:
    """Names of all layers, sorted."""
    return sorted({f.stem for d in policy_dirs() if d.is_dir() for f in d.glob("*.toml")})


def find_policy(given: str | None = None) -> Policy:
    """The policy that was asked for, or is configured (``burst_policy``), or ``value``.

    Args:
        given: a path (it has a ``/`` or ends in ``.toml``), or a policy's name.

    Raises:
        NotFoundError: no such file, or no policy of that name.
        InvalidFileError: as ``load_policy``.
        UsageError: it names no origin or targets, and none are configured.
    """
    base, who = Path(), "--policy"
    if given is None:
        given, who = burst_policy() or (DEFAULT, "the default")
        if who.startswith("/"):
            base = Path(who).parent
    path = _path_of(given, base, who)
    return load_policy(path, origin=_origin, targets=_targets)


def policy_anywhere(path: Path) -> Policy:
    """A file's rules for a simulation, which has an origin and a target of its own.

    Raises:
        NotFoundError: no such file.
        InvalidFileError: as ``load_policy``.
    """
    return load_policy(path, origin=lambda: "here", targets=lambda _: ("there",))


def _path_of(given: str, base: Path, who: str) -> Path:
    if "/" in given or given.endswith(".toml"):
        return base / Path(given).expanduser()
    for directory in reversed(policy_dirs()):
        if (path := directory / f"{given}.toml").exists():
            return path
    if (base / given).is_file():
        return base / given
    names = policy_names()
    close = difflib.get_close_matches(given, names, n=1)
    raise NotFoundError(
        f"no policy is named {given!r}, and no file; known: {', '.join(names)}",
        where=who,
        hint=f"--policy {close[0]}" if close else f"write {config_dir() / 'policies'}/{given}.toml",
    )


def _origin() -> str:
    chosen = default_site()
    if chosen is None:
        raise UsageError(
            "the policy says not whose queue overflows, and there is no default site",
            hint='write from = "SITE" into a policy file of yours, or default_site = "SITE" in '
            f"{user_config_path()}",
        )
    return chosen[0]


def _targets(origin: str) -> tuple[str, ...]:
    """Partitions of the origin that are burst targets, then sites that are and can be reached."""
    here = load_site(origin).site
    found = [f"{origin}/{name}" for name in here.burst_partitions]
    for name in site_names():
        try:
            site = load_site(name).site
            if name != origin and site.burst.target:
                require_host(site)
                found.append(name)
        except HpcscaleError:
            continue  # a broken or unfinished profile is no target; `site list` tells of it
    if not found:
        raise UsageError(
            f"no site that can be reached from {origin} is a burst target",
            hint="[burst] with target = true in its profile, and a login node in [transport]: "
            "hpcscale site list",
        )
    return tuple(found)
