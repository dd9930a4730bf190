"""What samples say: of start weights, and of test results over seeds."""

import numpy as np

from keras_ref.parity.comparisons import NOTHING
from lit_mnist.trace.files import Arrays


def glorot_bound(shape: tuple[int, ...]) -> float:
    """Return sqrt(6 / (fan_in + fan_out)) of a kernel in Keras' layout: receptive field, inputs, outputs."""
    return float(np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1]))))


def drawn_again(arrays: Arrays) -> dict[str, float]:
    """Return which share of each kernel's draws comes a second time in the kernels of the first two seeds.

    They come again if kernels, units or seeds share a stream of random numbers. By chance, 0.13 do: 300,000
    draws in 2 million bins.
    """
    bins = {
        f"{name.removeprefix(f'initial/{seed}/')} {seed}": np.rint(array.ravel() / glorot_bound(array.shape) * 2**20)
        for seed in (0, 1)
        for name, array in arrays.items()
        if name.startswith(f"initial/{seed}/") and name.endswith("kernel")
    }
    values, counts = np.unique(np.concatenate([*bins.values(), NOTHING]), return_counts=True)
    several = values[counts > 1]
    shares = {name: float(np.isin(drawn, several).mean()) for name, drawn in bins.items()}
    return {name.removesuffix(" 0"): share for name, share in shares.items() if name.endswith(" 0")}


def kolmogorov_smirnov(sample: np.ndarray, bound: float) -> float:
    """Return the Kolmogorov-Smirnov distance of a sample from uniform(-bound, bound), times sqrt(n)."""
    from scipy.stats import kstest, uniform

    if not np.abs(sample).max() <= bound * (1 + 1e-6):  # beyond float32's rounding of the bound; NaN, too
        return float(np.inf)
    return float(kstest(sample.astype(np.float64), uniform(-bound, 2 * bound).cdf).statistic * np.sqrt(len(sample)))


def power(runs: int, spread: float, theirs: int, margin: float, repetitions: int = 10_000) -> float:
    """Return how probably rung 11 passes a port whose results are distributed as Keras', by simulation.

    Args:
        runs: of the port.
        spread: standard deviation of a run, of both sides.
        theirs: runs of Keras.
        margin: of equivalence.
        repetitions: of the simulation; 10,000 give the probability to about 0.005.
    """
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    sides = (rng.normal(0, spread, (repetitions, count)) for count in (runs, theirs))
    low, high = ttest_ind(*sides, axis=1, equal_var=False).confidence_interval(0.90)
    return float(np.mean(np.maximum(-low, high) <= margin))
