"""MkDocs hooks: pages of the site that are not files in docs/, and the links to and from them.

CHANGELOG.md, CONTRIBUTING.md and benchmarks/ stay where GitHub readers look for them. The command-line reference is
generated from the `maskmill` command itself.
"""

from __future__ import annotations

import html
import posixpath
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Path in the repository -> path in the site, for files outside docs/.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks/index.md",
    **{
        f"benchmarks/{path.relative_to(ROOT / 'benchmarks').as_posix()}": path.relative_to(ROOT).as_posix()
        for pattern in ("log-*.md", "results/*.md")
        for path in sorted((ROOT / "benchmarks").glob(pattern))
    },
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files outside docs/ and the generated command-line reference."""
    for path, place in ELSEWHERE.items():
        # Pages in the navigation must be there; the results are reached by links only.
        inclusion = InclusionLevel.NOT_IN_NAV if "results/" in place else InclusionLevel.INCLUDED
        file = File.generated(config, place, abs_src_path=str(ROOT / path), inclusion=inclusion)
        files.append(file)
    files.append(File.generated(config, "cli.md", content=_command_line_reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    in_repository = {place: path for path, place in ELSEWHERE.items()}
    here = page.file.src_uri
    folder = posixpath.dirname(in_repository.get(here, f"docs/{here}"))

    def relink(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        place = ELSEWHERE.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(place, posixpath.dirname(here) or ".")

    return LINK.sub(relink, markdown)


def _command_line_reference() -> str:
    """The help of every command as Markdown, as `typer utils docs` writes it."""
    command = [sys.executable, "-m", "typer", "maskmill.jobs.cli", "utils", "docs", "--name", "maskmill"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [
        _example(line) if line.startswith("  maskmill ") else line.replace("*.", r"\*.") for line in text.splitlines()
    ]
    return "\n".join(lines).replace("# `maskmill`", "# Command line", 1)


def _example(line: str) -> str:
    """An example, which help texts indent by two spaces, as Markdown's code, which is indented by four."""
    return "  " + html.unescape(line)
