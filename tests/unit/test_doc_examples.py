"""Examples of the documentation are read by what they are for."""

import click
import pytest
from doc_blocks import blocks, calls

from hpcscale.burst.policy_file import load_policy
from hpcscale.cli import main
from hpcscale.jobfile import load_job
from hpcscale.settings import config_dir
from hpcscale.site import load_site

CALLS = [
    pytest.param(words, id=f"{block.where} {' '.join(words[:2])}")
    for block in blocks("sh", "bash", "text", "console")
    if not block.where.startswith("docs/cli.md")
    for words in calls(block)
]
TOML = [pytest.param(block.where, block.text, id=block.where) for block in blocks("toml")]


def parse(words):
    """What click makes of the words; raises what a user would see."""
    command, context = main, click.Context(main, info_name="hpcscale", **main.context_settings)
    while isinstance(command, click.Group) and not words[0].startswith("-"):
        name, *words = words
        child = command.get_command(context, name)
        assert child is not None, name
        command, context = child, click.Context(child, info_name=name, parent=context)
    command.make_parser(context).parse_args(args=list(words))


@pytest.mark.parametrize("words", CALLS)
def test_a_call_has_options_that_exist(words):
    parse(words)


def test_a_wrong_option_would_be_found():
    with pytest.raises(click.NoSuchOption):
        parse(["burst", "plan", "--polcy", "policy.toml"])


@pytest.mark.parametrize(("where", "text"), TOML)
def test_a_file_is_read_as_what_it_is(where, text, tmp_path, monkeypatch):
    path = tmp_path / "example.toml"
    path.write_text(text, encoding="utf-8")
    if where.startswith("docs/jobs.md"):
        monkeypatch.setenv("WANDB_API_KEY", "secret")
        flags = {"site": "generic-ib"}
        assert load_job(str(path), flags=flags, cwd=tmp_path).resources.nodes == 2
    elif text.startswith("from = "):
        assert load_policy(path).from_site in {"lab-onprem", "hpc"}
    else:
        sites = config_dir() / "sites"
        sites.mkdir(parents=True)
        (sites / "generic-ib.toml").write_text(text, encoding="utf-8")
        site = load_site("generic-ib").site
        assert all(site.in_partition(name) for name in site.partitions)
