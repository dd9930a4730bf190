"""What a training does not do: counted, since seconds depend on the machine."""

import collections
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from torch.utils._python_dispatch import TorchDispatchMode
from trainers import make_trainer

from lit_mnist import LitMNIST, MNISTDataModule

BATCH_SIZE = 100
# Operators of a step at most, views among them. Measured with torch 2.14: 142 and 90, many of the former small.
OPERATORS = {True: 145, False: 95}


class Operators(TorchDispatchMode):
    """Count the operators that run, and those that return as many bytes as there are in the training images."""

    def __init__(self, whole: int) -> None:
        super().__init__()
        self.whole = whole
        self.calls: collections.Counter[str] = collections.Counter()
        self.large: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[str(func)] += 1
        if isinstance(result, torch.Tensor) and result.nbytes >= self.whole:
            self.large[str(func)] += 1
        return result


class CountedOrder:
    """The order of the images, counting how often it is drawn."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def __call__(self, epoch: int) -> list[np.ndarray]:
        self.drawn.append(epoch)
        return [np.arange(i, i + BATCH_SIZE) for i in range(0, 2_000, BATCH_SIZE)]


def counted_fit(steps: int, fused: bool = True, epochs: int = 1) -> tuple[Operators, CountedOrder]:
    order = CountedOrder()
    data = MNISTDataModule(batch_size=BATCH_SIZE, order=order)
    data.setup()
    trainer = make_trainer(max_epochs=epochs, limit_train_batches=steps, limit_val_batches=0)
    with Operators(data.train.tensors[0].nbytes) as operators:
        trainer.fit(LitMNIST(fused=fused), data)
    return operators, order


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "layers"])
def of_a_step(request: pytest.FixtureRequest) -> tuple[bool, collections.Counter[str]]:
    """Whether it is fused, and the operators of ten steps."""
    many, few = (counted_fit(steps, request.param)[0].calls for steps in (15, 5))
    return request.param, many - few


def test_a_step_never_waits_for_the_device(of_a_step: tuple[bool, collections.Counter[str]]) -> None:
    """Reading a number does (`item`, `bool`, `float`), and copying to the CPU."""
    _, operators = of_a_step
    assert not [name for name in operators if "_local_scalar_dense" in name or "nonzero" in name]


def test_a_step_calls_few_operators(of_a_step: tuple[bool, collections.Counter[str]]) -> None:
    fused, operators = of_a_step
    assert operators.total() / 10 <= OPERATORS[fused], operators


def test_the_fast_path_is_one_product_forwards_and_one_backwards(
    of_a_step: tuple[bool, collections.Counter[str]],
) -> None:
    fused, operators = of_a_step
    assert operators["aten.bmm.default"] == (20 if fused else 0)
    convolutions = [name for name in operators if "conv" in name or "pool" in name]
    assert bool(convolutions) != fused, convolutions


def test_an_epoch_draws_its_order_once_and_never_copies_the_images() -> None:
    operators, order = counted_fit(steps=3, epochs=3)
    assert [order.drawn.count(epoch) for epoch in (1, 2)] == [1, 1]
    assert not operators.large


NOT_FOR_TRAINING = ["tensorflow", "keras", "jax", "h5py", "pandas", "tensorboard", "IPython", "onnx"]


@pytest.mark.slow
def test_modules_that_training_does_not_need_are_not_imported(command: Command) -> None:
    code = (
        "import sys; sys.argv = ['train', '--fast_dev_run']\n"
        "from lit_mnist.train import run, train; run(train, 'train')\n"
        f"print([name for name in {NOT_FOR_TRAINING} if name in sys.modules])"
    )
    finished = command("-c", code)
    assert finished.stdout.splitlines()[-1] == "[]", finished.stdout + finished.stderr
