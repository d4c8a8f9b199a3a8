"""Options that several commands take together, as one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, NamedTuple, get_type_hints

Command = Callable[..., None]


class Option(NamedTuple):
    """What Typer is told of an option."""

    kind: Any  # Annotated[type, typer.Option(...)]
    default: Any = None


def with_options(
    argument: str, options: Mapping[str, Option], make: Callable[..., Any]
) -> Callable[[Command], Command]:
    """Give a command these options; it gets `make(**options)` as `argument`."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in options}
            command(**{argument: make(**given)}, **arguments)

        # Its own class may be imported for type checkers only.
        unseen = {str(command.__annotations__[argument]): Any}
        hints = get_type_hints(command, localns=unseen, include_extras=True)
        parameters: list[Parameter] = []
        for parameter in signature(command).parameters.values():
            if parameter.name == argument:  # the options stand in its place
                parameters += [
                    Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
                    for name, (kind, default) in options.items()
                ]
            else:
                kind = hints[parameter.name]
                parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind))
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
