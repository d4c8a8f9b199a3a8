"""Options that several commands have, read as one argument."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

Command = Callable[..., None]


def with_options(argument: str, group: Callable[..., Any]) -> Callable[[Command], Command]:
    """Give a command the options that are the parameters of `group`.

    They stand where `argument` does, and the command gets as that what `group` returns.
    """
    options = _parameters(group, "return")

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**arguments: Any) -> None:
            given = {option.name: arguments.pop(option.name) for option in options}
            command(**arguments, **{argument: group(**given)})

        parameters: list[Parameter] = []
        for own in _parameters(command, argument):
            parameters += options if own.name == argument else [own]
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameters(function: Callable[..., Any], unread: str) -> list[Parameter]:
    """With their types, but for that of `unread`, which may be imported for type checkers only."""
    kinds = get_type_hints(
        function, localns={function.__annotations__[unread]: Any}, include_extras=True
    )
    return [
        parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kinds[parameter.name])
        for parameter in signature(function).parameters.values()
    ]
