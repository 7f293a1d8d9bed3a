"""The command line as a whole: help, versions, exit codes, one line per error."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from maskmill.jobs.cli import main


def test_help_does_not_wait_for_torch_and_ray():
    code = "import maskmill.jobs.cli, sys; print({'torch', 'ray', 'pyarrow', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "command",
    [
        *("plan", "generate", "retry", "demo", "preview", "verify", "info", "compare", "train", "status"),
        *("submit", "doctor", "jobs list", "jobs logs", "jobs stop"),
    ],
)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    assert main([*command.split(), "--help"]) == 0
    assert f"maskmill {command}" in capsys.readouterr().out.split("Example", 1)[1]


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"maskmill {version('maskmill')}\n"


def test_help_is_shown_when_there_is_no_command(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "generate" in capsys.readouterr().out


def test_help_lists_the_commands_in_groups(capsys: pytest.CaptureFixture[str]):
    main(["--help"])
    text = capsys.readouterr().out
    groups = {name: text.index(f" {name} ") for name in ("Make masks", "Clusters", "Look", "Judge", "Train")}
    assert list(groups) == sorted(groups, key=lambda name: groups[name])
    for command, group in {
        "generate": "Make masks",
        "jobs": "Clusters",
        "preview": "Look",
        "verify": "Judge",
        "train": "Train",
    }.items():
        before = [name for name, place in groups.items() if place < text.index(f" {command} ")]
        assert before[-1] == group


def test_bash_completes_the_name_of_a_command():
    environment = {"_MASKMILL_COMPLETE": "complete_bash", "COMP_WORDS": "maskmill gen", "COMP_CWORD": "1"}
    code = "from maskmill.jobs.cli import main; main([])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["generate"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "a", "b", "--nonsense"], "maskmill: error: No such option"),
        (["generate", "a"], "maskmill: error: Missing argument 'OUT'"),
        (["preview"], "maskmill: error: Missing argument 'OUT'"),
        (["verify"], "maskmill: error: Missing argument 'OUT'"),
        (["compare", "a"], "maskmill: error: Missing argument 'RUN_B'"),
        (["train"], "maskmill: error: Missing argument 'OUT'"),
        (["generate", "a", "b", "--points-per-side", "x"], "maskmill: error: Invalid value for '--points-per-side'"),
        (["nonsense"], "maskmill: error: No such command 'nonsense'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert "--help" in error


def test_our_errors_are_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "/no/such/place", "/no/output"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("maskmill: error: /no/such/place: ")
    assert captured.err.count("\n") == 1


def test_warnings_are_lines_and_said_once():
    code = (
        "import logging; from jobs.cli import main; main(['--version']);"
        "[logging.getLogger('maskmill.pipeline.sources').warning('%d files left out', 3) for _ in range(2)]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "maskmill: warning: 3 files left out\n"


@pytest.mark.parametrize(
    ("arguments", "before"),
    [
        (["generate", "photographs", ""], "generate photographs"),
        (["generate", "", "out"], "generate"),
        (["retry", ""], "retry"),
        (["preview", ""], "preview"),
        (["preview", "out", "--to", ""], "preview out --to"),
        (["verify", ""], "verify"),
        (["compare", "out", ""], "compare out"),
        (["demo", ""], "demo"),
        (["train", ""], "train"),
        (["evaluate", "--data", "out", "--out", ""], "evaluate --data out --out"),
    ],
)
def test_empty_argument_is_refused_and_never_means_the_working_directory(
    arguments: list[str],
    before: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"maskmill: error: the argument after 'maskmill {before}' is empty: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "photographs", "out"],
        ["retry", "out"],
        ["preview", "out"],
        ["verify", "out"],
        ["compare", "out", "out"],
        ["evaluate", "--data", "out", "--out", "report"],
    ],
)
def test_output_of_another_version_is_refused_by_every_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_run.json").write_text('{"schema_version": 1, "source": "/photographs"}')
    (tmp_path / "out" / "_plan.parquet").write_bytes(b"")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "out: made by another version of maskmill, with schema version 1; this one has " in error
    assert error.count("\n") == 1
