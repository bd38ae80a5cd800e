"""Every link between the pages leads somewhere, and the README stays short."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PAGES = sorted(
    Path(name)
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()
)  # fmt: skip


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(page):
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page, text):
    """Links of a page that lead nowhere."""
    for target in LINK.findall(without_code(text)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page):
    assert not list(broken(ROOT / page, (ROOT / page).read_text()))


def test_a_broken_link_is_found():
    text = "[a](README.md) [b](nowhere.md) [c](README.md#quick-start) [d](README.md#nowhere)"
    assert list(broken(ROOT / "README.md", text)) == ["nowhere.md", "README.md#nowhere"]


def test_the_readme_is_short_and_shows_it_at_work_before_the_first_table():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 170
    assert text.index("peoplecounter watch") < text.index("make demo") < text.index("|---")


def test_paths_named_in_code_and_pages_exist():
    """A docstring or page that names a file of the project names one that is there."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    known = set(listed.stdout.split())
    named = re.compile(r"(?<![\w/.-])((?:common|services|deploy|tests)/[\w/.-]+\.(?:py|md|sh|json|onnx|yaml|toml|in))")
    free = {"CHANGELOG.md", "tests/contract/test_tree.py"}  # they name files that existed, or never did
    missing = {
        (name, path)
        for name in known - free
        if name.endswith((".py", ".md", ".sh", ".yaml", ".in"))
        for path in named.findall((ROOT / name).read_text())
        if path not in known
    }  # fmt: skip
    assert not missing
