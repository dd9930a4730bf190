"""How far two sets of arrays are apart, and how far they may be: NumPy alone."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from keras_ref.parity.tolerances import FLOAT32_RATIO, FLOAT64
from lit_mnist.trace.files import Arrays

NOTHING = np.array([np.nan])
OWN_ROUNDING = "twice Keras' own rounding"


@dataclass(frozen=True)
class Comparison:
    """One thing compared: what it was, how far the two sides are apart, and how far they may be.

    `against` says what it was held against where that is not Keras as it is.
    """

    what: str
    difference: float
    tolerance: float
    against: str = ""

    @property
    def holds(self) -> bool:
        return bool(self.difference <= self.tolerance)  # False for NaN


@dataclass(frozen=True)
class NotChecked:
    """What was not looked at, and why."""

    what: str
    why: str


def close_at_steps(
    kind: str,
    ours: Arrays,
    theirs: Arrays,
    exact: Arrays | None,
    unrounded: Arrays | None = None,
    skipped: Callable[[str], bool] = lambda key: False,
) -> Iterator[Comparison]:
    """Compare what was kept of single steps: one after the other; in float32 all together (see `close`).

    Args:
        kind: of what was kept.
        ours: arrays of the port.
        theirs: arrays of Keras.
        exact: in float32, Keras' in float64.
        unrounded: in float64, Keras' with constants that keep their bits, where they were recorded.
        skipped: whether what has such a key is left out.
    """
    steps = steps_of(theirs, kind)
    if not steps:
        return
    if exact is None:
        for step in steps:
            keys = [key for key in keys_of(theirs, f"{kind}/{step}") if not skipped(key)]
            yield from close(f"{kind}/{step}", keys, ours, theirs, unrounded=unrounded)
        return
    keys = [key for key in keys_of(theirs, f"{kind}/{steps[0]}") if not skipped(key)]
    together = [
        {
            f"{kind}/*/{key}": np.concatenate([arrays.get(f"{kind}/{step}/{key}", NOTHING).ravel() for step in steps])
            for key in keys
        }
        for arrays in (ours, theirs, exact)
    ]
    yield from close(f"{kind}/*", keys, *together)


def close(
    prefix: str,
    keys: Iterable[str],
    ours: Arrays,
    theirs: Arrays,
    exact: Arrays | None = None,
    unrounded: Arrays | None = None,
) -> Iterator[Comparison]:
    """Compare arrays, one after the other; in float32, the errors of both sides against the exact run, all together.

    An error in float32 is the root mean square over the elements of an array, relative to that of the exact array. Of
    all arrays together, the largest of our errors is held against the largest of theirs.
    """
    names = [f"{prefix}/{key}".lstrip("/") for key in keys]
    if not names:
        return
    if exact is None and unrounded is not None:
        for name in names:
            yield near_either(name, ours.get(name), theirs[name], unrounded[name])
        return
    if exact is None:
        for name in names:
            apart, where = largest_difference(ours.get(name), theirs[name])
            if apart > FLOAT64 and theirs[name].ndim == 1 and where.startswith("["):
                apart, where = first_difference(ours[name], theirs[name])  # of steps, the first tells more
            yield Comparison(f"{name}{where}", apart, FLOAT64)
        return
    our_error, what = max((relative_error(ours.get(name), exact[name]), name) for name in names)
    their_error = max(relative_error(theirs[name], exact[name]) for name in names)
    # Where Keras happens to hit the exact value, one rounding is what float32 can do at best.
    yield Comparison(what, our_error / max(their_error, 2.0**-24), FLOAT32_RATIO)


def near_either(name: str, ours: np.ndarray | None, theirs: np.ndarray, unrounded: np.ndarray) -> Comparison:
    """Compare with Keras as it is or, where the two differ, with Keras whose constants keep their bits.

    A port is right within what is allowed of either, and where it is no farther from the unrounded one than twice Keras
    as it is: what Keras rounds, a port may round otherwise. Differences of numbers beyond one are relative to the
    largest of the array.
    """
    size = max(1.0, float(np.abs(theirs).max(initial=0))) if np.isfinite(theirs).all() else 1.0
    apart, where = largest_difference(ours, theirs)
    if apart / size <= FLOAT64:
        return Comparison(f"{name}{where}", apart / size, FLOAT64)
    apart, where = largest_difference(ours, unrounded)
    apart /= size
    if apart > FLOAT64:
        own = largest_difference(theirs, unrounded)[0] / size
        allowed = 2 * own if own > FLOAT64 else FLOAT64
        if apart <= allowed:
            return Comparison(f"{name}{where}", apart, allowed, OWN_ROUNDING)
        if ours is not None and ours.shape == theirs.shape and theirs.ndim == 1 and where.startswith("["):
            apart, where = first_difference(ours / size, unrounded / size, allowed)  # of steps, the first tells more
    return Comparison(f"{name}{where}", apart, FLOAT64, "unrounded")


def first_difference(ours: np.ndarray, theirs: np.ndarray, allowed: float = FLOAT64) -> tuple[float, str]:
    """Return the first difference beyond what is allowed, and where it is, of arrays [S] that have one."""
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    first = int(np.argmax(~(apart <= allowed)))
    return float(np.nan_to_num(apart[first], nan=np.inf)), f"[{first}]"


def relative_error(ours: np.ndarray | None, exact: np.ndarray) -> float:
    """Return the root mean square error relative to that of the exact array; infinite for NaN and a missing array."""
    if ours is None or ours.shape != exact.shape:
        return np.inf
    error = np.sqrt(np.mean((ours.astype(np.float64) - exact) ** 2))
    size = np.sqrt(np.mean(exact.astype(np.float64) ** 2))
    return np.inf if np.isnan(error) else float(error / (size or 1.0))


def largest_difference(ours: np.ndarray | None, theirs: np.ndarray) -> tuple[float, str]:
    """Return the largest absolute difference of any element, and where it is; NaN and a missing array are far away."""
    if ours is None:
        return np.inf, " (not there)"
    if ours.shape != theirs.shape:
        return np.inf, f" {ours.shape} instead of {theirs.shape}"
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    apart[np.isnan(apart)] = np.inf
    worst = np.unravel_index(np.argmax(apart), apart.shape)
    return float(apart[worst]), "" if apart.ndim == 0 else f"[{', '.join(map(str, worst))}]"


def equal(what: str, ours: Arrays, theirs: Arrays, key: str) -> Comparison:
    return Comparison(what, float(not np.array_equal(ours.get(key, np.nan), theirs[key])), 0)


def keys_of(arrays: Arrays, prefix: str) -> list[str]:
    """Return what the names below a prefix go on with, by kind, as in "kernel" or "adam_m/conv/kernel"."""
    keys = [name.removeprefix(f"{prefix}/") for name in arrays if name.startswith(f"{prefix}/")]
    return sorted(keys, key=lambda key: key.partition("/")[0] if key.count("/") > 1 else "")


def steps_of(arrays: Arrays, kind: str) -> list[int]:
    """Return the steps of which `kind` was kept, as in gradients/10/conv/bias."""
    parts = [name.split("/") for name in arrays]
    return sorted({int(part[1]) for part in parts if part[0] == kind and part[1].isdigit()})
