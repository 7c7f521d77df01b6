"""The reference page is made from the types, and every key has a meaning there."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def generator():
    spec = importlib.util.spec_from_file_location("site_config", ROOT / "docs" / "site_config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_types_say():
    module = generator()
    assert module.PAGE.read_text(encoding="utf-8") == module.render(), (
        "run: python docs/site_config.py"
    )


def test_every_key_has_a_meaning():
    rows = [line for line in generator().render().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if not row.split(" | ")[-1].strip(" |")] == []
