"""The user's config.toml and a project's hpcscale.toml: who may set what."""

import pytest

from hpcscale.errors import InvalidFileError, UsageError
from hpcscale.settings import (
    burst_policy,
    choose_site,
    default_site,
    job_defaults,
    project_job_defaults,
    state_dir,
)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("HPCSCALE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("HPCSCALE_ETC_DIR", str(tmp_path / "etc"))
    monkeypatch.delenv("HPCSCALE_DEFAULT_SITE", raising=False)
    path = tmp_path / "config" / "config.toml"
    path.parent.mkdir()
    return path


@pytest.fixture
def project(tmp_path):
    directory = tmp_path / "project"
    directory.mkdir()

    def write(text):
        (directory / "hpcscale.toml").write_text(text)
        return directory

    return write


def test_without_files_there_are_no_defaults(config, tmp_path):
    assert job_defaults() == []
    assert burst_policy() is None
    assert project_job_defaults(tmp_path) == ({}, None)
    assert default_site() is None


def test_no_site_and_no_default_says_what_to_write(config):
    with pytest.raises(UsageError) as caught:
        choose_site(None)
    assert str(config) in caught.value.hint


def test_the_default_site(config, monkeypatch):
    config.write_text('default_site = "a"\n')
    assert default_site() == ("a", str(config))
    assert choose_site("flag") == "flag"
    monkeypatch.setenv("HPCSCALE_DEFAULT_SITE", "b")
    assert choose_site(None) == "b"


def test_the_machines_file_is_weaker_than_the_users(config, tmp_path, monkeypatch):
    machine = tmp_path / "etc" / "config.toml"
    machine.parent.mkdir()
    machine.write_text('default_site = "m"\nburst_policy = "deadline"\n[job]\naccount = "all"\n')
    assert default_site() == ("m", str(machine))
    config.write_text('default_site = "a"\n[job]\naccount = "mine"\n')
    assert default_site() == ("a", str(config))
    assert burst_policy() == ("deadline", str(machine))
    assert job_defaults() == [({"account": "all"}, machine), ({"account": "mine"}, config)]
    monkeypatch.setenv("HPCSCALE_BURST_POLICY", "value")
    assert burst_policy() == ("value", "$HPCSCALE_BURST_POLICY")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("\ndefault_sit = 'a'\n", 2, "unknown key 'default_sit'"),
        ("default_site = 3\n", 1, "must be text"),
        ("burst_policy = 3\n", 1, "must be text"),
        ("job = 3\n", 1, "'job' must be a table"),
        ("[job\n", 1, "not valid TOML"),
    ],
)
def test_a_wrong_user_file_is_named_with_its_line(config, text, line, message):
    config.write_text(text)
    with pytest.raises(InvalidFileError, match=message) as caught:
        job_defaults()
    assert caught.value.where == f"{config}:{line}"


def test_job_defaults_of_user_and_project(config, project):
    config.write_text("[job]\naccount = 'mine'\n[job.resources]\nnodes = 2\n")
    [(table, path)] = job_defaults()
    assert table == {"account": "mine", "resources": {"nodes": 2}}
    assert path == config
    directory = project("[job]\ncommand = ['train']\n[job.inputs]\nd = 'data'\n")
    table, path = project_job_defaults(directory)
    assert table["command"] == ["train"]
    assert path == directory / "hpcscale.toml"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("default_site = 'x'", "default_site"),
        ("burst_policy = 'x'", "burst_policy"),
        ("[site.x]\na = 1", "site"),
        ("[sites.x]\na = 1", "sites"),
        ("[transport]\nhost = 'x'", "transport"),
        ("identity_file = 'x'", "identity_file"),
        ("known_hosts = 'x'", "known_hosts"),
        ("[templates]\ndir = 'x'", "templates"),
        ("[price]\ngpu_hour_usd = 0.1", "price"),
        ("[budget]\nx = 1", "budget"),
        ("[policy]\nx = 1", "policy"),
        ("plugins = ['x']", "plugins"),
        ("[fabric.env]\nX = 'x'", "fabric"),
        ("[software.x]\nvenv = '/x'", "software"),
        ("nonsense = 1", "nonsense"),
        ("[job]\nsite = 'evil'", "job.site"),
        ("[job.burst]\nmode = 'only'", "job.burst"),
        ("[job.secrets]\nA = 'file:~/.ssh/id_rsa'", "job.secrets"),
        ("[job]\ntemplate = 'x'", "job.template"),
        ("[job.transport]\nhost = 'x'", "job.transport"),
        ("[job.sbatch]\nclusters = 'other'", "job.sbatch.clusters"),
        ("[job.sbatch]\n'--clusters' = 'other'", "job.sbatch.--clusters"),
        ("[job.sbatch]\nM = 'other'", "job.sbatch.M"),
    ],
)
def test_a_cloned_repository_cannot_redirect_anyone(project, text, named):
    directory = project(text + "\n")
    with pytest.raises(InvalidFileError) as caught:
        project_job_defaults(directory)
    assert f"'{named}'" in caught.value.message
    assert caught.value.where.startswith(str(directory / "hpcscale.toml") + ":")
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "[job.inputs]\na = '/etc/passwd'",
        "[job.inputs]\na = '~/.ssh'",
        "[job.inputs]\na = '../other'",
        "[job.outputs]\na = '../../.bashrc'",
        "[job]\ncode = '..'",
        "[job]\nworkdir = '/'",
        "[job.inputs]\na = 'link'",
    ],
)
def test_a_projects_paths_stay_in_the_project(project, text):
    directory = project(text + "\n")
    (directory / "link").symlink_to("/etc")
    with pytest.raises(InvalidFileError, match="outside the project"):
        project_job_defaults(directory)


def test_the_state_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HPCSCALE_STATE_DIR", str(tmp_path / "a"))
    assert state_dir() == tmp_path / "a"
    monkeypatch.delenv("HPCSCALE_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "b"))
    assert state_dir() == tmp_path / "b" / "hpcscale"
