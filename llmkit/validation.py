"""Building a dataclass from what a user or a file says."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from llmkit.errors import ConfigError

T = TypeVar("T")


def validated(kind: type[T], fields: dict[str, Any], where: str) -> T:
    """Build `kind` from a mapping; ConfigError names the first field that is wrong."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{where}: {field}: {first['msg'].lower()}") from error
