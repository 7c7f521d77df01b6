"""What `hpcscale --help` and `import hpcscale` may load: start-up is a budget."""

import subprocess
import sys

import pytest

from hpcscale.cli import COMMANDS

# the shortest click program with one command
BARE = """
import click, sys
@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option("1", prog_name="bare")
@click.option("--debug", is_flag=True)
def main(debug): pass
@main.command()
def one(): "One."
try:
    main(["--help"], standalone_mode=True)
finally:
    print("\\n".join(["MODULES", *sys.modules]))
"""

OURS = """
import sys
sys.argv = ["hpcscale", "--help"]
import hpcscale.cli
try:
    hpcscale.cli.run()
finally:
    print("\\n".join(["MODULES", *sys.modules]))
"""

# over and above what a bare click program loads
ALLOWED = {
    "hpcscale",
    "hpcscale.errors",
    "hpcscale.cli",
    "hpcscale.cli._output",
    # _output prints JSON, dates and money; all small parts of the standard library
    "json", "json.decoder", "json.encoder", "json.scanner", "_json",
    "datetime", "_datetime", "decimal", "_decimal", "numbers", "numbers.abc",
    "collections.abc",
}  # fmt: skip


def modules(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "MODULES" in done.stdout, done.stderr
    return set(done.stdout.split("MODULES\n")[1].split())


def test_help_loads_click_and_nothing_heavy():
    commands = {f"hpcscale.cli.{module}" for module in COMMANDS.values()}
    # helpers of the command line are as light as the commands: test_imports.py holds them to it
    extra = {
        m for m in modules(OURS) - modules(BARE) - ALLOWED - commands
        if not m.startswith("hpcscale.cli._")
    }  # fmt: skip
    assert not extra, f"`hpcscale --help` loads {sorted(extra)}: import inside the function"


def test_the_measure_sees_what_is_loaded():
    # otherwise the test above could pass by seeing nothing
    assert "hpcscale.cli.submit" in modules(OURS)
    assert "click" in modules(BARE)


@pytest.mark.parametrize(
    "heavy",
    ["msgspec", "jinja2", "rich", "paramiko", "submitit", "sqlite3", "asyncio", "subprocess",
     "importlib.metadata", "ClusterShell", "torch"],
)  # fmt: skip
def test_importing_the_package_costs_next_to_nothing(heavy):
    loaded = modules("import sys, hpcscale; print('\\n'.join(['MODULES', *sys.modules]))")
    assert heavy not in loaded


def test_every_command_has_help():
    import click

    from hpcscale.cli import main

    def walk(command, path):
        assert command.help, f"{path} has no help text"
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{path} {parameter.opts[0]} has no help text"
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                walk(command.get_command(context, name), f"{path} {name}")

    walk(main, "hpcscale")


def test_every_command_has_json():
    import click

    from hpcscale.cli import main

    # these hand over to another program's own output
    without = {"hpcscale lab exec"}

    def leaves(command, path):
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                yield from leaves(command.get_command(context, name), f"{path} {name}")
        else:
            yield path, command

    missing = [
        path
        for path, command in leaves(main, "hpcscale")
        if path not in without
        and not any("--json" in getattr(p, "opts", []) for p in command.params)
    ]
    assert not missing
