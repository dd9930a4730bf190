"""The third party: the documented model, its gradients and Keras' Adam, restated in NumPy from their definitions.

Where the port and Keras disagree, it says which of them is wrong. All axes are in Keras' order: images [N, H, W, 1],
arrays keyed as in `lit_mnist.layout.WEIGHTS`.
"""

import numpy as np

Arrays = dict[str, np.ndarray]

# The documentation, layer by layer.
PARAMETERS = {"conv": 60, "pool": 0, "flatten": 0, "hidden": 150_656, "output": 1_290}
SHAPES_HWC = {"conv": (28, 28, 6), "pool": (14, 14, 6), "flatten": (1176,), "hidden": (128,), "output": (10,)}
GLOROT_BOUNDS = {  # sqrt(6 / (fan_in + fan_out))
    "conv": np.sqrt(6 / (9 * 1 + 9 * 6)),
    "hidden": np.sqrt(6 / (1176 + 128)),
    "output": np.sqrt(6 / (128 + 10)),
}


def logits(images: np.ndarray, weights: Arrays) -> np.ndarray:
    """Compute the logits of images in [0, 1]: [N, 28, 28, 1] to [N, 10]."""
    return _forward(images, weights)["logits"]


def loss_and_gradients(images: np.ndarray, labels: np.ndarray, weights: Arrays) -> tuple[float, Arrays]:
    """Compute the mean cross-entropy of a batch, in nats, and its gradient by every weight.

    Args:
        images: in [0, 1], [N, 28, 28, 1].
        labels: one-hot, [N, 10].
        weights: of the model.
    """
    seen = _forward(images, weights)
    shifted = seen["logits"] - seen["logits"].max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -(labels * log_probabilities).sum(axis=1).mean()

    by_logits = (np.exp(log_probabilities) - labels) / len(labels)
    by_hidden = by_logits @ weights["output/kernel"].T * (seen["hidden"] > 0)
    by_pool = (by_hidden @ weights["hidden/kernel"].T).reshape(-1, 14, 14, 6)
    by_windows = np.zeros_like(seen["windows"])  # each maximum hands its gradient to the first pixel that has it
    np.put_along_axis(by_windows, seen["windows"].argmax(axis=-1)[..., None], by_pool[..., None], axis=-1)
    by_conv = by_windows.reshape(-1, 14, 14, 6, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(-1, 28, 28, 6)
    by_conv = by_conv * (seen["conv"] > 0)
    return loss, {
        "conv/kernel": np.einsum("nhwk,nhwc->kc", seen["patches"], by_conv).reshape(3, 3, 1, 6),
        "conv/bias": by_conv.sum(axis=(0, 1, 2)),
        "hidden/kernel": seen["flat"].T @ by_hidden,
        "hidden/bias": by_hidden.sum(axis=0),
        "output/kernel": seen["hidden"].T @ by_logits,
        "output/bias": by_logits.sum(axis=0),
    }


def _forward(images: np.ndarray, weights: Arrays) -> Arrays:
    padded = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
    shifts = [padded[:, row : row + 28, column : column + 28] for row in range(3) for column in range(3)]
    patches = np.stack(shifts, axis=-1)  # [N, 28, 28, 9]
    conv = np.maximum(patches @ weights["conv/kernel"].reshape(9, 6) + weights["conv/bias"], 0)  # [N, 28, 28, 6]
    windows = conv.reshape(-1, 14, 2, 14, 2, 6).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 14, 14, 6, 4)
    flat = windows.max(axis=-1).reshape(-1, 1176)
    hidden = np.maximum(flat @ weights["hidden/kernel"] + weights["hidden/bias"], 0)  # [N, 128]
    output = hidden @ weights["output/kernel"] + weights["output/bias"]
    return {"patches": patches, "conv": conv, "windows": windows, "flat": flat, "hidden": hidden, "logits": output}


class NumPyAdam:
    """keras/src/optimizers/adam.py, line by line, on one array."""

    def __init__(self, weights: np.ndarray) -> None:
        self.w, self.t = weights.copy(), 0
        self.m, self.v = np.zeros_like(weights), np.zeros_like(weights)

    def step(self, g: np.ndarray, lr: float = 1e-3) -> None:
        real = self.w.dtype.type
        self.t += 1
        self.m = self.m + (g - self.m) * real(1 - 0.9)
        self.v = self.v + (g * g - self.v) * real(1 - 0.999)
        self.w = self.w - self.m * alpha(self.t, real, lr) / denominator(self.v)


def alpha(t: int, real: type[np.floating], lr: float = 1e-3) -> np.floating:
    # ops.cast(0.9, dtype) makes a float32 tensor on the way, in float64 too.
    beta_1_power, beta_2_power = real(np.float32(0.9)) ** real(t), real(np.float32(0.999)) ** real(t)
    return real(lr) * np.sqrt(real(1) - beta_2_power) / (real(1) - beta_1_power)


def denominator(v: np.ndarray) -> np.ndarray:
    return np.sqrt(v) + v.dtype.type(1e-7)
