"""The pages: links and named files exist, commands parse, and the site is built strictly."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from maskmill.jobs.cli import app

ROOT = Path(__file__).parents[1]
# MkDocs checks the links of docs/ and benchmarks/ (`make docs`), but not these.
OUTSIDE_THE_SITE = (ROOT / "README.md",)
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
COMMANDS = [
    pytest.param(line.strip(), id=f"{page.relative_to(ROOT)}:{number}")
    for page in PAGES
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    if re.match(r" {4,}(ray job submit .* -- )?maskmill ", line)
]


@pytest.mark.parametrize("page", OUTSIDE_THE_SITE, ids=lambda page: page.name)
def test_every_relative_link_of_a_page_leads_to_a_file(page: Path):
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_source_file_that_a_page_names_exists(page: Path):
    named = set(re.findall(r"`((?:[a-z0-9_]+/)+[a-z0-9_]+\.py)`", page.read_text(encoding="utf-8")))
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_pages_has_arguments_that_the_command_line_accepts(line: str):
    words = shlex.split(line, comments=True)
    words = words[words.index("maskmill") + 1 :]
    if words[0].startswith("--"):
        assert words[0] in {"--version", "--help", "--install-completion", "--show-completion"}
        return
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    command = group.commands[words[0]]
    command.make_context(words[0], words[1:])  # parses and does not run


def _copy_of_the_pages(folder: Path) -> None:
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("*.py", "*.json"))
    (folder / "src").symlink_to(ROOT / "src")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("addition", "complaint"),
    [
        ("", ""),
        ("[a page](0000-nothing.md)", "0000-nothing.md"),
        ("[a section](tables.md#nothing)", "#nothing"),
        ("::: maskmill.nothing", "maskmill.nothing"),
    ],
    ids=["pages as they are", "no such page", "no such section", "no such name in the API"],
)
def test_building_the_site_fails_when_a_link_or_reference_is_broken(tmp_path: Path, addition: str, complaint: str):
    _copy_of_the_pages(tmp_path)
    with (tmp_path / "docs" / "install.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{addition}\n")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=tmp_path,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode != 0) == bool(addition), built.stderr
    assert complaint in built.stderr
