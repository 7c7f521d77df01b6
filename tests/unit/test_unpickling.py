"""What a site sends back is unpickled by submitit's own result() and exception(), and nowhere else.

An unpickled file runs what it likes. tests/lab/test_executor_lab.py plants one and calls every verb.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    *sorted((ROOT / "hpcscale").rglob("*.py")),
    *sorted((ROOT / "hydra_plugins").glob("*.py")),
]
MODULES = {"pickle", "cloudpickle", "_pickle", "dill", "marshal", "shelve", "joblib"}
LOADERS = {"load", "loads", "Unpickler", "pickle_load", "submission", "result", "results"}
# module -> what it may call, and why that is an explicit wish of the user's own process
ALLOWED = {
    "hpcscale/executor/job.py": {"result", "results", "exception"},  # these methods themselves
    "hpcscale/hydra/__init__.py": {"results"},  # the user's program waits for its sweep
    "hpcscale/lab/lab.py": {"result"},  # of threads of its own
}


def loads(source):
    """Names of calls in a module that may unpickle."""
    tree = ast.parse(source)
    names = {alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names if alias.name.split(".")[0] in MODULES}  # fmt: skip
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found |= {alias.name for alias in node.names} & LOADERS
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, owner = node.func.attr, node.func.value
        if name in {"Unpickler", "pickle_load"}:
            found.add(name)
        elif name in {"load", "loads"} and isinstance(owner, ast.Name) and owner.id in names:
            found.add(f"{owner.id}.{name}")
        elif name == "load" and ast.unparse(owner).endswith("DelayedSubmission"):
            found.add("DelayedSubmission.load")
        elif name in {"submission", "result", "results", "exception"} and not node.args:
            found.add(name)  # a job's: its exception() loads the result, too
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_unpickles(path):
    name = str(path.relative_to(ROOT))
    assert loads(path.read_text(encoding="utf-8")) <= ALLOWED.get(name, set())


def test_the_guard_sees():
    assert loads("import pickle\npickle.loads(b'')") == {"pickle.loads"}
    assert loads("import cloudpickle as c\nc.load(f)") == {"c.load"}
    assert loads("from pickle import loads") == {"loads"}
    assert loads("utils.pickle_load(p)") == {"pickle_load"}
    assert loads("job.result()") == {"result"}
    assert loads("utils.DelayedSubmission.load(p)") == {"DelayedSubmission.load"}
    assert loads("json.loads(text)") == set()
