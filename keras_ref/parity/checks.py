"""What each rung of the ladder compares. `ours` is the port, `theirs` Keras; both are arrays read from files.

Each function yields what it compared, in the order in which a reader should look: the first that does not hold is the
first divergence.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from keras_ref.parity.comparisons import (
    NOTHING,
    Comparison,
    NotChecked,
    close,
    close_at_steps,
    equal,
    keys_of,
    largest_difference,
)
from keras_ref.parity.golden import alike, comparable, placed
from keras_ref.parity.recorded import recorded
from keras_ref.parity.samples import drawn_again, draws_beyond, kolmogorov_smirnov
from keras_ref.parity.sides import Sides
from keras_ref.parity.tolerances import (
    DRAWN_AGAIN,
    DRAWN_BEYOND,
    KOLMOGOROV_SMIRNOV,
    MARGIN_IN_SPREADS,
    MARGINS,
    SPREAD_LEVEL,
)
from lit_mnist.trace.files import Arrays

# What a training leaves in a model and in an optimizer, by the names of files.
STATES = ("weights", "adam_m", "adam_v", "velocity_hat", "momentum", "velocity", "average_gradient", "accumulator")

Found = Iterator[Comparison | NotChecked]

# Numbers of processes, and the training whose batches divide among them.
DEVICES = ((2, "short"), (3, "thirds"), (4, "short"), (2, "long"), (4, "long"))
RESUMED = ((1, "short"), (2, "short"), (3, "thirds"), (1, "long"), (2, "long"))


def data(ours: Arrays, theirs: Arrays) -> Found:
    """Rung 1: the examples are equal to the byte; an epoch is one as Keras goes."""
    for name in theirs:
        if name.startswith("examples/"):
            yield equal(f"{name.removeprefix('examples/')}, read by each side", ours, theirs, name)
        if name.startswith(("train/", "test/")):
            yield equal(name.replace("/", " ").replace("_", "-"), ours, theirs, name)
    if "loader/inputs" in ours and "rows/inputs" not in theirs:
        yield NotChecked("the port's own loader", "the golden was recorded with a port that brings none")
    elif "loader/inputs" in ours:
        yield from loader(ours, theirs)
    elif "order" in ours:
        yield from goes_like_keras(ours)
        size = int(theirs["documented_batch_sizes"][0])
        as_asked = (ours["documented_batch_sizes"][:-1] == size).all()
        yield Comparison(f"batches of {size} images, if {size} are asked for", float(not as_asked), 0)
    else:
        yield NotChecked(
            "order and size of the batches", "the port brings no loader; those of the comparison were used"
        )


def loader(ours: Arrays, theirs: Arrays) -> Found:
    """Look at the loader that a port brings, as it is: what reaches the training step."""
    places = {number: place for place, number in enumerate(theirs["rows/inputs"].tolist())}
    order = np.array([[places.get(number, -1) for number in epoch] for epoch in ours["loader/inputs"].tolist()])
    unknown = int((order < 0).sum())
    what = f"inputs of the port's own loader: {unknown} of {order.size} are none of the data"
    yield Comparison(what, float(unknown), 0)
    if unknown:
        return
    same = ours["loader/targets"] == theirs["rows/targets"][order]
    if not same.any():
        yield NotChecked("targets of the port's own loader", "they are coded in another way")
    else:
        yield Comparison("targets of the port's own loader", float((~same).sum()), 0)
    # Of examples that are equal one stands for all.
    distinct = len(places)
    images = np.array(order.shape[1] if distinct < len(theirs["rows/inputs"]) else len(theirs["rows/inputs"]))
    facts = {"order": order, "images": images, "batch_sizes": ours["loader/batch_sizes"]}
    rules = goes_like_keras(facts, repeated=distinct < len(theirs["rows/inputs"]))
    yield from (replace(rule, what=f"the port's own loader: {rule.what}") for rule in rules)
    size = int(theirs["batch_size"])
    as_asked = (ours["loader/batch_sizes"][:-1] == size).all()
    yield Comparison(f"the port's own loader: batches of {size}", float(not as_asked), 0)


def goes_like_keras(facts: Arrays, repeated: bool = False) -> Iterator[Comparison]:
    """Say what is true of the epochs of Keras' `fit` and has to be of these.

    Args:
        facts: `order` [epochs, I], the examples in the order of each epoch, `images`, how many there are, and
            `batch_sizes` of an epoch.
        repeated: whether examples come more than once in the data.
    """
    for rule, of in (
        ("every example once in an epoch", each_image_once),
        ("another order in each epoch", new_order_each_epoch),
        ("other batches in each epoch", new_batches_each_epoch),
        ("any example anywhere in an epoch", anywhere),
        ("neighbours in the data do not stay neighbours", apart_from_neighbours),
        ("batches of one size, the last with what is left", full_batches),
    ):
        if not (repeated and of is each_image_once):
            yield Comparison(rule, float(not of(facts)), 0)


def structure(ours: Arrays, theirs: Arrays) -> Found:
    """Rung 2: names and order of the layers, output shapes, parameter counts."""
    if "layers" in ours:
        yield equal("names and order of the layers", ours, theirs, "layers")
    for name in theirs:
        kind, _, layer = name.partition("/")
        if kind == "shape":
            if name in ours:
                yield equal(f"output shape of {layer}", ours, theirs, name)
            else:
                yield NotChecked(f"output shape of {layer}", "the port has no module for it")
    if "layers" in ours:
        yield equal("parameters of each layer", ours, theirs, "parameters")
        yield equal("parameters in all", ours, theirs, "all_parameters")
    for name in theirs:
        if name.startswith("trained/") and (name in ours or theirs[name]):
            yield equal(f"parameters that are trained of {name.removeprefix('trained/')}", ours, theirs, name)
    if "all_trained" in theirs:
        yield equal("parameters that are trained in all", ours, theirs, "all_trained")
    for name in theirs:
        if name.startswith("drop/"):
            yield from dropped(name.removeprefix("drop/"), ours.get(name, NOTHING[[0, 0, 0]]), theirs[name])
    yield equal("dtype of the start weights", dtypes(ours), dtypes(theirs), "dtypes")


def dropped(layer: str, ours: np.ndarray, theirs: np.ndarray) -> Iterator[Comparison]:
    """Compare what two Dropout layers make of ones: how many are left out, which, and what becomes of the others."""
    # Five standard errors of the difference, of two shares of 100,000 and of two deviations over 500 examples.
    margins = 5 * np.sqrt(2 * 0.25 / 100_000), 5 * np.sqrt(2 / (2 * 500))
    yield Comparison(f"{layer}: share of inputs that it leaves out", float(abs(ours[0] - theirs[0])), float(margins[0]))
    yield Comparison(f"{layer}: what it makes of a one that stays", float(abs(ours[1] - theirs[1])), 1e-6)
    alone = float(abs(ours[2] - theirs[2]) / max(theirs[2], 1e-9))
    yield Comparison(f"{layer}: whether each input is drawn by itself", alone, float(margins[1]))


def initialisation(ours: Arrays, theirs: Arrays) -> Found:
    """Rung 3: over all seeds, both sides draw each tensor from the same distribution, and anew each time."""
    constant = []
    for key in keys_of(theirs, "initial/0"):
        mine, kerass = (
            np.concatenate([array.ravel() for name, array in side.items() if is_start_of(name, key)] or [NOTHING])
            for side in (ours, theirs)
        )
        if kerass.min() == kerass.max():
            constant.append(Comparison(f"{key}: farthest from {kerass[0]:g}", largest_distance(mine, kerass), 0))
        else:
            distance = kolmogorov_smirnov(mine, kerass)
            yield Comparison(f"{key}: distance of the two sides' draws", distance, KOLMOGOROV_SMIRNOV)
            yield Comparison(f"{key}: draws beyond all of the other side", draws_beyond(mine, kerass), DRAWN_BEYOND)
    yield from constant
    for side, arrays in (("ours", ours), ("theirs", theirs)):
        recorded = {name.removeprefix("again/"): float(x) for name, x in arrays.items() if name.startswith("again/")}
        for key, share in (recorded or drawn_again(arrays)).items():
            yield Comparison(f"{key}, {side}: share of draws that come again", share, DRAWN_AGAIN)


def is_start_of(name: str, key: str) -> bool:
    kind, _, rest = name.partition("/")
    return kind == "initial" and rest.partition("/")[2] == key


def largest_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.nan_to_num(np.abs(ours - theirs[0]).max(), nan=np.inf))


def weight_transfer(sides: Sides, dtype: str) -> Found:
    """Rung 4: weights go into the model and back as the same bits, on both sides and from Keras' own files."""
    inputs = sides.inputs("cases", dtype)
    ours, theirs = sides.trace("cases", dtype)
    loaded = {"ours": ours, "theirs": theirs}
    if sides.data:
        yield NotChecked("files of Keras", "the port's side reads those of the documented model alone")
    elif sides.golden:
        yield NotChecked("files of Keras", "a golden holds none")
    else:
        loaded |= {f"ours, from a {kind} file": sides.loaded(path) for kind, path in sides.saved(inputs).items()}
    for how, arrays in loaded.items():
        for key, array in inputs.weights.items():
            same = np.array_equal(array, arrays.get(f"loaded/{key}", np.nan))
            yield Comparison(f"{key}, {how}", float(not same), 0)


def forward(ours: Arrays, theirs: Arrays, exact: Arrays | None = None, unrounded: Arrays | None = None) -> Found:
    """Rung 5: what every layer gives, in evaluation mode and, where that is another, in training."""
    weighted = {name.split("/")[1] for name in theirs if name.startswith("loaded/")}
    for kind in ("activations", "training"):
        chosen = nearest(kind, ours, theirs)
        seen = {name.split("/", 2)[2] for name in chosen if name.startswith(f"{kind}/") and name.count("/") > 1}

        def skipped(layer: str, seen: set[str] = seen, kind: str = kind) -> bool:
            return layer not in seen and (kind == "training" or layer not in weighted)

        yield from close_at_steps(kind, chosen, theirs, exact, unrounded, skipped)


def nearest(kind: str, ours: Arrays, theirs: Arrays) -> dict[str, np.ndarray]:
    """Return what layers give, with their activation function applied once more where that is nearer to Keras'."""
    chosen = {name: array for name, array in ours.items() if "|" not in name}
    for name, array in ours.items():
        plain = name.partition("|")[0]
        if name.startswith(f"{kind}/") and plain != name and plain in theirs:
            applied, as_it_is = (largest_difference(own, theirs[plain])[0] for own in (array, ours[plain]))
            if applied < as_it_is:
                chosen[plain] = array
    return chosen


def loss(ours: Arrays, theirs: Arrays, exact: Arrays | None = None, unrounded: Arrays | None = None) -> Found:
    """Rung 6: the loss of each batch, with what regularises it."""
    yield from close("", ["loss"], ours, theirs, exact, unrounded)


def gradients(ours: Arrays, theirs: Arrays, exact: Arrays | None = None, unrounded: Arrays | None = None) -> Found:
    """Rung 7: the gradient of every tensor, at several points of the training."""
    yield from close_at_steps("gradients", ours, theirs, exact, unrounded)


def optimizer(ours: Arrays, theirs: Arrays, exact: Arrays | None = None, unrounded: Arrays | None = None) -> Found:
    """Rung 8: what the optimizer keeps, and the weights after a step."""
    kept = {name.split("/")[2] for name in ours if name.startswith("after/")}
    yield from unkept(theirs, kept)
    yield from close_at_steps("after", ours, theirs, exact, unrounded, lambda key: key.partition("/")[0] not in kept)


def unkept(theirs: Arrays, kept: set[str]) -> Iterator[NotChecked]:
    """Say which slots of Keras' optimizer nothing was found of."""
    slots = dict.fromkeys(name.split("/")[2] for name in theirs if name.startswith("after/"))
    for slot in slots:
        if slot not in kept:
            yield NotChecked(f"{slot} of the optimizer", "the port's optimizer keeps nothing of a name known for it")


def trajectory(ours: Arrays, theirs: Arrays, exact: Arrays | None = None, unrounded: Arrays | None = None) -> Found:
    """Rung 9: loss and accuracy of every step, then weights, slots, test probabilities and predictions at the end."""
    yield from close("", [name for name in ("loss",) if name in theirs], ours, theirs, exact, unrounded)
    if exact is None and "accuracy" in theirs:
        yield from close("", ["accuracy"], ours, theirs, None, unrounded)
    for kind in STATES:
        if any(name.startswith(f"{kind}/") for name in ours):
            yield from close(kind, keys_of(theirs, kind), ours, theirs, exact, unrounded)
    if "probabilities" not in theirs:  # of a trace from elsewhere
        return
    yield from close("", ["probabilities"], ours, theirs, exact, unrounded)
    both = theirs["probabilities"].shape == ours["probabilities"].shape
    if exact is None and both and theirs["probabilities"].shape[-1] > 1 and "accuracy" in theirs:
        differing = np.argmax(ours["probabilities"], axis=1) != np.argmax(theirs["probabilities"], axis=1)
        yield Comparison("differing predictions of the tests", float(differing.sum()), 0)


def history(ours: Arrays, theirs: Arrays, exact: Arrays | None = None, unrounded: Arrays | None = None) -> Found:
    """Rung 10: the loss and the metrics that each framework reports for each epoch, and for the test images."""
    names = [f"history/{name}" for name in sorted(keys_of(theirs, "history"), key=lambda name: name != "loss")]
    for name in names:
        if name not in ours:
            what = name.removeprefix("history/")
            logged = what if what.startswith("test_") else f"train_{what}"
            yield NotChecked(f"{what} as reported", f"the port does not log {logged}")
    reported = [name for name in names if name in ours]
    if reported and exact and "loss" in theirs:
        # In float32 each is a single number, which one side or the other hits more exactly by chance. So the losses are
        # looked at with those of the steps, and all beside the weights that they come from.
        ours, theirs, exact = (with_steps(arrays, reported) for arrays in (ours, theirs, exact))
        reported += [f"weights/{key}" for key in keys_of(theirs, "weights")]
    if reported:
        yield from close("", reported, ours, theirs, exact, unrounded)


def with_steps(arrays: Arrays, names: Iterable[str]) -> Arrays:
    """Put the losses of the steps in front of each loss that is reported."""
    losses = [name for name in names if name in ("history/loss", "history/test_loss")]
    return {**arrays, **{name: np.append(arrays.get("loss", NOTHING), arrays[name]) for name in losses}}


def distribution(sides: Sides, dtype: str) -> Found:
    """Rung 11: test results over seeds, of the candidate and of Keras."""
    ours, theirs, margins = over_seeds(sides)
    if not theirs:
        yield NotChecked("test results over seeds", "the data hold no examples to test on")
    for name in theirs:
        if name not in margins:
            yield NotChecked(f"{name} over seeds", f"the port does not log {name}")
    yield from equivalence(ours, theirs, margins)
    yield from equal_spreads(ours, theirs, margins)


def over_seeds(sides: Sides) -> tuple[Arrays, Arrays, dict[str, float]]:
    """Return the test results of the port and of Keras over seeds, [runs] each, and the margins of those of both.

    Of the documented model those of Keras are recorded; of another it is trained as often as the port.
    """
    seeds = range(sides.seeds)
    if not sides.data:
        return sides.results("ours", seeds), {name: recorded()["keras"][name] for name in MARGINS}, MARGINS
    ours, theirs = sides.results("ours", seeds), sides.results("theirs", seeds)
    return ours, theirs, {name: MARGIN_IN_SPREADS * np.std(theirs[name], ddof=1) for name in theirs if name in ours}


def equivalence(ours: Arrays, theirs: Arrays, margins: Mapping[str, float]) -> Iterator[Comparison]:
    """Compare means over seeds: they are equivalent by two one-sided t-tests (Welch), 5 % each.

    Both reject, and so the means differ by less than the margin, if and only if the 90 % interval of their difference
    lies within it. What is compared is the end of the interval that is farther from zero. Source: Schuirmann (1987).

    Args:
        ours: results of each run by name, [runs].
        theirs: the same of Keras.
        margins: by the names of what is compared.
    """
    from scipy.stats import ttest_ind

    for name, margin in margins.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # of trainings that all end alike
            low, high = ttest_ind(ours[name], theirs[name], equal_var=False).confidence_interval(0.90)
        what = f"{name.replace('_', ' ')}: mean differs by {low:+.4f} to {high:+.4f}"
        yield Comparison(what, float(np.nan_to_num(max(-low, high), nan=np.inf)), float(margin))


def equal_spreads(ours: Arrays, theirs: Arrays, names: Iterable[str]) -> Iterator[Comparison]:
    """Compare by how much results spread over seeds: the test of Brown and Forsythe (1974), at 0.1 %.

    It compares the mean distance from the median. It is no test of equivalence, which would need hundreds of runs: that
    of a few trainings decides here, the one in fifty that went badly. What it finds is a port that hardly spreads, or
    several times as far. (A ratio of standard deviations would be decided by a single training.)

    Args:
        ours: results of each run by name, [runs].
        theirs: the same of Keras.
        names: of what is compared.
    """
    from scipy.stats import f, levene

    for name in names:
        sides = [np.asarray(side[name]) for side in (ours, theirs)]
        distances = [float(np.abs(side - np.median(side)).mean()) for side in sides]
        times = distances[0] / distances[1] if distances[1] else math.inf
        what = f"spread of {name.replace('_', ' ')} over seeds: {times:.2g} times that of Keras"
        statistic = 0.0 if distances[0] == distances[1] else float(levene(*sides, center="median").statistic)
        bound = f.isf(SPREAD_LEVEL, 1, sum(map(len, sides)) - 2)
        yield Comparison(what, float(np.nan_to_num(statistic, nan=np.inf)), float(bound))


def devices(sides: Sides, dtype: str) -> Found:
    """Rung 12: our training on several devices and Keras' on one, up to the first that differs."""
    # A trace brings its own order. Devices that each draw another one would miss images and see others twice.
    facts, _ = sides.facts()
    if "same_order" in facts:
        order = Comparison("the order of the images, drawn again with the same seed", float(not facts["same_order"]), 0)
        yield order
        if not order.holds:
            return
    for count, training in DEVICES:
        if sides.data and training == "long":
            yield NotChecked(f"{count} devices: {training}", "its batches need not divide among them")
            continue
        comparisons = whole_training(sides.on_devices(training, count), sides, training)
        yield from labelled(f"{count} devices: {training}", comparisons)
        if not all(one.holds for one in comparisons if isinstance(one, Comparison)):
            return


def resume(sides: Sides, dtype: str) -> Found:
    """Rung 13: trainings that were killed within an epoch and Keras', and to the bit those that were not."""
    for count, training in RESUMED:
        if sides.data and training == "long" and count > 1:
            yield NotChecked(f"{count} devices: {training}", "its batches need not divide among them")
            continue
        steps = len(sides.inputs(training, dtype).batches)
        ours = sides.on_devices(training, count, kill_after=steps * 5 // 9)
        comparisons = whole_training(ours, sides, training)
        if all(one.holds for one in comparisons if isinstance(one, Comparison)):
            comparisons += same_bits(ours, sides.on_devices(training, count))
        yield from labelled(f"{count} device{'s' * (count > 1)}: {training}", comparisons)
        if not all(one.holds for one in comparisons if isinstance(one, Comparison)):
            return


def whole_training(ours: Arrays, sides: Sides, training: str) -> list[Comparison | NotChecked]:
    theirs, unrounded = sides.reference(training, "float64"), sides.unrounded(training)
    ours, theirs = alike(ours, theirs), comparable(theirs, ours)
    found = [*trajectory(ours, theirs, None, unrounded), *history(ours, theirs, None, unrounded)]
    return list(placed(found, theirs))


def same_bits(ours: Arrays, whole: Arrays) -> Iterator[Comparison]:
    """Compare a training that was interrupted with the one that was not: it ends to the last bit the same."""
    for name in whole:
        if name in ("loss", "accuracy", "probabilities") or name.startswith((*STATES, "history")):
            apart, where = largest_difference(ours.get(name), whole[name])
            yield Comparison(f"{name}{where}, interrupted or not", apart, 0)


def labelled(training: str, comparisons: Iterable[Comparison | NotChecked]) -> Found:
    """Put before each comparison of which training it is."""
    return (replace(one, what=f"{training}: {one.what}") for one in comparisons)


def dtypes(arrays: Arrays) -> Arrays:
    return {"dtypes": np.array([str(arrays[f"initial/0/{key}"].dtype) for key in sorted(keys_of(arrays, "initial/0"))])}


# How an epoch of Keras goes


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
