"""GGUF block formats: arrays in, blocks out.

A format is a module of this folder that calls `register`; all of them are imported here.
"""

from __future__ import annotations

import importlib
import pkgutil

from llmkit.quant.rows import dequantize, has_importance, quantize
from llmkit.quant.types import (
    BlockFields,
    BlockLayout,
    QuantType,
    quant_names,
    quant_type,
    quant_type_of,
)

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "BlockFields",
    "BlockLayout",
    "QuantType",
    "dequantize",
    "has_importance",
    "quant_names",
    "quant_type",
    "quant_type_of",
    "quantize",
]
