"""What each rung of the ladder compares. `ours` is the port, `theirs` Keras; both are arrays read from files.

Each function yields what it compared, in the order in which a reader should look: the first that does not hold is the
first divergence.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from keras_ref.parity.comparisons import (
    Comparison,
    close,
    close_at_steps,
    equal,
    keys_of,
    largest_difference,
)
from keras_ref.parity.recorded import recorded
from keras_ref.parity.samples import drawn_again, glorot_bound, kolmogorov_smirnov
from keras_ref.parity.sides import Sides
from keras_ref.parity.tolerances import DRAWN_AGAIN, KOLMOGOROV_SMIRNOV, MARGINS
from lit_mnist.trace.files import Arrays

# Numbers of processes, and the training whose batches divide among them.
DEVICES = ((2, "short"), (3, "thirds"), (4, "short"), (2, "long"), (4, "long"))
RESUMED = ((1, "short"), (2, "short"), (3, "thirds"), (1, "long"), (2, "long"))


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
    ):
        yield Comparison(rule, float(of(ours) != of(theirs)), 0)
    size = int(theirs["documented_batch_sizes"][0])
    as_asked = (ours["documented_batch_sizes"][:-1] == size).all()
    yield Comparison(f"batches of {size} images, if {size} are asked for", float(not as_asked), 0)


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
        for key in keys_of(theirs, "initial/0"):
            drawn = [
                array.ravel() for name, array in arrays.items() if name.startswith("initial/") and name.endswith(key)
            ]
            sample = np.concatenate(drawn) if drawn else np.array([np.nan])
            if key.endswith("bias"):
                yield Comparison(f"{key}, {side}: largest", float(np.abs(sample).max()), 0)
            else:
                distance = kolmogorov_smirnov(sample, glorot_bound(theirs[f"initial/0/{key}"].shape))
                yield Comparison(f"{key}, {side}: distance from Glorot uniform", distance, KOLMOGOROV_SMIRNOV)
        for key, share in drawn_again(arrays).items():
            yield Comparison(f"{key}, {side}: share of draws that come again", share, DRAWN_AGAIN)


def weight_transfer(sides: Sides, dtype: str) -> Iterator[Comparison]:
    """Rung 4: weights go into the model and back as the same bits, on both sides and from Keras' own files."""
    inputs = sides.inputs("cases", dtype)
    ours, theirs = sides.trace("cases", dtype)
    files = {f"ours, from a {kind} file": sides.loaded(path) for kind, path in sides.saved(inputs).items()}
    for how, arrays in ({"ours": ours, "theirs": theirs} | files).items():
        for key, array in inputs.weights.items():
            same = np.array_equal(array, arrays.get(f"loaded/{key}", np.nan))
            yield Comparison(f"{key}, {how}", float(not same), 0)


def forward(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 5: what every layer gives."""
    yield from close_at_steps("activations", ours, theirs, exact)


def loss(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 6: the loss of each batch of the edge cases."""
    yield from close("", ["loss"], ours, theirs, exact)


def gradients(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 7: the gradient of every tensor, at several points of the training."""
    yield from close_at_steps("gradients", ours, theirs, exact)


def optimizer(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 8: m, v and the weights after a step."""
    yield from close_at_steps("after", ours, theirs, exact)


def trajectory(ours: Arrays, theirs: Arrays, exact: Arrays | None = None) -> Iterator[Comparison]:
    """Rung 9: loss and accuracy of every step, then weights, m, v, test probabilities and predictions at the end."""
    yield from close("", ["loss"], ours, theirs, exact)
    if exact is None:
        yield from close("", ["accuracy"], ours, theirs)
    for kind in ("weights", "adam_m", "adam_v"):
        yield from close(kind, keys_of(theirs, kind), ours, theirs, exact)
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


def distribution(sides: Sides, dtype: str) -> Iterator[Comparison]:
    """Rung 11: test results over seeds, of the candidate and of the runs of Keras in recorded.json."""
    return equivalence(sides.results("ours", sides.seeds), recorded()["keras"])


def equivalence(ours: Arrays, theirs: Arrays) -> Iterator[Comparison]:
    """Compare mean test accuracy and loss over seeds: they are equivalent by two one-sided t-tests (Welch), 5 % each.

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


def devices(sides: Sides, dtype: str) -> Iterator[Comparison]:
    """Rung 12: our training on several devices and Keras' on one, up to the first that differs."""
    # A trace brings its own order. Devices that each draw another one would miss images and see others twice.
    facts, _ = sides.facts()
    order = Comparison("the order of the images, drawn again with the same seed", float(not facts["same_order"]), 0)
    yield order
    if not order.holds:
        return
    for count, training in DEVICES:
        comparisons = whole_training(sides.on_devices(training, count), sides.reference(training, dtype))
        yield from labelled(f"{count} devices: {training}", comparisons)
        if not all(one.holds for one in comparisons):
            return


def resume(sides: Sides, dtype: str) -> Iterator[Comparison]:
    """Rung 13: trainings that were killed within an epoch and Keras', and to the bit those that were not."""
    for count, training in RESUMED:
        steps = len(sides.inputs(training, dtype).batches)
        ours = sides.on_devices(training, count, kill_after=steps * 5 // 9)
        comparisons = whole_training(ours, sides.reference(training, dtype))
        if all(one.holds for one in comparisons):
            comparisons += same_bits(ours, sides.on_devices(training, count))
        yield from labelled(f"{count} device{'s' * (count > 1)}: {training}", comparisons)
        if not all(one.holds for one in comparisons):
            return


def whole_training(ours: Arrays, theirs: Arrays) -> list[Comparison]:
    return [*trajectory(ours, theirs), *history(ours, theirs)]


def same_bits(ours: Arrays, whole: Arrays) -> Iterator[Comparison]:
    """Compare a training that was interrupted with the one that was not: it ends to the last bit the same."""
    for name in ("loss", "accuracy", "probabilities", *whole):
        if name in ("loss", "accuracy", "probabilities") or name.startswith(("weights", "adam", "history")):
            apart, where = largest_difference(ours.get(name), whole[name])
            yield Comparison(f"{name}{where}, interrupted or not", apart, 0)


def labelled(training: str, comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    """Put before each comparison of which training it is."""
    return (replace(one, what=f"{training}: {one.what}") for one in comparisons)


def dtypes(arrays: Arrays) -> Arrays:
    return {"dtypes": np.array([str(arrays[f"initial/0/{key}"].dtype) for key in keys_of(arrays, "initial/0")])}


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
