"""`constraints-lowest.txt` has the lowest versions that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1]
# Tools are not part of what users install; of torch only one version can be installed without CUDA.
NOT_LOWEST = {"torch"}


def test_lowest_versions_are_those_that_are_tested():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [
        *project["dependencies"],
        *(r for extra in ("demo", "evaluate", "train", "view") for r in extras[extra]),
    ]
    floors = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(requirements), re.MULTILINE))
    lines = (PROJECT / "constraints-lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    for name in floors.keys() - NOT_LOWEST:
        assert f"{tested[name]}.".startswith(f"{floors[name]}."), (
            f"{name}: {floors[name]} allowed, {tested[name]} tested"
        )
