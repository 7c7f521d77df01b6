"""What people install is the wheel, not the checkout: it must hold everything and work alone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, ROOT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files_below(directory):
    """Files that are part of the project, as paths relative to the checkout."""
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("directory", ["templates", "site-configs"])
def test_data_files_are_inside(names, directory):
    expected = {f"hpcscale/_data/{name}" for name in files_below(directory)}
    assert expected
    assert expected <= names


def test_every_file_of_the_package_is_inside(names):
    # shell parts of the lab and py.typed as well
    assert files_below("hpcscale") <= names
    # a namespace of Hydra's: without an __init__.py, or other plugins would be hidden
    assert {n for n in names if n.startswith("hydra_plugins")} == {
        "hydra_plugins/hpcscale_launcher.py"
    }


def test_nothing_else_is_inside(names):
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hpcscale", "hydra_plugins"}


def test_licence_command_and_plugin_are_declared(wheel, names):
    (info,) = {n.split("/")[0] for n in names if ".dist-info/" in n}
    assert f"{info}/licenses/LICENSE" in names
    with zipfile.ZipFile(wheel) as archive:
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    assert "hpcscale = hpcscale.cli:run" in entry_points
    assert "[submitit]" in entry_points
    assert "License-Expression: Apache-2.0" in metadata


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel unpacked elsewhere; its dependencies come from this environment."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def call(installed, *argv):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *argv],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_installed_package_is_the_one_that_runs(installed):
    done = call(installed, "-c", "import hpcscale; print(hpcscale.__file__)")
    assert done.stdout.strip() == str(installed / "hpcscale" / "__init__.py")


def test_sites_are_found_outside_the_checkout(installed):
    done = call(installed, "-m", "hpcscale", "site", "list", "--json")
    assert done.returncode == 0, done.stderr
    for site in (ROOT / "site-configs").glob("*.toml"):
        assert f'"{site.stem}"' in done.stdout


def test_a_script_is_rendered_outside_the_checkout(installed):
    done = call(
        installed, "-m", "hpcscale", "render", "--site", "generic-ib", "--nodes", "2",
        "--time", "10:00", "--launcher", "torchrun", "--", "train.py",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash")
    assert "#SBATCH --nodes=2" in done.stdout
