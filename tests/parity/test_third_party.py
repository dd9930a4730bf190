"""Both sides against the third party in NumPy, so that a disagreement has an owner; and traces drawn at random."""

from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_ref.data import load_data, scale_pixels
from keras_ref.parity import checks
from keras_ref.parity.comparisons import largest_difference
from keras_ref.parity.sides import Sides
from keras_ref.trace.trainings import cut, glorot_uniform
from lit_mnist.layout import WEIGHTS
from lit_mnist.trace.files import Arrays, TraceInputs

# Over 18 steps, as the two sides differ from each other: see keras_ref/parity/tolerances.py. Measured: 3e-15.
TOLERANCE = 1e-12


def numpy_training(given: TraceInputs) -> Arrays:
    """Train as given, and keep what a trace keeps of every step."""
    mnist = load_data(given.data_dir, given.verify_data)
    one_hot = np.eye(10)[mnist.train_labels]
    adams = {key: reference.NumPyAdam(given.weights[key]) for key in WEIGHTS}
    losses, arrays = [], {}
    for step, row in enumerate(given.batches):
        batch = row[row >= 0]
        images = scale_pixels(mnist.train_images[batch], "float64")
        weights = {key: adam.w for key, adam in adams.items()}
        loss, gradients = reference.loss_and_gradients(images, one_hot[batch], weights)
        losses.append(loss)
        for key, adam in adams.items():
            adam.step(gradients[key], given.learning_rate)
            arrays |= {
                f"gradients/{step}/{key}": gradients[key],
                f"after/{step}/weights/{key}": adam.w,
                f"after/{step}/adam_m/{key}": adam.m,
                f"after/{step}/adam_v/{key}": adam.v,
            }
    return arrays | {"loss": np.array(losses)}


def largest(trace: Arrays, expected: Arrays) -> float:
    """Return the largest difference of any element of what was kept of single steps, and of the losses."""
    names = [name for name in trace if name == "loss" or name.startswith(("gradients/", "after/"))]
    assert len(names) > 1
    return max(largest_difference(trace[name], expected[name])[0] for name in names)


@pytest.mark.parametrize("training", ["short", "cases", "saturated", "tied"])
@pytest.mark.parametrize("side", [0, 1], ids=["ours", "theirs"])
def test_each_side_computes_what_the_definitions_say(side: int, training: str, sides: Sides) -> None:
    trace = sides.trace(training, "float64")[side]
    assert largest(trace, numpy_training(sides.inputs(training, "float64"))) < TOLERANCE


def test_the_third_party_notices_a_wrong_gradient(sides: Sides) -> None:
    ours, _ = sides.of("lit_mnist.mutants:MaximumForReLU").trace("cases", "float64")
    assert largest(ours, numpy_training(sides.inputs("cases", "float64"))) > 1e-6


RANDOM = given(
    seed=st.integers(0, 2**32 - 1),
    batch_size=st.sampled_from([37, 100, 128]),
    learning_rate=st.floats(1e-5, 1e-2),
    scale=st.floats(0.1, 3),
    images=st.integers(40, 500),
    biases=st.booleans(),
)


def examples(count: int) -> settings:
    health = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=health)


@examples(1)
@RANDOM
def test_a_short_training_agrees(sides: Sides, **drawn: Any) -> None:
    agrees(sides, **drawn)


@pytest.mark.slow
@examples(12)
@RANDOM
def test_any_short_training_agrees(sides: Sides, **drawn: Any) -> None:
    agrees(sides, **drawn)


def agrees(
    sides: Sides, seed: int, batch_size: int, learning_rate: float, scale: float, images: int, biases: bool
) -> None:
    """Other seeds, batch sizes (with a ragged last batch), learning rates, start weights, three epochs each."""
    rng = np.random.default_rng(seed)
    weights = {key: array * scale for key, array in glorot_uniform(rng, "float64", WEIGHTS).items()}
    if biases:
        weights |= {key: rng.normal(0, 0.1, shape) for key, shape in WEIGHTS.items() if key.endswith("bias")}
    batches = np.concatenate([cut(rng.permutation(60_000)[:images], batch_size) for _ in range(3)])
    record_at = np.array([0, len(batches) // 2, len(batches) - 1])
    inputs = TraceInputs("", "float64", weights, batches, learning_rate, len(batches) // 3, record_at, sides.data_dir)
    ours, theirs = sides.traces(inputs)
    for comparison in (checks.loss, checks.gradients, checks.optimizer, checks.trajectory, checks.history):
        for one in comparison(ours, theirs):
            assert one.holds, one
    assert largest(ours, numpy_training(inputs)) < TOLERANCE
