"""What Keras' side answered during a climb, in one file: a golden. With it the ladder needs no Keras.

Of arrays with two axes or more and more than `KEPT` numbers a golden keeps some, of predictions `KEPT_ROWS` rows; those
of the port are thinned alike before they are compared. Whole are what a training starts from, the losses of all steps,
and all that has one axis.
The file (.npz) holds `index`, JSON in bytes, one flat array for each dtype, in which equal arrays stand once, and a
digest of both.
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from keras_ref.parity.comparisons import Comparison, NotChecked
from keras_ref.parity.samples import drawn_again
from lit_mnist.errors import InputError
from lit_mnist.trace.files import Arrays, read_arrays, write_arrays

FORMAT = "golden of keras_ref.parity, 2"
# A tensor that is wrong in one element of a hundred shows among 256 with a probability of 92 %, and what is wrong in
# one tensor shows in the others a step later.
KEPT = 256
# Of predictions, rows. In float32 after 6,000 steps the root mean square of their errors is that of the few images on
# which the model is undecided: of every 400th row, the port's error was 0.17 to 3.9 times Keras' own, by which row was
# first (5 % to 95 %), of every tenth 0.71 to 1.13, and of all 0.88.
KEPT_ROWS = 1000
SHIPPED = Path(str(files("keras_ref.parity") / "golden.npz"))  # of the documented model; docs/traces.md says how
THINNED = re.compile(r"(trace/.*|facts/.*:initial/.*)")  # requests and names of which large arrays are thinned
WHOLE = re.compile(r"trace/.*:loaded/.*")  # and of those, which are not: they are what inputs hold


class NotInGoldenError(InputError):
    """Something was asked for that nobody asked Keras' side when a golden was recorded."""


class Recorded(dict[str, np.ndarray]):
    """Arrays of which some are thinned; `whole` has the shapes that those had, by name."""

    def __init__(self, arrays: Arrays, whole: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(arrays)
        self.whole = dict(whole)


@dataclass(frozen=True)
class Golden:
    """The answers of Keras' side.

    Args:
        path: of the file.
        plan: what was asked for: flags of the command and their values, and `source`, a digest of the original's file.
        versions: of what answered.
        answers: by what was asked.
        files: that Keras' side wrote for the port's to read, by their paths below the directory of both sides.
    """

    path: Path
    plan: dict[str, Any]
    versions: dict[str, str]
    answers: dict[str, Recorded]
    files: dict[str, bytes]

    @classmethod
    def read(cls, path: Path) -> "Golden":
        """Read a file; nothing in it is unpickled.

        Raises:
            InputError: if it is missing, torn, something else than a golden, or not as it was written.
        """
        arrays = read_arrays(path)
        try:
            index = json.loads(arrays["index"].tobytes())
            if index["format"] != FORMAT:
                raise ValueError(f"format {index['format']}, expected {FORMAT}")
            if str(arrays.pop("digest")) != _digest(arrays):
                raise ValueError("its content is not what was written")
            answers = {asked: _taken(entries, arrays) for asked, entries in index["answers"].items()}
            files = {_below(name): _array(entry, arrays).tobytes() for name, entry in index["files"].items()}
            return cls(path, index["plan"], index["versions"], answers, files)
        except Exception as error:  # a foreign one shows as one of a dozen exceptions
            what = "index is missing" if "index" not in arrays else " ".join(str(error).split())[:200]
            raise InputError(
                f"--import_golden {path}: not a golden, or damaged ({what}); record one with --export_golden"
            ) from error

    def write(self) -> None:
        """Write the file; it is there as a whole or not at all."""
        store = _Store()
        index = {
            "format": FORMAT,
            "plan": self.plan,
            "versions": self.versions,
            "answers": {
                asked: {name: store.put(array, answer.whole.get(name)) for name, array in answer.items()}
                for asked, answer in self.answers.items()
            },
            "files": {name: store.put(np.frombuffer(content, np.uint8)) for name, content in self.files.items()},
        }
        arrays = store.arrays() | {"index": np.frombuffer(json.dumps(index).encode(), np.uint8)}
        write_arrays(self.path, arrays | {"digest": np.array(_digest(arrays))}, compressed=True)

    def check(self, plan: Mapping[str, Any]) -> None:
        """Make sure that it is of this plan.

        Raises:
            InputError: names the first difference.
        """
        for name, value in plan.items():
            recorded = self.plan.get(name)
            if recorded == value or (name == "source" and None in (recorded, value)):
                continue
            if name == "source":
                raise InputError(
                    f"--import_golden {self.path}: the file of --reference {plan['reference']} is not the one that it "
                    "was recorded of; record it anew with --export_golden"
                )
            raise InputError(
                f"--{name} {_shown(value)}: --import_golden {self.path} was recorded with --{name} {_shown(recorded)}; "
                "give the same, or record another with --export_golden"
            )

    def answer(self, asked: str) -> Recorded:
        """Return the answer to what was asked.

        Raises:
            NotInGoldenError: if it was not asked then.
        """
        if asked not in self.answers:
            raise NotInGoldenError(f"{self.path} does not hold it")
        return self.answers[asked]

    def check_data(self, ours: Arrays) -> None:
        """Make sure that both sides were given the same examples.

        Raises:
            InputError: names those that differ.
        """
        for answer in self.answers.values():
            for name, recorded in answer.items():
                if name.startswith("examples/") and str(ours.get(name)) != str(recorded):
                    raise InputError(
                        f"--data {self.plan['data']}: {name.removeprefix('examples/')} are not those that "
                        f"--import_golden {self.path} was recorded with; record it anew with --export_golden"
                    )


def thinned(asked: str, answer: Arrays) -> Recorded:
    """Return an answer as a golden keeps it."""
    kept, whole = {}, {}
    for name, array in answer.items():
        of = f"{asked}:{name}"
        kept[name] = array
        if THINNED.fullmatch(of) and not WHOLE.fullmatch(of):
            kept[name] = thin(name, array)
            if kept[name] is not array:
                whole[name] = array.shape
    return Recorded(kept, whole)


def alike(ours: Arrays, theirs: Arrays) -> Arrays:
    """Return arrays of the port, thinned where those of Keras are."""
    if not isinstance(theirs, Recorded):
        return ours
    # What a layer gives comes with an activation function applied once more, too, as in activations/0/dense|tanh.
    plain = {name: name.partition("|")[0] for name in ours}
    return {
        name: thin(plain[name], array) if theirs.whole.get(plain[name]) == array.shape else array
        for name, array in ours.items()
    }


def comparable(theirs: Arrays, ours: Arrays) -> Arrays:
    """Return arrays of Keras; of those that are thinned, and have another shape than the port's, only the shape."""
    if not isinstance(theirs, Recorded):
        return theirs
    others = {
        name: np.broadcast_to(np.nan, shape)
        for name, shape in theirs.whole.items()
        if _shape(ours, name) not in (None, shape)
    }
    return Recorded({**theirs, **others}, {name: shape for name, shape in theirs.whole.items() if name not in others})


def thin(name: str, array: np.ndarray) -> np.ndarray:
    """Return every n-th element of a large array, [k, 1]; of predictions every n-th row, since a row is an answer."""
    if array.ndim < 2 or array.size == 0 or (step := _step(name, array.shape)) == 1:
        return array
    return array[::step] if name == "probabilities" else array.ravel()[::step].reshape(-1, 1)


def with_shares(answer: Arrays, whole: Arrays) -> dict[str, np.ndarray]:
    """Return facts with `again/<key>`, what can be said of whole start weights alone."""
    return {**answer} | {f"again/{key}": np.array(share) for key, share in drawn_again(whole).items()}


def placed(found: Iterable[Comparison | NotChecked], theirs: Arrays) -> Iterator[Comparison | NotChecked]:
    """Name elements of thinned arrays by their places in the whole ones."""
    for one in found:
        match = re.fullmatch(r"(.*?)([^ ]+)\[(\d+), (\d+)\]", one.what)
        if isinstance(theirs, Recorded) and match and match[2] in theirs.whole:
            shape, (row, column) = theirs.whole[match[2]], (int(match[3]), int(match[4]))
            at = row * _step(match[2], shape)
            place = (at, column) if match[2] == "probabilities" else np.unravel_index(at, shape)
            one = replace(one, what=f"{match[1]}{match[2]}[{', '.join(map(str, place))}]")
        yield one


def source_digest(reference: str) -> str | None:
    """Return the sha256 of the file that a reference is in, as text with any line ends; None if it is not found.

    Nothing is imported: that might need Keras.
    """
    file = reference if reference.endswith(".keras") else f"{reference.partition(':')[0].replace('.', '/')}.py"
    found = [path for path in (Path(entry, file) for entry in ("", *sys.path)) if path.is_file()]
    if not found:
        return None
    content = found[0].read_bytes()
    return hashlib.sha256(content if file.endswith(".keras") else b"\n".join(content.splitlines())).hexdigest()


class _Store:
    """Arrays one behind the other, one flat array a dtype; equal ones once."""

    def __init__(self) -> None:
        self.parts: dict[str, list[np.ndarray]] = {}
        self.places: dict[tuple[str, bytes], int] = {}
        self.sizes: dict[str, int] = {}

    def put(self, array: np.ndarray, whole: tuple[int, ...] | None = None) -> dict[str, Any]:
        """Keep an array, and return what finds it again."""
        if array.dtype.kind == "U":
            return {"text": array.tolist()}
        stored = np.ascontiguousarray(array).ravel()
        if array.dtype == np.float64:
            with np.errstate(over="ignore"):
                narrow = stored.astype(np.float32)
            if narrow.astype(np.float64).tobytes() == stored.tobytes():
                stored = narrow
        dtype = stored.dtype.name
        known = (dtype, hashlib.sha256(stored.tobytes()).digest())
        if known not in self.places:
            self.places[known] = self.sizes.get(dtype, 0)
            self.parts.setdefault(dtype, []).append(stored)
            self.sizes[dtype] = self.places[known] + stored.size
        entry = {"dtype": array.dtype.name, "shape": array.shape, "stored": dtype, "at": self.places[known]}
        return entry | ({"whole": whole} if whole else {})

    def arrays(self) -> dict[str, np.ndarray]:
        return {f"numbers/{dtype}": np.concatenate(parts) for dtype, parts in self.parts.items()}


def _taken(entries: Mapping[str, Any], arrays: Arrays) -> Recorded:
    whole = {name: tuple(entry["whole"]) for name, entry in entries.items() if "whole" in entry}
    return Recorded({name: _array(entry, arrays) for name, entry in entries.items()}, whole)


def _array(entry: Mapping[str, Any], arrays: Arrays) -> np.ndarray:
    if "text" in entry:
        return np.array(entry["text"])
    size = math.prod(entry["shape"])
    numbers = arrays[f"numbers/{entry['stored']}"][entry["at"] : entry["at"] + size]
    return numbers.astype(entry["dtype"]).reshape(entry["shape"])


def _digest(arrays: Arrays) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        sha256.update(f"{name} {arrays[name].dtype} {arrays[name].size}\n".encode())
        sha256.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha256.hexdigest()


def _step(name: str, shape: tuple[int, ...]) -> int:
    """Return the least n of which every n-th row, or number, is few enough; of numbers one that keeps to no column."""
    if name == "probabilities":
        return -(-shape[0] // KEPT_ROWS)
    size = math.prod(shape)
    return next(n for n in range(-(-size // KEPT), size + 1) if math.gcd(n, size) == 1)


def _shape(arrays: Arrays, name: str) -> tuple[int, ...] | None:
    return arrays[name].shape if name in arrays else None


def _below(name: str) -> str:
    """Refuse a path that leads out of its directory."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{name} leads out of its directory")
    return name


def _shown(value: Any) -> str:
    return "null" if value in (None, "") else str(value)
