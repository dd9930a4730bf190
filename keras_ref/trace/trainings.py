"""The trainings in which the documented model is compared with its port: start weights, batches, learning rate.

- cases: images that are not ordinary (all zero, pool ties, noise, one alone, a short batch), learning rate zero;
- saturated: the same with an output kernel so large that probabilities round to zero and one;
- tied: the same with a convolution that gives its bias everywhere: all pixels of a pool window are equal, not so what
  the kernel saw of the image, and the gradient tells which of them was chosen;
- short: 18 steps in 3 epochs with a short last batch, for single steps of the optimizer (the last of an epoch and the
  first of the next among them) and for the history;
- thirds: as short, with batches that divide among three devices;
- long: the documented training, or its first steps.
"""

from functools import cache
from pathlib import Path

import numpy as np

from keras_ref.data import load_data
from lit_mnist.errors import InputError
from lit_mnist.trace.files import TraceInputs

IMAGES = 60_000
BATCH_SIZE = 100
STEPS_PER_EPOCH = 600
STEPS = 6_000  # of the documented training
KEPT_STEPS = np.array([0, 5, 6, 9, 17])  # of the short trainings

Shapes = dict[str, tuple[int, ...]]  # of the weights, by key


def training(
    name: str, dtype: str, seed: int, steps: int, data_dir: str, directory: Path, shapes: Shapes
) -> TraceInputs:
    """Return one of the trainings, without a run_id.

    Args:
        name: which.
        dtype: "float32" or "float64".
        seed: decides start weights and batches.
        steps: of the long one.
        data_dir: of MNIST.
        directory: where the images of the cases are written, in MNIST's format.
        shapes: of the model's weights.

    Raises:
        InputError: if there is no such number of steps.
    """
    if steps > STEPS_PER_EPOCH and steps % STEPS_PER_EPOCH:
        raise InputError(f"--steps {steps}: expected at most {STEPS_PER_EPOCH}, or whole epochs of as many")
    rng = np.random.default_rng([seed, 1])
    weights = glorot_uniform(rng, dtype, shapes)
    if name in ("cases", "saturated", "tied"):
        if name == "saturated":
            weights["output/kernel"] *= 100
        if name == "tied":
            weights["conv/kernel"] *= 0
            weights["conv/bias"] += [1, 0.5, 0.25, 0, -1, 2]
        batches = write_cases(directory, data_dir)
        every = np.arange(len(batches))
        return TraceInputs("", dtype, weights, batches, 0.0, len(batches), every, str(directory), False)
    if name in ("short", "thirds"):
        images = rng.permutation(IMAGES)[: 3 * 700].reshape(3, 700)
        if name == "thirds":
            images = images[:, :660]
        batches = np.concatenate([cut(epoch, 120 if name == "thirds" else 128) for epoch in images])
        return TraceInputs("", dtype, weights, batches, 0.003, 6, KEPT_STEPS, data_dir)
    epochs = -(-steps // STEPS_PER_EPOCH)
    batches = np.concatenate([cut(rng.permutation(IMAGES), BATCH_SIZE) for _ in range(epochs)])[:steps]
    none = np.array([], dtype=np.int64)
    return TraceInputs("", dtype, weights, batches, 0.001, min(steps, STEPS_PER_EPOCH), none, data_dir)


def cut(images: np.ndarray, batch_size: int) -> np.ndarray:
    """Cut an epoch into batches, the last padded with -1: [S, batch_size]."""
    padding = -len(images) % batch_size
    return np.concatenate([images, np.full(padding, -1)]).reshape(-1, batch_size).astype(np.int64)


def glorot_uniform(rng: np.random.Generator, dtype: str, shapes: Shapes) -> dict[str, np.ndarray]:
    """Draw start weights, to float32 so that both precisions start from the same ones."""
    weights = {}
    for key, shape in shapes.items():
        fans = np.prod(shape[:-2]) * (shape[-2] + shape[-1]) if key.endswith("kernel") else np.inf
        bound = float(np.sqrt(6 / fans))
        weights[key] = rng.uniform(-bound, bound, shape).astype(np.float32).astype(dtype)
    return weights


@cache
def write_cases(directory: Path, data_dir: str) -> np.ndarray:
    """Write a data set in MNIST's format with images that are not ordinary; return batches of it, [7, 100]."""
    mnist = load_data(data_dir)
    ties = np.kron(np.arange(0, 196).reshape(14, 14), np.ones((2, 2))).astype(np.uint8)  # equal in each pool window
    noise = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    blank = np.stack([np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)])
    images = np.concatenate([mnist.train_images[:100], blank, ties[None], noise])
    labels = np.arange(len(images), dtype=np.uint8) % 10
    (directory / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            lengths = np.array(array.shape, ">u4").tobytes()
            header = bytes([0, 0, 8, array.ndim]) + lengths
            (directory / "MNIST" / "raw" / f"{split}-{kind}-ubyte").write_bytes(header + array.tobytes())
    chosen = [range(100), [100], [101], [102], [103, 104, 105], [7], range(37)]
    batches = [np.pad(np.asarray(rows), (0, 100 - len(rows)), constant_values=-1) for rows in chosen]
    return np.stack(batches).astype(np.int64)
