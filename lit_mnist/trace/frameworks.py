"""Keep the frameworks apart: a process with both TensorFlow and torch in it has crashed and hung."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


class Refused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Let imports of some packages fail with a message.

    Args:
        packages: their names.
        message: says why, and what to do.
    """

    def __init__(self, packages: tuple[str, ...], message: str) -> None:
        self.packages, self.message = packages, message

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in self.packages else None

    def exec_module(self, module: ModuleType) -> None:
        raise ImportError(self.message)


def refuse(*packages: str, message: str) -> None:
    """Let imports of these packages fail from now on in this process."""
    sys.meta_path.insert(0, Refused(packages, message))
