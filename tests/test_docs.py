"""The pages: links and named files exist, commands parse and run, and the site is built strictly."""

from __future__ import annotations

import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.core import TyperGroup
from typer.main import get_command

from maskmill.jobs.cli import app, main
from testing.ray_cluster import this_machine
from tests.fakes import picture

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


# What a block of commands may need beside this package and a CPU.
NEEDS = {"AWS", "Kubernetes", "Slurm", "a cluster", "a GPU", "the published weights"}
PAGES_THAT_RUN = ("laptop.md", "slurm.md", "sizing.md", "trouble.md")
PAGES_THAT_NEED_MORE = ("gpu.md", "aws.md", "kubernetes.md")


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
    name, *words = words[words.index("maskmill") :]
    if words[0].startswith("--"):
        assert words[0] in {"--version", "--help", "--install-completion", "--show-completion"}
        return
    command = get_command(app)
    while isinstance(command, TyperGroup):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)  # parses and does not run


def _commands_to_run(page: str) -> list[str]:
    """The commands of a page. A block with a line such as `# needs AWS` is left out; others hold only our commands."""
    lines = (ROOT / "docs" / "tasks" / page).read_text(encoding="utf-8").splitlines()
    commands: list[str] = []
    for is_block, block in itertools.groupby(lines, lambda line: line.startswith("    ")):
        stripped = [line.strip() for line in block]
        needs = [line.removeprefix("# needs ") for line in stripped if line.startswith("# needs ")]
        assert set(needs) <= NEEDS, needs
        if is_block and not needs:
            assert [line for line in stripped if not line.startswith("maskmill ")] == []
            commands += stripped
    return commands


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with photographs, TIFFs and a run `out/`, as the pages assume, and Ray for their commands."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "photos" / "kitchen").mkdir(parents=True)
    (folder / "photos" / "a.png").write_bytes(picture(0))
    Image.open(io.BytesIO(picture(1))).save(folder / "photos" / "kitchen" / "cup.jpg")
    (folder / "tiffs").mkdir()
    bands = np.random.default_rng(0).integers(0, 4000, (32, 40, 5), np.uint16)
    tifffile.imwrite(folder / "tiffs" / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    with this_machine(num_cpus=2):
        assert main(["generate", str(folder / "photos"), str(folder / "out")]) == 0
        yield folder


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("page", PAGES_THAT_RUN)
def test_commands_of_a_page_run_one_after_the_other(page: str, working_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(working_folder)
    for command in _commands_to_run(page):
        assert main(shlex.split(command, comments=True)[1:]) == 0, command


def test_every_page_about_running_has_commands_that_run_or_say_what_they_need():
    assert [page for page in PAGES_THAT_RUN if not _commands_to_run(page)] == []
    for page in PAGES_THAT_NEED_MORE:
        assert _commands_to_run(page) == [], page


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
