"""Commands that take the options of another command: one declaration, and the way back to a command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer


def with_options_of(command: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command also takes the arguments and options of `command`, as **options.

    A parameter that the command declares itself replaces the one with the same name.
    """
    shared = inspect.signature(command, eval_str=True).parameters

    def add(function: Callable[..., None]) -> Callable[..., None]:
        own = {
            name: parameter
            for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        # As typer reads a command: its arguments in their order, then all options by name.
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in ({**shared, **own}).values()
        ]
        function.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return function

    return add


def given_arguments(context: typer.Context, command: Callable[..., Any], without: tuple[str, ...] = ()) -> list[str]:
    """The part of the command line that `command` declares, as the user gave it: options first, then arguments."""
    names = inspect.signature(command).parameters.keys() - set(without)
    options: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source: Any = context.get_parameter_source(name)
        if name not in names or source is None or source.name == "DEFAULT":
            continue
        value: Any = context.params[name]
        if parameter.param_type_name == "argument":
            arguments.append(str(value))
        elif isinstance(value, bool):
            options.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            for item in value if getattr(parameter, "multiple", False) else (value,):
                options += (parameter.opts[0], str(item))
    return [*options, "--", *arguments]
