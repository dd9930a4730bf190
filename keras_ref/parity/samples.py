"""What samples say: of start weights, and of test results over seeds."""

import numpy as np

from keras_ref.parity.comparisons import NOTHING
from lit_mnist.trace.files import Arrays


def glorot_bound(shape: tuple[int, ...]) -> float:
    """Return sqrt(6 / (fan_in + fan_out)) of a kernel in Keras' layout: receptive field, inputs, outputs."""
    return float(np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1]))))


def drawn_again(arrays: Arrays) -> dict[str, float]:
    """Return which share of each kernel's draws comes a second time in the kernels of the first two seeds.

    They come again if kernels, units or seeds share a stream of random numbers; then they are equal but for their
    scale, which is taken to be Glorot's. By chance, 0.13 do: 300,000 draws in 2 million bins.
    """
    bins = {
        f"{name.removeprefix(f'initial/{seed}/')} {seed}": np.rint(array.ravel() / glorot_bound(array.shape) * 2**20)
        for seed in (0, 1)
        for name, array in arrays.items()
        if name.startswith(f"initial/{seed}/") and array.ndim > 1 and array.min() < array.max()
    }
    values, counts = np.unique(np.concatenate([*bins.values(), NOTHING]), return_counts=True)
    several = values[counts > 1]
    shares = {name: float(np.isin(drawn, several).mean()) for name, drawn in bins.items()}
    return {name.removesuffix(" 0"): share for name, share in shares.items() if name.endswith(" 0")}


def kolmogorov_smirnov(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples, times sqrt(n m / (n + m)); infinite for NaN."""
    from scipy.stats import ks_2samp

    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float(np.inf)
    statistic = ks_2samp(ours.astype(np.float64), theirs.astype(np.float64), method="asymp").statistic
    return float(statistic * np.sqrt(len(ours) * len(theirs) / (len(ours) + len(theirs))))


def draws_beyond(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return how many draws of one side are larger, without their signs, than every one of the other side.

    Of two samples of one distribution, equally many, the k largest are all of one side with probability 2^(1 - k).
    """
    ours, theirs = np.abs(ours), np.abs(theirs)
    return float(max((ours > theirs.max()).sum(), (theirs > ours.max()).sum()))


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
