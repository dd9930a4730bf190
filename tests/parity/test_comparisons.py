"""How arrays of another model are compared with Keras as it is and with Keras whose constants keep their bits."""

import numpy as np
import pytest

from keras_ref.parity import checks
from keras_ref.parity.comparisons import OWN_ROUNDING, Comparison, near_either

UNROUNDED = np.zeros(5)
KERAS = np.array([0, 1e-9, 2e-9, 3e-9, 4e-9])  # a rounded constant takes it farther at every step


def compared(ours: np.ndarray) -> Comparison:
    return near_either("loss", ours, KERAS, UNROUNDED)


@pytest.mark.parametrize(
    ("ours", "against"),
    [
        (KERAS, ""),
        (UNROUNDED + 1e-13, "unrounded"),
        (2 * KERAS, OWN_ROUNDING),
        (-2 * KERAS, OWN_ROUNDING),
    ],
)
def test_a_port_is_right_near_either_run_of_keras_or_within_twice_its_rounding(ours: np.ndarray, against: str) -> None:
    one = compared(ours)
    assert one.holds
    assert one.against == against


def test_of_steps_that_are_too_far_the_first_that_nothing_allows_is_named() -> None:
    one = compared(np.array([0, 2e-9, 4e-9, 9e-9, 2e-8]))
    assert not one.holds
    assert (one.what, one.difference, one.tolerance, one.against) == ("loss[3]", 9e-9, 1e-12, "unrounded")
    one = near_either("loss", np.array([0, 1.5e-12]), np.array([0, 0.9e-12]) * -1, np.zeros(2))
    assert (one.what, one.holds) == ("loss[1]", False)


def test_numbers_beyond_one_are_compared_relative_to_the_largest() -> None:
    large = 1e6 + KERAS
    assert near_either("loss", large + 1e-7, large, large).difference == pytest.approx(1e-13, rel=0.1)
    assert not near_either("loss", large + 1e-5, large, large).holds


@pytest.mark.parametrize(("error", "holds"), [(5e-5, True), (1e-2, False)])
def test_in_float32_a_small_test_loss_is_looked_at_with_the_losses_of_the_steps(error: float, holds: bool) -> None:
    """By itself it is one number, which Keras hits more exactly than the port in every third training."""
    rng = np.random.default_rng(0)
    exact = {"loss": rng.uniform(0.5, 2, 30), "weights/hidden/kernel": rng.normal(0, 1, 100)}
    exact |= {"history/loss": np.full(1, 1.2), "history/test_loss": np.array(1e-3)}
    theirs = {name: array * (1 + rng.normal(0, 1e-7, array.shape)) for name, array in exact.items()}
    ours = {name: array * (1 + rng.normal(0, 1e-7, array.shape)) for name, array in exact.items()}
    ours["history/test_loss"] = exact["history/test_loss"] * (1 + error)
    (one,) = checks.history(ours, theirs, exact)
    assert isinstance(one, Comparison)
    assert one.holds == holds
    assert holds or one.what == "history/test_loss"
    del ours["loss"]
    (one,) = checks.history(ours, theirs, exact)
    assert isinstance(one, Comparison)
    assert not one.holds  # and no error
