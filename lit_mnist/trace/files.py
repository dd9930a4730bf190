"""The files in which the two sides meet: what a traced training starts from, and what it recorded.

NumPy alone; neither framework is imported here.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lit_mnist.errors import InputError
from lit_mnist.runs.directory import write_file

# Weights in files have Keras' layout, whoever wrote them.
WEIGHTS = {
    "conv/kernel": (3, 3, 1, 6),
    "conv/bias": (6,),
    "hidden/kernel": (1176, 128),
    "hidden/bias": (128,),
    "output/kernel": (128, 10),
    "output/bias": (10,),
}


@dataclass(frozen=True)
class TraceInputs:
    """A training that is given in every detail.

    Args:
        run_id: copied to the outputs, so that those of another training are never taken for these.
        dtype: "float32" or "float64".
        weights: start weights in Keras' layout, with the keys and shapes of `WEIGHTS`.
        batches: int64 [S, B]: the training images of each step; -1 pads a short batch at its end.
        learning_rate: of Adam.
        steps_per_epoch: a divisor of S.
        record_at: int64 [K]: the steps, from 0, at which activations and gradients are recorded, and the weights and
            the moments of Adam after the update.
        data_dir: directory of the data set.
        verify_data: whether it has to be MNIST.
    """

    run_id: str
    dtype: str
    weights: dict[str, np.ndarray]
    batches: np.ndarray
    learning_rate: float
    steps_per_epoch: int
    record_at: np.ndarray
    data_dir: str = "data"
    verify_data: bool = True

    @property
    def epochs(self) -> int:
        return len(self.batches) // self.steps_per_epoch

    def rows(self, epoch: int) -> Iterator[np.ndarray]:
        """Yield the training images of each step of an epoch, from 0: [B], or fewer."""
        first = epoch * self.steps_per_epoch
        return (row[row >= 0] for row in self.batches[first : first + self.steps_per_epoch])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it, keyed as in a file."""
        own = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self) if field.name != "weights"}
        return own | {f"weights/{key}": array for key, array in self.weights.items()}

    def write(self, path: Path) -> None:
        write_arrays(path, self.arrays())

    @classmethod
    def read(cls, path: Path) -> "TraceInputs":
        """Read and check a file.

        Raises:
            InputError: if it is not a trace's input, names what is wrong with it.
        """
        arrays = read_arrays(path)
        try:
            inputs = cls(
                run_id=str(arrays["run_id"]),
                dtype=str(arrays["dtype"]),
                weights={key: arrays[f"weights/{key}"] for key in WEIGHTS},
                batches=arrays["batches"],
                learning_rate=float(arrays["learning_rate"]),
                steps_per_epoch=int(arrays["steps_per_epoch"]),
                record_at=arrays["record_at"],
                data_dir=str(arrays.get("data_dir", "data")),
                verify_data=bool(arrays.get("verify_data", True)),
            )
        except KeyError as error:
            raise InputError(f"{path}: {error.args[0]} is missing") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: {error}; expected what lit_mnist/trace_files.py describes") from error
        for name, dimensions in (("batches", 2), ("record_at", 1)):
            array = getattr(inputs, name)
            if array.dtype != np.int64 or array.ndim != dimensions:
                raise InputError(
                    f"{path}: {name} is {array.dtype} {array.shape}, expected int64, {dimensions} dimensions"
                )
        if inputs.steps_per_epoch != arrays["steps_per_epoch"]:
            raise InputError(f"{path}: steps_per_epoch is {arrays['steps_per_epoch']}, expected a whole number")
        if inputs.dtype not in {"float32", "float64"}:
            raise InputError(f"{path}: dtype is {inputs.dtype}, expected float32 or float64")
        for key, shape in WEIGHTS.items():
            if inputs.weights[key].shape != shape or inputs.weights[key].dtype != inputs.dtype:
                found = f"{inputs.weights[key].dtype} {inputs.weights[key].shape}"
                raise InputError(f"{path}: weights/{key} is {found}, expected {inputs.dtype} {shape}")
        if inputs.batches.size == 0:
            raise InputError(f"{path}: batches is {inputs.batches.shape}, expected [S, B]")
        padding = inputs.batches < 0
        if inputs.batches.min() < -1 or (padding[:, :-1] & ~padding[:, 1:]).any():
            raise InputError(f"{path}: batches has something else than -1 at the end of a row for padding")
        if not ((inputs.record_at >= 0) & (inputs.record_at < len(inputs.batches))).all():
            raise InputError(f"{path}: record_at names a step that is not one of the {len(inputs.batches)}")
        if not 0 <= inputs.learning_rate < np.inf:
            raise InputError(f"{path}: learning_rate is {inputs.learning_rate}, expected a number from 0 up")
        if (inputs.batches[:, 0] < 0).any():
            raise InputError(f"{path}: batches has a row without an image")
        if inputs.steps_per_epoch < 1 or len(inputs.batches) % inputs.steps_per_epoch:
            raise InputError(
                f"{path}: steps_per_epoch is {inputs.steps_per_epoch}, expected a divisor of {len(inputs.batches)}"
            )
        return inputs


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file; nothing in it is unpickled.

    Raises:
        InputError: if it is missing, torn or no .npz file.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged one shows as one of a dozen exceptions
        raise InputError(f"{path}: cannot be read as .npz ({error})") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file; it is there as a whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the names for its own flags
    write_file(path, buffer.getvalue())


def digest(array: np.ndarray) -> np.ndarray:
    """Return the sha256 of an array's elements in row order, as an array for a file."""
    return np.array(hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())
