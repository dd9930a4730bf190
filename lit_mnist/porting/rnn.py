"""LSTM and GRU with the biases and the start weights of Keras."""

import numpy as np
import torch
from torch import Tensor, nn


class KerasLSTM(nn.LSTM):
    """Read sequences [N, T, I] as `keras.layers.LSTM` does: one layer, in one direction, tanh and sigmoid.

    It returns what `nn.LSTM` returns: all outputs [N, T, U], and the last output and state [1, N, U] each. Keras gives
    `outputs[:, -1]` unless it has `return_sequences`.

    Source: keras/src/layers/rnn/lstm.py. The arithmetic and the order of the gates are torch's (i, f, c, o and i, f, g,
    o), but torch adds two biases where Keras has one. Both get the same gradient, so that together they learn twice as
    fast. Here `bias_hh_l0` stays zero and is not trained. And the start weights are Keras': Glorot uniform kernels,
    an orthogonal recurrent kernel, a bias of one for the forget gate and of zero else.

    Args:
        input_size: I.
        hidden_size: U, Keras' units.
    """

    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    bias_hh_l0: nn.Parameter

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, batch_first=True)
        self.bias_hh_l0.requires_grad_(False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        _draw(self)
        self.bias_ih_l0[self.hidden_size : 2 * self.hidden_size] = 1  # unit_forget_bias

    def from_keras(self, kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> None:
        """Set the weights to those of a Keras layer, `get_weights()`: [I, 4U], [U, 4U] and [4U]."""
        _set(self, {"weight_ih_l0": kernel.T, "weight_hh_l0": recurrent_kernel.T, "bias_ih_l0": bias})
        nn.init.zeros_(self.bias_hh_l0)

    def to_keras(self) -> list[np.ndarray]:
        """Return the weights as a Keras layer's `set_weights` takes them: [I, 4U], [U, 4U] and [4U]."""
        return [_array(self.weight_ih_l0.T), _array(self.weight_hh_l0.T), _array(self.bias_ih_l0 + self.bias_hh_l0)]


class KerasGRU(nn.GRU):
    """Read sequences [N, T, I] as `keras.layers.GRU` does: one layer, in one direction, `reset_after=True`.

    It returns what `nn.GRU` returns: all outputs [N, T, U], and the last one [1, N, U].

    Source: keras/src/layers/rnn/gru.py. The arithmetic is torch's, both of whose biases Keras has and trains, too; but
    Keras has the gates in the order z, r, h and torch in the order r, z, n. The start weights are Keras': Glorot
    uniform kernels, an orthogonal recurrent kernel, biases of zero. `reset_after=False` cannot be had of torch.

    Args:
        input_size: I.
        hidden_size: U, Keras' units.
    """

    weight_ih_l0: nn.Parameter
    weight_hh_l0: nn.Parameter
    bias_ih_l0: nn.Parameter
    bias_hh_l0: nn.Parameter

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size, batch_first=True)

    def reset_parameters(self) -> None:
        _draw(self)

    def from_keras(self, kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> None:
        """Set the weights to those of a Keras layer, `get_weights()`: [I, 3U], [U, 3U] and [2, 3U]."""
        arrays = {"weight_ih_l0": kernel.T, "weight_hh_l0": recurrent_kernel.T}
        arrays |= {"bias_ih_l0": bias[0], "bias_hh_l0": bias[1]}
        _set(self, {name: swapped_gates(array) for name, array in arrays.items()})

    def to_keras(self) -> list[np.ndarray]:
        """Return the weights as a Keras layer's `set_weights` takes them: [I, 3U], [U, 3U] and [2, 3U]."""
        weights = (self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0)
        kernel, recurrent_kernel, *biases = (swapped_gates(_array(weight)) for weight in weights)
        return [kernel.T, recurrent_kernel.T, np.stack(biases)]


def _draw(module: KerasLSTM | KerasGRU) -> None:
    nn.init.xavier_uniform_(module.weight_ih_l0)
    nn.init.orthogonal_(module.weight_hh_l0)
    nn.init.zeros_(module.bias_ih_l0)
    nn.init.zeros_(module.bias_hh_l0)


@torch.no_grad()
def _set(module: nn.Module, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        parameter = module.get_parameter(name)
        if parameter.shape != array.shape:
            raise ValueError(f"{name} is {tuple(parameter.shape)}, and what Keras has for it {array.shape}")
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def swapped_gates(array: np.ndarray) -> np.ndarray:
    """Exchange the first two of three gates [3U, ...]: z, r, h and r, z, n."""
    first, second, third = np.split(array, 3)
    return np.concatenate([second, first, third])
