"""The architecture, held by a test: who may import whom, and who may do what."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "hpcscale"

# what deciding may know; what acting may use besides; what acting on a known job may use
_DECIDING = {"errors", "units", "spec", "site", "cost", "urls", "slurm.types"}
_ACTING = _DECIDING | {
    "settings", "lint", "render", "slurm", "clock", "connect", "code", "transfer", "fetching", "inputs", "objects", "staging", "reports", "precheck",
}  # fmt: skip
_OWNING = _ACTING | {"ledger", "verify", "reasons"}

# A module (or a whole package: "lab") and what it may import, at the top of the file, inside a
# function or for types alone. Each line may name only lines above it, so there are no cycles.
ALLOWED: dict[str, set[str]] = {
    "hpcscale": set(),
    "errors": set(),
    "units": {"errors"},
    "assets": {"errors"},
    "extras": {"errors"},
    "textfile": {"errors"},
    "tomlfile": {"errors", "textfile"},
    "urls": set(),
    # what runs inside a job: works where hpcscale is not installed
    "train": set(),
    "settings": {"errors", "units", "assets", "tomlfile", "urls"},
    # what and where
    "spec": {"errors", "units"},
    "site": {"errors", "units", "assets", "tomlfile", "settings"},
    "sbatch_script": {"errors", "units", "spec"},
    "jobkeys": {"errors", "units", "tomlfile", "spec", "sbatch_script"},
    "jobvalues": {"errors", "units", "spec", "jobkeys", "urls"},
    "jobfile": {"errors", "units", "textfile", "tomlfile", "settings", "spec", "sbatch_script"}
    | {"jobkeys", "jobvalues", "urls"},
    "cost": {"errors", "units", "spec", "site"},
    # what was, as columns; what will be (useful without any bursting, so no part of burst)
    "history": {"errors", "units", "extras"},
    "forecast": {"errors", "units", "extras", "history"},
    "burst.value": set(),  # arithmetic alone: the simulator compiles it
    "burst.spot": set(),  # likewise
    "simulate": {"errors", "units", "extras", "history", "forecast", "burst.value", "burst.spot"},
    # (JobSpec, Site) -> text, pure
    "lint": {"errors", "units", "spec", "site", "sbatch_script"},
    "render": {"hpcscale", "errors", "units", "assets", "spec", "site", "sbatch_script", "lint"}
    | {"urls"},
    # how Slurm is asked, and where: knows neither jobs of ours nor sites
    "slurm.types": {"errors", "units"},  # plain data, so deciding may use it
    "slurm": {"errors", "units", "slurm.types"},
    "reasons": {"slurm.types"},  # Slurm's reasons for waiting, in words
    "clock": {"errors", "units", "slurm"},
    "connect": {"errors", "site", "slurm", "clock"},
    "transfer": {"errors", "settings", "slurm"},
    "fetching": {"errors", "slurm", "transfer"},
    "inputs": {"errors", "slurm", "transfer", "fetching"},
    "code": {"errors", "spec", "slurm", "transfer"},
    "objects": {"errors", "extras", "settings", "slurm", "transfer", "fetching", "inputs", "urls"},
    "staging": {
        "errors",
        "slurm",
        "code",
        "transfer",
        "units",
        "fetching",
        "inputs",
        "objects",
        "urls",
    },
    "reports": {"errors", "slurm", "staging"},
    "precheck": _DECIDING | {"settings", "slurm", "connect"},
    "survey": _ACTING,
    # a live site's forecast: asks, and acts on nothing
    "outlook": _ACTING | {"extras", "history", "forecast", "simulate"},
    # memory, then acts
    "ledger_schema": {"errors"},
    "ledger_rows": {"errors", "units", "spec", "slurm.types", "ledger_schema"},
    "ledger_file": {"errors", "settings", "ledger_schema"},
    "ledger_reads": _DECIDING | {"settings", "ledger_schema", "ledger_rows", "ledger_file"},
    "ledger_records": _DECIDING | {"ledger_rows", "ledger_file", "ledger_reads"},
    "ledger": _DECIDING
    | {"settings", "ledger_schema", "ledger_rows", "ledger_file"}
    | {"ledger_reads", "ledger_records"},
    "verify": _DECIDING | {"slurm", "ledger"},
    "prepare": _OWNING,
    "after": _DECIDING | {"ledger"},
    "submit": _OWNING | {"prepare", "after"},
    "cancelled": {"ledger", "reports", "slurm.types", "units"},
    "judge": _DECIDING | {"ledger", "ledger_rows", "reports", "verify", "cancelled"},
    "judge_arrays": _DECIDING | {"ledger", "ledger_rows", "reports", "cancelled", "judge"},
    "blame": _OWNING,
    "observe": _OWNING | {"ledger_rows", "judge", "judge_arrays", "blame"},
    "results": _OWNING,
    # changes a waiting job's request, with consent
    "squeeze": _OWNING | {"outlook", "train"},
    "batches": _OWNING | {"submit", "prepare"},
    # the submitit plugin knows nothing of bursting
    "executor": _OWNING | {"prepare", "submit", "observe", "results", "batches", "cancelled"},
    # for Hydra, which alone imports it
    "hydra": {"errors", "executor"},
    # deciding is pure: data in, data out
    "burst.catalog": _DECIDING | {"assets", "tomlfile"},
    "burst.catalog_load": {"errors", "assets", "settings", "tomlfile", "site", "burst.catalog"},
    "burst.shapes": _DECIDING | {"burst.catalog"},
    "burst.words": set(),
    "burst.heads": {"errors"},
    "burst.policy": _DECIDING,
    "burst.policy_file": _DECIDING | {"tomlfile", "burst.policy"},
    "burst.policies": {"errors", "assets", "settings", "site", "burst.policy", "burst.policy_file"},
    "burst.budget": _DECIDING | {"burst.policy"},
    "burst.line": {"cost", "burst.spot"},
    "burst.plan": _DECIDING | {"burst.catalog", "forecast", "burst.policy", "burst.line"},
    "burst.seen": _DECIDING | {"burst.budget", "burst.catalog", "burst.plan", "burst.policy"},
    "burst.offer": _DECIDING
    | {"burst.catalog", "burst.line", "burst.plan", "burst.policy", "burst.seen", "burst.shapes"},
    "burst.feasible": {"errors", "burst.words"},
    "burst.worth": {"burst.policy", "burst.plan"},
    "burst.triggers": _DECIDING | {"burst.words", "burst.policy", "burst.plan", "burst.worth"},
    "burst.choice": _DECIDING
    | {"burst.policy", "burst.plan", "burst.words", "burst.budget", "burst.triggers"},
    "burst.verdict": _DECIDING
    | {"burst.line", "burst.policy", "burst.plan", "burst.words", "burst.choice", "burst.triggers"},
    "burst.promise": _DECIDING
    | {"burst.budget", "burst.plan", "burst.policy"}
    | {"burst.choice", "burst.worth"},
    "burst.ahead": _DECIDING | {"burst.plan", "burst.policy", "burst.words"},
    "burst.rests": _DECIDING | {"burst.plan", "burst.seen"},
    "burst.decide": _DECIDING
    | {"burst.catalog", "forecast", "burst.policy", "burst.plan", "burst.words", "burst.seen"}
    | {"burst.budget", "burst.triggers", "burst.worth", "burst.offer", "burst.verdict"}
    | {"burst.ahead", "burst.choice", "burst.rests", "burst.promise"},
    "burst": _OWNING
    | {
        "prepare",
        "after",
        "submit",
        "judge",
        "judge_arrays",
        "blame",
        "observe",
        "results",
        "executor",
        "burst.catalog",
        "forecast",
    }
    | {"outlook"}
    | {"burst.policy", "burst.plan", "burst.decide", "burst.words", "burst.budget"}
    | {"burst.catalog_load", "burst.shapes", "burst.worth", "burst.line", "burst.seen"}
    | {"burst.offer", "burst.heads"},
    # what is said of a job when it is submitted
    "burst.prospect": _OWNING
    | {"burst", "burst.budget", "burst.catalog_load", "burst.feasible", "burst.offer", "burst.plan"}
    | {"burst.policies", "burst.policy", "burst.promise", "burst.seen", "burst.shapes"}
    | {"burst.choice", "burst.words"},
    # a Slurm of its own; it serves the product and the tests, the product never needs it
    "lab": {"hpcscale", "errors", "units", "assets", "settings", "tomlfile"},
    # policies on a model of a site; and that model against a lab
    "rehearsal": _DECIDING
    | {"simulate", "burst.budget", "burst.decide", "burst.plan", "burst.policy", "burst.seen"},
    "twin": {"errors", "units", "history", "simulate", "lab"},
    "testing": _OWNING | {"lab"},
    "report": _DECIDING | {"ledger", "observe"},
    "cli": {"*"},
    "__main__": {"cli"},
}

# Modules that decide: the same input must give the same answer, so no clock of this machine,
# no randomness and no input or output.
PURE = ("units", "spec", "cost", "render", "lint", "burst.catalog", "forecast", "burst.policy",
        "burst.plan", "burst.decide", "burst.value", "burst.words", "burst.budget",
        "burst.triggers", "burst.worth", "burst.shapes", "burst.feasible", "burst.spot",
        "burst.line", "burst.seen", "burst.offer", "burst.verdict", "burst.ahead",
        "burst.rests", "burst.promise")  # fmt: skip
IMPURE_IMPORTS = {"random", "secrets", "socket", "subprocess", "time", "uuid", "shutil"}


def modules() -> dict[str, Path]:
    """Dotted name below hpcscale -> file; the package itself is ``hpcscale``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] == "_data":
            continue
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts) or "hpcscale"] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The line of ALLOWED that a module belongs to: the longest name that fits."""
    parts = module.split(".")
    while parts:
        if ".".join(parts) in ALLOWED:
            return ".".join(parts)
        parts.pop()
    return module


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import below a node, function bodies included, as (line, absolute name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: write it out"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                known = inner.removeprefix("hpcscale.") in MODULES
                yield node.lineno, inner if known else node.module


def own_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Imports of hpcscale's own modules, as (line, name below hpcscale)."""
    for line, name in imports_of(tree):
        if name == "hpcscale":
            yield line, "hpcscale"
        elif name.startswith("hpcscale."):
            yield line, name.removeprefix("hpcscale.")


def parse(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def test_the_table_itself_has_no_cycles():
    above: set[str] = set()
    for name, targets in ALLOWED.items():
        later = targets - above - {"*"}
        assert not later, f"{name} may import {sorted(later)}, which stand below it"
        above.add(name)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_follow_the_design(module):
    tree = parse(module)
    mine = room(module)
    assert mine in ALLOWED, f"{module} is in no room: add it to ALLOWED, above all that import it"
    if module == "hpcscale":
        # its lazy public names are for type checkers only
        tree.body = [node for node in tree.body if not is_type_checking(node)]
    wrong = []
    for line, target in own_imports(tree):
        theirs = room(target)
        allowed = ALLOWED[mine]
        if theirs == mine or theirs in allowed or "*" in allowed:
            continue
        # the package's docstring-only __init__ is loaded by any import below it
        wrong.append(f"{MODULES[module]}:{line}: {mine} may not import {theirs}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle():
    graph = {name: {t for _, t in own_imports(parse(name)) if t in MODULES} for name in MODULES}
    # the public names and the lazy command table point back by design
    graph["hpcscale"] = set()
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circle = " -> ".join([*trail[trail.index(name) :], name])
            raise AssertionError(f"import cycle: {circle}")
        if name in done:
            return
        for target in sorted(graph[name] - {name}):
            visit(target, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_training_helpers_need_the_standard_library_and_torch_only():
    import sys

    allowed = sys.stdlib_module_names | {"torch", "hpcscale"}
    for module in MODULES:
        if room(module) != "train":
            continue
        for line, name in imports_of(parse(module)):
            assert name.split(".")[0] in allowed, f"{module}:{line} imports {name}"


def test_command_modules_import_click_alone_at_the_top():
    import sys

    allowed = {"click", "hpcscale", "hpcscale.errors"}
    for module, path in MODULES.items():
        if room(module) != "cli" or module in {"cli", "cli._output"}:
            continue
        top = ast.Module(
            body=[n for n in parse(module).body if isinstance(n, (ast.Import, ast.ImportFrom))],
            type_ignores=[],
        )
        for line, name in imports_of(top):
            if name.split(".")[0] in sys.stdlib_module_names or name.startswith("hpcscale.cli"):
                continue
            assert name in allowed, f"{path}:{line}: import {name} inside the function"


def names_and_calls() -> Iterator[tuple[str, Path, ast.Call]]:
    for module, path in MODULES.items():
        for node in ast.walk(parse(module)):
            if isinstance(node, ast.Call):
                yield module, path, node


def test_no_shell_strings():
    for _, path, call in names_and_calls():
        text = ast.unparse(call.func)
        assert text not in {"os.system", "os.popen", "subprocess.getoutput"}, (
            f"{path}:{call.lineno}: argv lists only"
        )
        for keyword in call.keywords:
            if keyword.arg == "shell":
                assert ast.unparse(keyword.value) == "False", f"{path}:{call.lineno}: shell=True"


def test_host_keys_are_never_added_unasked():
    for module, path in MODULES.items():
        for node in ast.walk(parse(module)):
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
            assert name not in {"AutoAddPolicy", "WarningPolicy"}, f"{path}: {module} uses {name}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value.replace(" ", "").lower()
                assert "stricthostkeychecking=no" not in text, f"{path}:{node.lineno}"


def test_only_submit_calls_sbatch():
    for module, path, call in names_and_calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr == "sbatch":
            # the audit log writes it down, and hands it on
            assert module in {"submit", "burst.audit"} or room(module) == "slurm", (
                f"{path}:{call.lineno}: only hpcscale.submit submits"
            )


def test_only_the_text_client_spells_the_sbatch_command():
    for module, path in MODULES.items():
        if module.startswith("slurm.") or room(module) in {"lab", "testing", "twin"}:
            # the lab looks for the program to say what is not installed; the twin's jobs are
            # the lab's alone
            continue
        for node in ast.walk(parse(module)):
            # lists anywhere; tuples where they are passed on (elsewhere they are words of a table)
            sequences = node.args if isinstance(node, ast.Call) else [node]
            for sequence in sequences:
                kinds = (ast.List, ast.Tuple) if isinstance(node, ast.Call) else (ast.List,)
                if isinstance(sequence, kinds) and sequence.elts:
                    assert ast.unparse(sequence.elts[0]) != "'sbatch'", (
                        f"{path}:{sequence.lineno}: {module} builds an sbatch command line"
                    )


@pytest.mark.parametrize("module", [m for m in PURE if m in MODULES])
def test_what_decides_is_pure(module):
    path = MODULES[module]
    tree = parse(module)
    for line, name in imports_of(tree):
        assert name.split(".")[0] not in IMPURE_IMPORTS, f"{path}:{line}: imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            assert not text.endswith((".now", ".utcnow", ".today")), (
                f"{path}:{node.lineno}: {text}() in decision code: take `now` as an argument"
            )
            assert text != "open", f"{path}:{node.lineno}: opens a file"


def test_nobody_prints_outside_the_command_line():
    # the lab's node programs and the training helpers run as programs of their own
    programs = {"lab._nsinit", "lab._power", "__main__"}
    for module, path, call in names_and_calls():
        if room(module) == "cli" or module in programs:
            continue
        assert ast.unparse(call.func) not in {"print", "click.echo", "sys.stdout.write"}, (
            f"{path}:{call.lineno}: {module} prints; return it to hpcscale.cli instead"
        )


def test_every_subprocess_call_is_in_a_room_that_acts():
    # rendering, deciding and remembering start no processes
    acting = {"slurm", "lab", "testing", "train", "executor"}
    for module, path in MODULES.items():
        for line, name in imports_of(parse(module)):
            if name.split(".")[0] == "subprocess":
                assert room(module) in acting, f"{path}:{line}: {module} starts processes"
