"""Building a dataclass from what a user or a file says."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from pydantic import ValidationError

from llmkit.errors import ConfigError, wrong_field

T = TypeVar("T")


def validated(kind: type[T], fields: dict[str, Any], where: str) -> T:
    """Build `kind` from a mapping; ConfigError names the first field that is wrong."""
    try:
        return kind(**fields)
    except ValidationError as error:
        known = inspect.signature(kind).parameters
        raise ConfigError(f"{where}: {wrong_field(error, known)}") from error
