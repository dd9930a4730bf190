"""The trainings in which any model is compared with its port: start weights and batches.

They have the names of the documented model's (`trainings.py`) and do for a model what those do for it:

- cases: single steps from the same weights, with batches of several sizes, one example alone and one that comes twice;
- saturated: the same with kernels three times as large;
- tied: the same with kernels of convolutions that are zero, so that all elements of a pool window are equal;
- short: 18 steps in 3 epochs with a short last batch, recorded step by step;
- thirds: as short; sizes of both divide among two, three and four devices where there are examples enough;
- long: the training, in batches of the size asked for.
"""

from typing import Any

import numpy as np

from keras_ref.trace.trainings import KEPT_STEPS, cut
from lit_mnist.errors import InputError
from lit_mnist.trace.files import TraceInputs


def plan(
    name: str, dtype: str, seed: int, steps: int, batch_size: int, examples: int, weights: dict[str, np.ndarray]
) -> TraceInputs:
    """Return one of the trainings, without a run_id.

    Args:
        name: which.
        dtype: "float32" or "float64".
        seed: decides batches and what is added to the start weights.
        steps: of the long one, at least.
        batch_size: of the long one.
        examples: that there are to train on.
        weights: as the model draws them.

    Raises:
        InputError: if there are fewer than 12 examples.
    """
    if examples < 12:
        raise InputError(f"--data: {examples} examples to train on; expected 12 at least")
    rng = np.random.default_rng([seed, 1])
    start = unsettled(rng, weights, dtype)
    none = np.array([], dtype=np.int64)
    common: dict[str, Any] = {"run_id": "", "dtype": dtype, "learning_rate": None}
    if name in ("cases", "saturated", "tied"):
        if name == "tied":
            start = {key: array * 0 if array.ndim > 2 else array for key, array in start.items()}
        if name == "saturated":
            start = {key: array * 3 if array.ndim > 1 else array for key, array in start.items()}
        size = min(batch_size, examples, 32)
        chosen: list[Any] = [
            rng.permutation(examples)[:size],
            [0],
            [1, 1, 2],
            rng.permutation(examples)[: max(size // 3, 2)],
        ]
        # In float32 the error of a loss is a rounding or two: of a few losses, which side is nearer is chance.
        chosen += [rng.permutation(examples)[: max(size // 4, 2)] for _ in range(30)]
        batches = np.stack([np.pad(np.asarray(rows), (0, size - len(rows)), constant_values=-1) for rows in chosen])
        every = np.arange(len(batches))
        return TraceInputs(
            weights=start, batches=batches, steps_per_epoch=len(batches), record_at=every, hold=True, **common
        )
    if name in ("short", "thirds"):
        size = 12 * max(1, min(batch_size, examples // 6) // 12)
        last = max(12, size // 24 * 12)
        rows = [_drawn(rng, examples, 5 * size + last) for _ in range(3)]
        batches = np.concatenate([cut(epoch, size) for epoch in rows])
        return TraceInputs(weights=start, batches=batches, steps_per_epoch=6, record_at=KEPT_STEPS, **common)
    of_an_epoch = min(-(-examples // batch_size), steps)
    epochs = -(-steps // of_an_epoch)
    epoch = [cut(rng.permutation(examples), batch_size)[:of_an_epoch] for _ in range(epochs)]
    return TraceInputs(
        weights=start, batches=np.concatenate(epoch), steps_per_epoch=of_an_epoch, record_at=none, **common
    )


def unsettled(rng: np.random.Generator, weights: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Return start weights as drawn, to float32, and with something added to those that are drawn as one number.

    What is lost in a port while a bias is zero, or a moving variance one, shows then.
    """
    start = {}
    for key, array in weights.items():
        added = rng.uniform(0.05, 0.15, array.shape) * rng.choice([-1, 1], array.shape)
        if array.size and array.min() == array.max():
            array = array + (np.abs(added) if key.endswith("variance") else added)
        start[key] = array.astype(np.float32).astype(dtype)
    return start


def _drawn(rng: np.random.Generator, examples: int, count: int) -> np.ndarray:
    """Draw rows, each as often as any other."""
    repeats = -(-count // examples)
    return np.concatenate([rng.permutation(examples) for _ in range(repeats)])[:count]
