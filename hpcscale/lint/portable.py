"""What ties a script or a command to one site: fabric variables, modules, absolute paths."""

import re
from collections.abc import Iterator

from hpcscale.lint.finding import Finding, Severity
from hpcscale.lint.source import Source
from hpcscale.site import Site

# variables of the network between nodes; NCCL's logging and waiting mean the same everywhere
FABRIC_VARIABLE = re.compile(
    r"(?:NCCL_(?!DEBUG|BLOCKING_WAIT$|ASYNC_ERROR_HANDLING$|VERSION$)|FI_|UCX_|OFI_NCCL_|RDMAV_|"
    r"GLOO_SOCKET_IFNAME$|TP_SOCKET_IFNAME$|OMPI_MCA_(?:btl|mtl|pml|oob)|MPICH_OFI_|PSM2_|"
    r"SHARP_|MELLANOX_)[A-Z0-9_]*"
)
SYSTEM_PATHS = ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/dev", "/tmp", "/var/tmp", "/proc",  # noqa: S108  # names, not files we open
                "/sys", "/etc/profile.d", "/etc/os-release", "/usr/lib/locale")  # fmt: skip
# not after a word, nor after the quote that closes one: "$DIR"/x is a path below DIR
_ABSOLUTE = re.compile(
    r"(?<![\w./~$}{)*\]-])(?<![\w})][\"'])/(?=[A-Za-z_0-9])[^\s'\"`;|&<>(){}$,:=]*"
)
_HOME = re.compile(r"(?<![\w/.-])(?:~|\$HOME|\$\{HOME\})/[^\s'\"`;|&<>(){}$,:=]*")
_PATTERN_COMMANDS = re.compile(r"\b(?:awk|gawk|sed|grep|egrep|perl|rg)\b")
_ASSIGNED = re.compile(
    r"(?:^|[;&|]|\b(?:export|declare\s+-x|typeset\s+-x|env)\b|(?<=\s))\s*"
    r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)\+?="
)
_MODULES = re.compile(
    r"(?:^|[;&|({]|\b(?:then|do|else)\b)\s*"
    r"(?P<what>module\s+(?:load|add|use|swap|switch|purge|restore)\b[^;&|\n]*"
    r"|ml\s+[A-Za-z][^;&|\n]*|spack\s+load\b[^;&|\n]*|conda\s+activate\b[^;&|\n]*"
    r"|mamba\s+activate\b[^;&|\n]*)"
)


def assigned_variables(source: Source) -> Iterator[tuple[int, str]]:
    """(line, name) of variables that the script sets or exports."""
    for number, match in source.find(_ASSIGNED.pattern):
        yield number, match["name"]
    for number, match in source.find(r"--export(?:=|\s+)(?P<list>\S+)"):
        for name in re.findall(r"([A-Za-z_][A-Za-z0-9_]*)=", match["list"]):
            yield number, name


def absolute_paths(text: str) -> list[str]:
    """Absolute paths in a piece of shell text that are not the system's own; home paths too."""
    found = [m[0] for m in _HOME.finditer(text)]
    found += [m[0] for m in _ABSOLUTE.finditer(text) if not system_path(m[0])]
    return found


def system_path(path: str) -> bool:
    """Whether every site has it, with the same meaning."""
    return any(path == own or path.startswith(own + "/") for own in SYSTEM_PATHS)


def site_bound(source: Source, site: Site) -> list[Finding]:
    """Why a script cannot run at another site than the one it was written for, by line."""
    found: list[Finding] = []

    def add(rule: str, line: int, why: str, fix: str) -> None:
        found.append(Finding(rule, line, Severity.ERROR, why, fix, source.path))

    for number, name in assigned_variables(source):
        if FABRIC_VARIABLE.fullmatch(name):
            add(
                "HS101",
                number,
                f"sets the fabric variable {name}; {site.name} has its own fabric "
                f"({site.fabric.kind})",
                "remove the line: the site's profile sets what its fabric needs",
            )
    for number, match in source.find(_MODULES.pattern):
        add(
            "HS102",
            number,
            f"`{match['what'].strip()}` is software of one site",
            "name it: --software NAME, and [software.NAME] in each site's profile",
        )
    for number, line in enumerate(source.code, 1):
        text = line
        if _PATTERN_COMMANDS.search(source.bare[number - 1]):
            text = source.bare[number - 1]  # /patterns/ in quotes are no paths
        for path in dict.fromkeys(absolute_paths(text)):
            add(
                "HS103",
                number,
                f"the absolute path {path} is not declared: {site.name} need not have it",
                "declare it, --input NAME=PATH, and write $HPCSCALE_INPUT_NAME",
            )
    return sorted(found, key=lambda f: (f.line, f.rule))
