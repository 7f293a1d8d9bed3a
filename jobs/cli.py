"""The `maskmill` command line: registers the commands, prints one line per error, sets the exit code.

0: done, with or without failed images; 1: error; 2: wrong usage; 130: interrupted; 141: the reader of the output closed
the pipe (`| head`); 143: terminated.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from maskmill.jobs.compare import compare
from maskmill.jobs.demo import demo
from maskmill.jobs.diff import diff
from maskmill.jobs.doctor import doctor
from maskmill.jobs.evaluate import evaluate
from maskmill.jobs.export import export
from maskmill.jobs.generate import generate
from maskmill.jobs.import_ import import_
from maskmill.jobs.info import info
from maskmill.jobs.jobs import jobs
from maskmill.jobs.log import LogFormat, LogHandler, log
from maskmill.jobs.models import models
from maskmill.jobs.plan import plan
from maskmill.jobs.preview import preview
from maskmill.jobs.query import query
from maskmill.jobs.report import report
from maskmill.jobs.retry import retry
from maskmill.jobs.status import status
from maskmill.jobs.submit import submit
from maskmill.jobs.train import train
from maskmill.jobs.verify import verify
from maskmill.jobs.view import view
from maskmill.model.errors import MaskmillError

# The groups of `maskmill --help`.
COMMANDS = {
    "Make masks": (plan, generate, retry, demo),
    "Clusters": (submit, jobs, doctor),
    "Look": (status, view, preview, report, query, info, models),
    "Exchange": (export, import_),
    "Judge": (verify, compare, diff, evaluate),
    "Train": (train,),
}

CLOSED_PIPE = 141  # exit code of shells for a program that SIGPIPE (13) ended: 128 + 13

app = typer.Typer(
    help="Automatic mask generation with Segment Anything: images in, Parquet tables of masks out.",
    pretty_exceptions_enable=False,
)
for group, commands in COMMANDS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, name="jobs", rich_help_panel=group)
        else:
            app.command(command.__name__.rstrip("_"), rich_help_panel=group)(command)


@app.callback(invoke_without_command=True)
def maskmill(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Runs before each command, and alone if there is none."""
    if show_version:
        typer.echo(f"maskmill {version('maskmill')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the arguments of the process) and returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # file names can have characters that the terminal cannot encode
    logging.basicConfig(level=logging.WARNING, handlers=[LogHandler()])
    log.use(LogFormat.text)
    arguments = sys.argv[1:] if arguments is None else arguments
    if "" in arguments:  # Path("") is the working directory
        before = " ".join(["maskmill", *arguments[: arguments.index("")]])
        return _fail(f"the argument after '{before}' is empty: is a shell variable unset?", 2)
    try:
        code = _run(arguments)
        if sys.stdout:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        pass
    except SystemExit as exit:  # rich and typer convert BrokenPipeError to SystemExit
        if not isinstance(exit.__context__, BrokenPipeError):
            raise
    except OSError as error:  # for example, stdout on a full disk
        return _fail(str(error), 1)
    _discard_unwritten()
    return CLOSED_PIPE


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return app(arguments, prog_name="maskmill", standalone_mode=False) or 0
    except MaskmillError as error:
        return _fail(str(error), 1)
    except typer.Abort:  # older versions of typer convert KeyboardInterrupt to it
        return 130
    except _UsageError as error:
        usage: Any = error
        command = usage.ctx.command_path if usage.ctx else "maskmill"
        return _fail(f"{usage.format_message()} See {command} --help", 2)


def _discard_unwritten() -> None:
    """Redirects closed pipes to /dev/null; otherwise Python prints an error when it flushes them at exit."""
    for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# The base class of usage errors, which typer does not export.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _fail(message: str, code: int) -> int:
    log.write("error", " ".join(message.split()))
    return code
