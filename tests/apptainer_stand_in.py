"""A stand-in for `apptainer exec`, for tests alone: Debian has no Apptainer to install.

What it keeps of the public contract (apptainer.org, user guide: *Bind Paths and Mounts*,
*Environment and Metadata*): a sandbox directory is an image; the command sees the image's files
read-only, and of the host only $HOME, $PWD, /tmp, /var/tmp, /proc, /sys, /dev, the network's and
users' files of /etc and what APPTAINER_BIND names; PATH is the image's; other variables go in;
the command has the caller's user, hostname and network; its exit code is the command's, 255 where
the image cannot be started. What it does not show: SIF files, --nv, setuid starts, registries.

``make_image`` makes an image of the running Python with submitit, and with nothing else in it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HOST = ("/proc", "/sys", "/dev", "/tmp", "/var/tmp")
FILES = ("/etc/hosts", "/etc/resolv.conf", "/etc/passwd", "/etc/group", "/etc/localtime")
PATH = "/opt/python/bin"
MARK = "etc/image-release"
PACKAGES = ("submitit", "cloudpickle", "typing_extensions")


def fatal(text: str) -> int:
    print(f"FATAL:   {text}", file=sys.stderr)
    return 255


def run(words: list[str]) -> int:
    """``exec [--nv] [--pwd DIR] IMAGE COMMAND…``; returns only when nothing was started."""
    if words[:1] != ["exec"]:
        return fatal(f"not in this stand-in: {' '.join(words)}")
    words, here = words[1:], str(Path.cwd())
    cwd = here
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option == "--pwd" and words:
            cwd = words.pop(0)
        elif option != "--nv":
            return fatal(f"unknown flag: {option}")
    if len(words) < 2:
        return fatal("exec needs an image and a command")
    image, *command = words
    if not Path(image).is_dir():
        return fatal(f"could not open image {image}: no such file or directory")
    binds = [(path, path) for path in (*HOST, *FILES, os.environ.get("HOME", ""), here)]
    binds = [(source, target) for source, target in binds if source and Path(source).exists()]
    for bind in filter(None, os.environ.get("APPTAINER_BIND", "").split(",")):
        source, _, rest = bind.partition(":")
        if not Path(source).exists():
            return fatal(f"mount source {source} doesn't exist")
        binds.append((source, rest.partition(":")[0] or source))
    try:
        enter(Path(image).resolve(), dict.fromkeys(binds), cwd)
        os.environ.update(PATH=PATH, APPTAINER_CONTAINER=image, APPTAINER_NAME=image)
        os.execvp(command[0], command)
    except OSError as exc:
        return fatal(f"{command[0]}: {exc}")


def enter(image: Path, binds: dict[tuple[str, str], None], cwd: str) -> None:
    """Make the image this process's root, with what is bound into it."""
    import nsinit  # a copy of hpcscale/lab/_nsinit.py, which stands beside this file

    nsinit.unshare_as_self(nsinit.CLONE_NEWNS, user_ns=True)
    nsinit.mount("none", "/", None, nsinit.MS_REC | nsinit.MS_PRIVATE)
    inside = os.open(image, os.O_PATH)
    sources = {source: os.open(source, os.O_PATH) for source, _ in binds}
    bind = nsinit.MS_BIND | nsinit.MS_REC
    # an empty root, so that places to bind to can be made without a change of the image
    nsinit.mount("none", str(image), "tmpfs", 0)
    for entry in Path(f"/proc/self/fd/{inside}").iterdir():
        target = image / entry.name
        target.mkdir()
        nsinit.mount(str(entry), str(target), None, bind)
        nsinit.read_only(str(target))
    for source, target in sorted(binds, key=lambda pair: pair[1].count("/")):
        place = Path(f"{image}{target}")
        if not place.exists():
            place.mkdir(parents=True)
        nsinit.mount(f"/proc/self/fd/{sources[source]}", str(place), None, bind)
    os.chroot(image)
    os.chdir(cwd)


def make_image(image: Path) -> None:
    """An image of this Python, its libraries, submitit and what submitit needs."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    lib = image / "opt/python/lib" / version
    found = Path(os.__file__).parent
    shutil.copytree(
        found,
        lib,
        ignore=shutil.ignore_patterns(
            "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "ensurepip",
            "lib2to3", "config-*", "__pycache__", "turtledemo",
        ),
    )  # fmt: skip
    program = image / "opt/python/bin" / version
    program.parent.mkdir()
    shutil.copy2(Path(sys.executable).resolve(), program)
    for name in ("python", "python3"):
        program.with_name(name).symlink_to(version)
    for name in PACKAGES:
        take(name, lib)
    for library in libraries([program, *lib.glob("lib-dynload/*.so")]):
        target = image / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target)
    (image / "etc").mkdir(exist_ok=True)
    for path in FILES:
        (image / path.lstrip("/")).touch()
    (image / MARK).write_text("an image of tests\n")


def copy(image: Path, to: Path) -> None:
    """An image at another place: its files are shared where they can be."""
    subprocess.run(["cp", "-al", "--", str(image), str(to)], check=True, timeout=120)


def take(name: str, lib: Path) -> None:
    """An installed distribution, as its list of files has it."""
    import importlib.metadata

    for file in importlib.metadata.distribution(name).files or []:
        source = Path(str(file.locate()))
        if ".." not in file.parts and source.suffix != ".pyc" and source.is_file():
            (lib / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, lib / file)


def libraries(programs: list[Path]) -> set[str]:
    """The shared libraries of programs, the loader too, by ldd(1)."""
    done = subprocess.run(
        ["ldd", *map(str, programs)], capture_output=True, text=True, timeout=120, check=True
    )
    words = (line.split() for line in done.stdout.splitlines() if line.startswith("\t"))
    return {word for line in words for word in line if word.startswith("/")}


def install(directory: Path) -> None:
    """Put the program ``apptainer`` and what it needs into a directory of the nodes' own."""
    from hpcscale.lab import _nsinit

    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_nsinit.__file__, directory / "nsinit.py")
    shutil.copyfile(__file__, directory / "stand_in.py")
    program = directory / "apptainer"
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    program.write_text(
        f"#!{base} -IS\nimport sys\nsys.path.insert(0, {str(directory)!r})\n"
        "from stand_in import run\nsys.exit(run(sys.argv[1:]))\n"
    )
    program.chmod(0o755)
