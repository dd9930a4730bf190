"""The files in which the two sides meet: what a traced training starts from, and what came out of it.

NumPy alone; neither framework is imported here, and no model is known.
"""

import hashlib
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lit_mnist.errors import InputError
from lit_mnist.runs.files import write_file

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TraceInputs:
    """A training that is given in every detail.

    Args:
        run_id: copied to the outputs, so that those of another training are never taken for these.
        dtype: "float32" or "float64".
        weights: start weights in Keras' layout, keyed as in "conv/kernel".
        batches: int64 [S, B]: the training images of each step; -1 pads a short batch at its end.
        learning_rate: of the optimizer; None for the one that the model was compiled with.
        steps_per_epoch: a divisor of S.
        record_at: int64 [K]: the steps, from 0, of which activations and gradients are kept, and the weights and the
            moments of Adam after the update.
        data_dir: directory of the data set.
        verify_data: whether it has to be MNIST.
        hold: whether all weights are set back after each step.
    """

    run_id: str
    dtype: str
    weights: dict[str, np.ndarray]
    batches: np.ndarray
    learning_rate: float | None
    steps_per_epoch: int
    record_at: np.ndarray
    data_dir: str = "data"
    verify_data: bool = True
    hold: bool = False

    @property
    def epochs(self) -> int:
        return len(self.batches) // self.steps_per_epoch

    def order(self, epoch: int) -> list[np.ndarray]:
        """Return the training images of each step of an epoch, from 0: [B] each, or fewer."""
        first = epoch * self.steps_per_epoch
        return [row[row >= 0] for row in self.batches[first : first + self.steps_per_epoch]]

    def check_images(self, images: int) -> None:
        """Make sure that there are as many images as the batches name.

        Raises:
            InputError: if there are not.
        """
        if self.batches.max() >= images:
            raise InputError(f"--inputs: batches names image {self.batches.max()}; there are {images}")

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it, keyed as in a file."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "weights"}
        own = {name: np.asarray(value) for name, value in own.items() if value is not None}
        return own | {f"weights/{key}": array for key, array in self.weights.items()}

    @classmethod
    def read(cls, path: Path) -> "TraceInputs":
        """Read and check a file.

        Raises:
            InputError: if it is not a trace's input, names what is wrong with it.
        """
        return cls.from_arrays(read_arrays(path), path)

    @classmethod
    def from_arrays(cls, arrays: Arrays, path: Path) -> "TraceInputs":
        """Take what `arrays` returned, as `path` holds it."""
        try:
            inputs = cls(
                run_id=str(arrays["run_id"]),
                dtype=str(arrays["dtype"]),
                weights={name.removeprefix("weights/"): array for name, array in arrays.items() if "weights/" in name},
                batches=arrays["batches"],
                learning_rate=float(arrays["learning_rate"]) if "learning_rate" in arrays else None,
                steps_per_epoch=int(arrays["steps_per_epoch"]),
                record_at=arrays["record_at"],
                data_dir=str(arrays.get("data_dir", "data")),
                verify_data=bool(arrays.get("verify_data", True)),
                hold=bool(arrays.get("hold", False)),
            )
            if inputs.steps_per_epoch != arrays["steps_per_epoch"]:
                raise ValueError(f"steps_per_epoch is {arrays['steps_per_epoch']}, expected a whole number")
            inputs._check()
        except KeyError as error:
            raise InputError(f"{path}: {error.args[0]} is missing") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: {error} (lit_mnist/trace/files.py describes what is expected)") from error
        return inputs

    def _check(self) -> None:
        """Raise a ValueError that says what is wrong."""
        if self.dtype not in {"float32", "float64"}:
            raise ValueError(f"dtype is {self.dtype}, expected float32 or float64")
        for key, array in self.weights.items():
            if array.dtype != self.dtype:
                raise ValueError(f"weights/{key} is {array.dtype}, expected {self.dtype}")
        for name, dimensions in (("batches", 2), ("record_at", 1)):
            array = getattr(self, name)
            if array.dtype != np.int64 or array.ndim != dimensions:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected int64, {dimensions} dimensions")
        if self.batches.size == 0:
            raise ValueError(f"batches is {self.batches.shape}, expected [S, B]")
        padding = self.batches < 0
        if self.batches.min() < -1 or (padding[:, :-1] & ~padding[:, 1:]).any():
            raise ValueError("batches has something else than -1 at the end of a row for padding")
        if padding[:, 0].any():
            raise ValueError("batches has a row without an image")
        if not ((self.record_at >= 0) & (self.record_at < len(self.batches))).all():
            raise ValueError(f"record_at names a step that is not one of the {len(self.batches)}")
        if self.learning_rate is not None and not 0 <= self.learning_rate < np.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}, expected a number from 0 up")
        if self.steps_per_epoch < 1 or len(self.batches) % self.steps_per_epoch:
            raise ValueError(f"steps_per_epoch is {self.steps_per_epoch}, expected a divisor of {len(self.batches)}")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file; nothing in it is unpickled.

    Raises:
        InputError: if it is missing, torn or no .npz file.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except ValueError as error:  # NumPy's words recommend to unpickle it
        raise InputError(f"{path}: cannot be read as .npz (it is none, or has more than arrays in it)") from error
    except Exception as error:  # a damaged one shows as one of a dozen exceptions
        raise InputError(f"{path}: cannot be read as .npz ({error})") from error


def write_arrays(path: Path, arrays: Arrays, compressed: bool = False) -> None:
    """Write an .npz file; it is there as a whole or not at all."""
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stubs take the names for its own flags
    write_file(path, buffer.getvalue())


def dropout_mask(layer: str, rate: float, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draw which inputs of a Dropout layer are kept at a step, the same for both sides: True with 1 - rate."""
    return np.random.default_rng([zlib.crc32(layer.encode()), step]).random(shape) >= rate


def dropout_examples(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of ones that a Dropout layer is looked at with: 500 examples, 100,000 numbers at least."""
    return (max(500, -(-100_000 // math.prod(shape))), *shape)


def dropout_facts(ones: np.ndarray) -> np.ndarray:
    """Say what a Dropout layer made of ones, [N, ...].

    Returns:
        The share that it left out; the value of what is left; and the standard deviation of the share from example to
        example, times the root of an example's numbers: sqrt(p (1 - p)) if each number is drawn by itself.
    """
    out = ones.reshape(len(ones), -1) == 0
    return np.array([out.mean(), ones.max(), out.mean(axis=1).std() * np.sqrt(out.shape[1])])


def digest(array: np.ndarray) -> np.ndarray:
    """Return the sha256 of an array's elements in row order, as an array for a file."""
    return np.array(hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest())
