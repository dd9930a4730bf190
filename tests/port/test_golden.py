"""The port against what Keras recorded: the first steps of the documented training, without TensorFlow."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import GOLDEN, STEPS, inputs

from keras_ref.parity.tolerances import FLOAT64
from lit_mnist.trace.candidate import Candidate
from lit_mnist.trace.training import trace_training

# What to do if the port is right and Keras has changed.
AGAIN = "python tests/golden.py records it anew"


def largest_difference(candidate: str, tmp_path: Path) -> float:
    theirs = np.array(json.loads(GOLDEN.read_text())["loss"])
    ours = trace_training(inputs(tmp_path), Candidate(candidate, dtype=torch.float64))["loss"]
    assert ours.shape == theirs.shape == (STEPS,)
    return float(np.abs(ours - theirs).max())


def test_the_first_losses_are_those_of_keras(tmp_path: Path) -> None:
    assert largest_difference("lit_mnist:LitMNIST", tmp_path) <= FLOAT64, AGAIN


@pytest.mark.parametrize("mutant", ["NoEpsilonHat", "ExactBetas", "MaximumForReLU", "LabelSmoothing"])
def test_a_wrong_port_is_noticed(mutant: str, tmp_path: Path) -> None:
    assert largest_difference(f"lit_mnist.mutants:{mutant}", tmp_path) > 100 * FLOAT64
