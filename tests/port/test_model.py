"""The layer stack: the documented one, and the one that Keras builds."""

import numpy as np
import pytest
import torch
from reference import GLOROT_BOUNDS, PARAMETERS, SHAPES_HWC

from keras_ref.parity.samples import draws_beyond, kolmogorov_smirnov
from keras_ref.parity.tolerances import DRAWN_BEYOND, KOLMOGOROV_SMIRNOV
from lit_mnist import LitMNIST, MNISTClassifier

SEEDS = 20


def test_layers_and_parameter_counts_match_the_documentation() -> None:
    ours = {name: sum(p.numel() for p in layer.parameters()) for name, layer in MNISTClassifier().named_children()}
    assert list(ours.items()) == list(PARAMETERS.items())
    assert sum(ours.values()) == 152_006


def test_output_shape_of_every_layer_matches_the_documentation() -> None:
    model, ours = MNISTClassifier(), {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _module, _inputs, output, name=name: ours.update({name: output}))
    model(torch.zeros(2, 1, 28, 28))
    for name, expected in SHAPES_HWC.items():
        nhwc = ours[name].movedim(1, -1) if ours[name].ndim == 4 else ours[name]
        assert tuple(nhwc.shape) == (2, *expected)


def test_calling_the_module_gives_probabilities() -> None:
    probabilities = LitMNIST()(torch.rand(5, 1, 28, 28))
    assert probabilities.shape == (5, 10)
    assert (probabilities > 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))


def draw_ours(seed: int, layer: str) -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(seed)
    module = MNISTClassifier().get_submodule(layer)
    return module.weight.detach().numpy(), module.bias.detach().numpy()


@pytest.mark.parametrize(("layer", "bound"), GLOROT_BOUNDS.items())
def test_kernels_are_glorot_uniform_and_biases_zero(layer: str, bound: float) -> None:
    kernels, biases = zip(*(draw_ours(seed, layer) for seed in range(SEEDS)), strict=True)
    assert not np.any(biases)
    assert len({kernel.tobytes() for kernel in kernels}) == SEEDS  # another seed draws others
    sample = np.concatenate([kernel.ravel() for kernel in kernels])
    uniform = np.random.default_rng(0).uniform(-bound, bound, len(sample))
    assert kolmogorov_smirnov(sample, uniform) < KOLMOGOROV_SMIRNOV
    assert draws_beyond(sample, uniform) <= DRAWN_BEYOND


def test_the_check_of_the_initialisation_notices_torchs_own() -> None:
    kernels = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        kernels.append(torch.nn.Conv2d(1, 6, 3).weight.detach().numpy().ravel())
    bound = GLOROT_BOUNDS["conv"]
    sample = np.concatenate(kernels)
    assert draws_beyond(sample, np.random.default_rng(0).uniform(-bound, bound, len(sample))) > DRAWN_BEYOND
