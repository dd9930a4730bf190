"""The rungs of the parity ladder: compare what two processes recorded, with NumPy and SciPy alone.

Each rung is a function of arrays read from files, `ours` of the port and `theirs` of Keras, and returns what it
compared, in the order in which a reader should look: the first that does not hold is the first divergence.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from keras_ref.parity.tolerances import DRAWN_AGAIN, FLOAT32_RATIO, FLOAT64, KOLMOGOROV_SMIRNOV, MARGINS
from lit_mnist.trace.files import WEIGHTS

Arrays = Mapping[str, np.ndarray]
NOTHING = np.array([np.nan])
LAYERS = ("conv", "pool", "flatten", "hidden", "output")


@dataclass(frozen=True)
class Comparison:
    """One thing compared: what it was, how far the two sides are apart, and how far they may be."""

    what: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return bool(self.difference <= self.tolerance)  # False for NaN


def data(ours: Arrays, theirs: Arrays) -> Iterator[Comparison]:
    """Rung 1: images, labels, scaled pixels and one-hot rows are equal to the byte; an epoch is one as Keras goes."""
    for split in ("train", "test"):
        for kind in ("images", "labels", "pixels", "one_hot"):
            yield equal(f"{split} {kind.replace('_', '-')}", ours, theirs, f"{split}/{kind}")
    for rule, of in (
        ("every image once in an epoch", each_image_once),
        ("another order in each epoch", new_order_each_epoch),
        ("other batches in each epoch", new_batches_each_epoch),
        ("any image anywhere in an epoch", anywhere),
        ("neighbours in the files do not stay neighbours", apart_from_neighbours),
        ("batches of one size, the last with what is left", full_batches),
        ("batches of 100 images, if 100 are asked for", documented_batches),
    ):
        yield Comparison(rule, float(of(ours) != of(theirs)), 0)


def structure(ours: Arrays, theirs: Arrays) -> Iterator[Comparison]:
    """Rung 2: names and order of the layers, output shapes, parameter counts."""
    yield equal("names and order of the layers", ours, theirs, "layers")
    for name in theirs["layers"]:
        yield equal(f"output shape of {name}", ours, theirs, f"shape/{name}")
    yield equal("parameters of each layer", ours, theirs, "parameters")
    yield equal("parameters in all", ours, theirs, "all_parameters")
    yield equal("dtype of the start weights", dtypes(ours), dtypes(theirs), "dtypes")


def initialisation(ours: Arrays, theirs: Arrays) -> Iterator[Comparison]:
    """Rung 3: over all seeds, kernels are Glorot uniform, independent, and biases zero, on both sides."""
    for side, arrays in (("ours", ours), ("theirs", theirs)):
        for key, shape in WEIGHTS.items():
            drawn = [
                array.ravel() for name, array in arrays.items() if name.startswith("initial/") and name.endswith(key)
            ]
            sample = np.concatenate(drawn) if drawn else np.array([np.nan])
            if key.endswith("bias"):
                yield Comparison(f"{key}, {side}: largest", float(np.abs(sample).max()), 0)
            else:
                distance = kolmogorov_smirnov(sample, glorot_bound(shape))
                yield Comparison(f"{key}, {side}: distance from Glorot uniform", distance, KOLMOGOROV_SMIRNOV)
        for key, share in drawn_again(arrays).items():
            yield Comparison(f"{key}, {side}: share of draws that come again", share, DRAWN_AGAIN)


def weight_transfer(given: Arrays, loaded: Mapping[str, Arrays]) -> Iterator[Comparison]:
    """Rung 4: weights from a file into the model and back are the same bits: on both sides, and from Keras' own files.

    Args:
        given: `weights/<key>`.
        loaded: `loaded/<key>` of each model that loaded them, by a name of how.
    """
    for how, arrays in loaded.items():
        for key in WEIGHTS:
            same = np.array_equal(given[f"weights/{key}"], arrays.get(f"loaded/{key}", np.nan))
            yield Comparison(f"{key}, {how}", float(not same), 0)


def forward(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 5: what every layer gives."""
    yield from close_at_steps("activations", LAYERS, ours, theirs, exact)


def loss(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 6: the loss of each batch of the edge cases."""
    yield from close("", ["loss"], ours, theirs, exact)


def gradients(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 7: the gradient of every tensor, at several points of the training."""
    yield from close_at_steps("gradients", WEIGHTS, ours, theirs, exact)


def optimizer(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 8: m, v and the weights after a step."""
    yield from close_at_steps(
        "after", [f"{kind}/{key}" for kind in ("adam_m", "adam_v", "weights") for key in WEIGHTS], ours, theirs, exact
    )


def trajectory(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 9: loss and accuracy of every step, then weights, m, v, test probabilities and predictions at the end."""
    yield from close("", ["loss"], ours, theirs, exact)
    if exact is None:
        yield from close("", ["accuracy"], ours, theirs)
    for kind in ("weights", "adam_m", "adam_v"):
        yield from close(kind, WEIGHTS, ours, theirs, exact)
    yield from close("", ["probabilities"], ours, theirs, exact)
    if exact is None:
        differing = np.argmax(ours["probabilities"], axis=1) != np.argmax(theirs["probabilities"], axis=1)
        yield Comparison("differing predictions of test images", float(differing.sum()), 0)


def history(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 10: the loss and the accuracy that each framework reports for each epoch, and for the test images."""
    # In float32 together with the losses of the steps: the average of an epoch is a single number, which one side or
    # the other hits more exactly by chance, but no less exactly than what it is an average of.
    tested = [key for key in ("history/test_loss", "history/test_accuracy") if key in ours]
    steps = ["loss"] if exact else []
    yield from close("", ["history/loss", "history/accuracy", *tested, *steps], ours, theirs, exact)


def same(ours: Arrays, whole: Arrays) -> Iterator[Comparison]:
    """Rung 13: a training that was interrupted ends to the last bit as the one that was not."""
    for name in ("loss", "accuracy", "probabilities", *whole):
        if name in ("loss", "accuracy", "probabilities") or name.startswith(("weights", "adam", "history")):
            apart, where = largest_difference(ours.get(name), whole[name])
            yield Comparison(f"{name}{where}, interrupted or not", apart, 0)


def distribution(ours: Arrays, theirs: Arrays) -> Iterator[Comparison]:
    """Rung 11: the mean test accuracy and loss over seeds are equivalent: two one-sided t-tests (Welch), 5 % each.

    Both reject, and so the means differ by less than the margin, if and only if the 90 % interval of their difference
    lies within it. What is compared is the end of the interval that is farther from zero. Source: Schuirmann (1987).

    Args:
        ours: `test_accuracy` and `test_loss` of each run, [runs].
        theirs: the same of Keras.
    """
    from scipy.stats import ttest_ind

    for name, margin in MARGINS.items():
        low, high = ttest_ind(ours[name], theirs[name], equal_var=False).confidence_interval(0.90)
        yield Comparison(
            f"{name.replace('_', ' ')}: mean differs by {low:+.4f} to {high:+.4f}", float(max(-low, high)), margin
        )


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


def close_at_steps(
    kind: str, keys: Iterable[str], ours: Arrays, theirs: Arrays, exact: Arrays | None
) -> Iterator[Comparison]:
    """Compare what was recorded at several steps: one after the other; in float32 all together (see `close`)."""
    steps = steps_of(theirs, kind)
    if exact is None:
        for step in steps:
            yield from close(f"{kind}/{step}", keys, ours, theirs)
        return
    together = [
        {
            f"{kind}/*/{key}": np.concatenate([arrays.get(f"{kind}/{step}/{key}", NOTHING).ravel() for step in steps])
            for key in keys
        }
        for arrays in (ours, theirs, exact)
    ]
    yield from close(f"{kind}/*", keys, *together)


def close(
    prefix: str, keys: Iterable[str], ours: Arrays, theirs: Arrays, exact: Arrays | None = None
) -> Iterator[Comparison]:
    """Compare arrays, one after the other; in float32, the errors of both sides against the exact run, all together.

    An error in float32 is the root mean square over the elements of an array, relative to that of the exact array. Of
    all arrays together, the largest of our errors is held against the largest of theirs.
    """
    names = [f"{prefix}/{key}".lstrip("/") for key in keys]
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


def first_difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, str]:
    """Return the first difference beyond what is allowed, and where it is, of arrays [S] that have one."""
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    first = int(np.argmax(~(apart <= FLOAT64)))
    return float(np.nan_to_num(apart[first], nan=np.inf)), f"[{first}]"


def relative_error(found: np.ndarray | None, exact: np.ndarray) -> float:
    """Return the root mean square error relative to that of the exact array; infinite for NaN and a missing array."""
    if found is None or found.shape != exact.shape:
        return np.inf
    error = np.sqrt(np.mean((found.astype(np.float64) - exact) ** 2))
    size = np.sqrt(np.mean(exact.astype(np.float64) ** 2))
    return np.inf if np.isnan(error) else float(error / (size or 1.0))


def largest_difference(ours: np.ndarray | None, theirs: np.ndarray) -> tuple[float, str]:
    """Return the largest absolute difference of any element, and where it is; NaN and a missing array are far away."""
    if ours is None:
        return np.inf, " (not recorded)"
    if ours.shape != theirs.shape:
        return np.inf, f" {ours.shape} instead of {theirs.shape}"
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    apart[np.isnan(apart)] = np.inf
    worst = np.unravel_index(np.argmax(apart), apart.shape)
    return float(apart[worst]), "" if apart.ndim == 0 else f"[{', '.join(map(str, worst))}]"


def equal(what: str, ours: Arrays, theirs: Arrays, key: str) -> Comparison:
    return Comparison(what, float(not np.array_equal(ours.get(key, np.nan), theirs[key])), 0)


def dtypes(arrays: Arrays) -> Arrays:
    return {
        "dtypes": np.array([str(arrays[f"initial/0/{key}"].dtype) for key in WEIGHTS if f"initial/0/{key}" in arrays])
    }


def steps_of(arrays: Arrays, kind: str) -> list[int]:
    """Return the steps at which `kind` was recorded, as in gradients/10/conv/bias."""
    parts = [name.split("/") for name in arrays]
    return sorted({int(part[1]) for part in parts if part[0] == kind and part[1].isdigit()})


def each_image_once(arrays: Arrays) -> bool:
    return all(np.array_equal(np.sort(epoch), np.arange(int(arrays["images"]))) for epoch in arrays["order"])


def new_order_each_epoch(arrays: Arrays) -> bool:
    return len({epoch.tobytes() for epoch in arrays["order"]}) == len(arrays["order"])


def new_batches_each_epoch(arrays: Arrays) -> bool:
    """Whether no two epochs have a batch of the same images: the images are shuffled, not the batches."""
    ends = np.cumsum(arrays["batch_sizes"])[:-1]
    batches = [{np.sort(batch).tobytes() for batch in np.split(epoch, ends)} for epoch in arrays["order"]]
    return len(set.union(*batches)) == sum(map(len, batches))


def anywhere(arrays: Arrays) -> bool:
    """Whether the place of an image in the files says nothing of its place in an epoch: 5 standard errors, r = 0."""
    places = np.arange(arrays["order"].shape[1])
    correlations = [np.corrcoef(epoch, places)[0, 1] for epoch in arrays["order"]]
    return bool(np.abs(correlations).max() < 5 / np.sqrt(len(places)))


def apart_from_neighbours(arrays: Arrays) -> bool:
    """Whether an image says nothing of which one follows: 5 standard errors, r = 0."""
    order = arrays["order"]
    correlations = [np.corrcoef(epoch[:-1], epoch[1:])[0, 1] for epoch in order]
    return bool(np.abs(correlations).max() < 5 / np.sqrt(order.shape[1]))


def full_batches(arrays: Arrays) -> bool:
    sizes = arrays["batch_sizes"]
    return len(set(sizes[:-1])) == 1 and 0 < sizes[-1] <= sizes[0] and sizes.sum() == arrays["images"]


def documented_batches(arrays: Arrays) -> bool:
    return bool((arrays["documented_batch_sizes"][:-1] == 100).all())


def glorot_bound(shape: tuple[int, ...]) -> float:
    """Return sqrt(6 / (fan_in + fan_out)) of a kernel in Keras' layout: receptive field, inputs, outputs."""
    return float(np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1]))))


def drawn_again(arrays: Arrays) -> dict[str, float]:
    """Return which share of each kernel's draws comes a second time in the kernels of the first two seeds.

    They come again if kernels, units or seeds share a stream of random numbers. By chance, 0.13 do: 300,000
    draws in 2 million bins.
    """
    bins = {
        f"{key} {seed}": np.rint(arrays[f"initial/{seed}/{key}"].ravel() / glorot_bound(shape) * 2**20)
        for key, shape in WEIGHTS.items()
        for seed in (0, 1)
        if key.endswith("kernel") and f"initial/{seed}/{key}" in arrays
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
