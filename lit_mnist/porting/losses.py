"""Shapes of targets, as Keras' losses take them."""

from torch import Tensor


def match_rank(targets: Tensor, predictions: Tensor) -> Tensor:
    """Give targets the shape of predictions, as Keras' losses do: [N] becomes [N, 1] for predictions [N, 1], and back.

    `predictions - targets` of [N, 1] and [N] would be [N, N] in torch: every prediction against every target. A loss of
    that trains, towards the mean of all targets.

    Source: `squeeze_or_expand_to_same_rank` in keras/src/losses/loss.py.

    Raises:
        ValueError: if the shapes differ in more than a last dimension of one.
    """
    shape = predictions.shape
    if targets.shape not in (shape, shape[:-1] if shape[-1:] == (1,) else shape, (*shape, 1)):
        raise ValueError(f"targets are {list(targets.shape)} and predictions {list(shape)}")
    return targets.reshape(shape)
