"""The documentation says what the program does."""

import ast
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
ALL = "\n".join(TEXT.values())


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def generated():
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()


@pytest.mark.parametrize("page", ["docs/cli.md", "docs/exit-codes.md", "README.md"])
def test_generated_pages_are_up_to_date(generated, page):
    path = ROOT / page
    assert path.read_text(encoding="utf-8") == generated[path], f"{page}: run `make docs`"


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as forges make them."""
    found = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", without_code(text), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower().replace("`", ""))
        found.add(slug.replace(" ", "-"))
    return found


def links(text: str) -> list[str]:
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(text))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    broken = []
    for link in links(TEXT[page]):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        lost = anchor and path.exists() and anchor not in anchors(path.read_text(encoding="utf-8"))
        if lost or not path.exists():
            broken.append(link)
    assert not broken


def test_every_page_is_reached_from_the_index():
    index = ROOT / "docs" / "index.md"
    seen, todo = set(), [index]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        for link in links(page.read_text(encoding="utf-8")):
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                path = (page.parent / target).resolve()
                todo.extend(sorted(path.glob("*.md")) if path.is_dir() else [path])
    missing = {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - seen
    assert not missing, f"no link from docs/index.md leads to {sorted(map(name, missing))}"


def test_decisions_are_numbered_once_and_dated():
    numbers = []
    for page in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        number = page.name[:4]
        assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", page.name), page.name
        assert TEXT[page].startswith(f"# {number} "), f"{name(page)}: begin with `# {number} `"
        assert re.search(r"20\d\d-\d\d-\d\d", TEXT[page]), f"{name(page)} has no date"
        numbers.append(number)
    assert len(numbers) == len(set(numbers)), "two decisions share a number"


def test_every_environment_variable_is_documented():
    used = set()
    for path in (ROOT / "hpcscale").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= set(re.findall(r"^HPCSCALE_[A-Z][A-Z_]*[A-Z]$", node.value))
    # names that only the lab's own processes see
    internal = {v for v in used if v.startswith("HPCSCALE_LAB") and v != "HPCSCALE_LAB_DIR"}
    missing = {v for v in used - internal if v not in ALL}
    assert not missing, f"documented nowhere: {sorted(missing)} (docs/environment.md)"


def test_make_targets_named_in_the_docs_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z-]+)`", ALL)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"no `make {target}`"


def test_commands_named_in_the_docs_exist():
    import click

    from hpcscale.cli import main

    problems = []
    for page, text in TEXT.items():
        for call in re.findall(r"`hpcscale((?: [a-z][a-z-]*)+)", text):
            command: click.Command = main
            context = click.Context(main)
            for word in call.split():
                if not isinstance(command, click.Group):
                    break
                child = command.get_command(context, word)
                if child is None:
                    problems.append(f"{name(page)}: hpcscale{call}")
                    break
                command = child
    assert not problems


def test_the_changelog_has_the_current_version():
    from hpcscale import __version__

    text = TEXT[ROOT / "CHANGELOG.md"]
    assert "## [Unreleased]" in text
    assert f"[{__version__}]" in text or __version__ == "0.1.0"
