"""Weights of the documented model into a .keras file, by Keras itself. `lit_mnist.export` runs it in a process."""

import sys

import numpy as np

from keras_ref.quiet import import_keras
from lit_mnist.errors import InputError


def main(weights: str, output: str) -> int:
    """Put weights into the documented model and save it.

    Args:
        weights: an .npz file of arrays keyed `<layer>/<weight>`, as in Keras.
        output: file (.keras) to write.

    Returns:
        The exit code: 0, or 2 with a line on what is missing.
    """
    try:
        import_keras()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    from keras_ref.model import build_model
    from keras_ref.trace.description import keys
    from keras_ref.trace.training import load

    model = build_model()
    with np.load(weights, allow_pickle=False) as arrays:
        load(keys(model), dict(arrays))
    # Else Keras warns, when it loads the file, that m and v are missing.
    model.optimizer.build(model.trainable_variables)
    model.save(output)
    return 0
