"""The examples of a comparison: NumPy arrays that a function returns, the same for both sides."""

import functools
import hashlib
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_mnist.errors import InputError
from lit_mnist.trace.files import digest

PREDICTED = 1_000  # training examples that are predicted where there are none to test on


@dataclass(frozen=True)
class Examples:
    """What a model is trained and tested on, as Keras takes it.

    Args:
        arrays: inputs [I, ...], targets [I, ...] and, where there are any, sample weights [I].
        tests: the same to test on; None for none.
    """

    arrays: tuple[np.ndarray, ...]
    tests: tuple[np.ndarray, ...] | None

    def __len__(self) -> int:
        return len(self.arrays[0])

    def batch(self, rows: np.ndarray, dtype: str) -> tuple[np.ndarray, ...]:
        """Return the examples of some rows, numbers with a fraction in `dtype`."""
        return tuple(_in(array[rows], dtype) for array in self.arrays)

    def test(self, dtype: str) -> tuple[np.ndarray, ...]:
        """Return what is predicted in the end: the test examples or, without any, the first training examples."""
        arrays = self.tests if self.tests is not None else tuple(array[:PREDICTED] for array in self.arrays)
        return tuple(_in(array, dtype) for array in arrays)

    def digests(self) -> dict[str, np.ndarray]:
        """Return `examples/...`, a digest of each array."""
        names = ("inputs", "targets", "weights")
        arrays = (
            zip(names, self.arrays, strict=False),
            zip([f"test {n}" for n in names], self.tests or (), strict=False),
        )
        return {f"examples/{name}": digest(array) for pairs in arrays for name, array in pairs}


def row_digests(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return a number for each row of some arrays, the same for the same numbers in any dtype: uint64 [N]."""
    rows = [
        np.ascontiguousarray(np.asarray(array, np.float32).reshape(len(array), -1)).view(np.uint8) for array in arrays
    ]
    together = np.concatenate(rows, axis=1)
    return np.array([int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest()) for row in together], "u8")


@functools.cache  # a side asks for them in every training
def load_examples(name: str) -> Examples:
    """Call `package.module:function` and check what it returns.

    It returns `(x, y)` or `(x, y, sample_weight)` to train on, or a pair of such tuples, the second to test on.

    Raises:
        InputError: names what was returned and what was expected.
    """
    value = call_named("data", name, "package.module:function")
    pair = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, tuple | list) for v in value)
    train, tests = value if pair else (value, None)
    _check(name, train)
    if tests is not None:
        _check(name, tests)
        for ours, theirs in zip(train, tests, strict=False):
            if ours.shape[1:] != theirs.shape[1:]:
                raise InputError(f"--data {name}: {ours.shape[1:]} to train on and {theirs.shape[1:]} to test on")
    return Examples(tuple(train), None if tests is None else tuple(tests))


def call_named(flag: str, name: str, expected: str) -> Any:
    """Return what `package.module:function` returns.

    Args:
        flag: that names it, for messages.
        name: of it.
        expected: what would have been right.

    Raises:
        InputError: if there is no such function, or it raises.
    """
    module, _, function = name.partition(":")
    there = False
    try:
        named = getattr(importlib.import_module(module), function)
        there = True
        return named()
    except InputError:
        raise
    except Exception as error:  # a file of anybody's may do anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"--{flag} {name}: {reason}" + ("" if there else f"; expected {expected}")) from error


def _check(name: str, arrays: Any) -> None:
    expected = "expected (x, y) or ((x, y), (x_test, y_test)), NumPy arrays as Keras takes them"
    if not (isinstance(arrays, tuple | list) and len(arrays) in (2, 3)):
        raise InputError(f"--data {name}: returns {type(arrays).__name__}; {expected}")
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or array.ndim == 0:
            what = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"--data {name}: holds {what}; {expected}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"--data {name}: holds NaN or infinity; take them out")
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"--data {name}: arrays of {[len(array) for array in arrays]} examples; expected as many each")


def _in(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(dtype) if array.dtype.kind == "f" else array
