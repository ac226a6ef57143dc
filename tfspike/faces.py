"""The faces of packages: names that are loaded when they are used, and modules under the names that they had before.

A command checks its flags before it loads TensorFlow, so a package's `__init__` may hand names on without importing
them. Needs no TensorFlow.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, ModuleType
from typing import Any


def on_use(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that hands names on from its modules.

    Args:
      package: its `__name__`.
      home: `{name: module of the package}`.
    """

    def __getattr__(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__


class Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An import hook: `import tfspike.layers`, `python -m tfspike.results` and old pickles find what has moved.

    Args:
      home: `{former name: name}`, both whole; each pair is one module.
    """

    def __init__(self, home: Mapping[str, str]):
        self._home = home
        self._real: dict[str, Any] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self._home:
            return None
        spec = importlib.util.spec_from_loader(name, self)
        real = importlib.util.find_spec(self._home[name])
        if spec is not None and real is not None:
            spec.origin = real.origin
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._home[spec.name])
        self._real[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # the import system has just written the former name into it
            module.__spec__ = self._real.pop(module.__spec__.name)

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m`."""
        spec = importlib.util.find_spec(self._home[name])
        return spec.loader.get_code(self._home[name])  # type: ignore[union-attr]
