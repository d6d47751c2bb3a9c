"""torch and pandas, loaded when first needed: declarations are read without waiting for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pandas
    import torch as torch
else:
    import importlib

    class _Module:
        """Stands for a module until an attribute of it is asked for."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self._name), name)

    torch, pandas = _Module("torch"), _Module("pandas")
