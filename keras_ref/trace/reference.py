"""The original that is compared: a compiled Keras model and its data, found by their names."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from lit_mnist.errors import InputError
from lit_mnist.trace.arrays import Examples, call_named, load_examples

EXPECTED = "package.module:function, which returns a compiled keras.Model, or a .keras file"

Batch = tuple[np.ndarray, ...]  # inputs and targets as Keras takes them, and where there are any sample weights


class Reference:
    """A compiled Keras model, and the examples that it is trained on.

    Args:
        model: `package.module:function`, called without arguments, which returns a built, compiled `keras.Model`; or
            the path of a `.keras` file that holds a compiled one.
        data: `package.module:function`, which returns NumPy arrays as `lit_mnist.trace.arrays` describes.

    Raises:
        InputError: from any method, if there is no such function or file, or it does not give what is expected.
    """

    accuracy: Callable[[Any, Any], Any] | None = None  # of single examples, where it is kept of every step

    def __init__(self, model: str, data: str) -> None:
        self.model, self.data = model, data

    def examples(self) -> Examples:
        """Return the data."""
        return load_examples(self.data)

    def build(self) -> keras.Model:
        """Build the model anew, in the precision that `keras.config.floatx()` says."""
        keras.backend.clear_session()  # layers without a name of their own are numbered
        path = Path(self.model)
        model = _load(path) if path.suffix == ".keras" else call_named("reference", self.model, EXPECTED)
        if not isinstance(model, keras.Model):
            raise InputError(f"--reference {self.model}: gives a {type(model).__name__}; expected a keras.Model")
        if not model.built:
            raise InputError(f"--reference {self.model}: the model is not built; give it a keras.Input")
        if not getattr(model, "compiled", False):
            raise InputError(f"--reference {self.model}: the model is not compiled; call model.compile(...)")
        for variable in model.weights:
            if "float" in str(variable.dtype) and str(variable.dtype) != keras.config.floatx():
                raise InputError(
                    f"--reference {self.model}: {variable.path} is {variable.dtype} where keras.config.floatx() is "
                    f"{keras.config.floatx()}; leave the dtype of the layers to Keras"
                )
        return model


def _load(path: Path) -> keras.Model:
    try:
        model = keras.saving.load_model(path)  # in safe mode: no code in it is run
        if keras.config.floatx() == "float32" or not getattr(model, "compiled", False):
            return model
        # A file says float32 in every layer.
        serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
        wide = keras.saving.deserialize_keras_object(_in_floatx(serialized))
        for variable, other in zip(wide.weights, model.weights, strict=True):
            variable.assign(other.numpy())
    except Exception as error:  # keras raises whatever the content makes it raise
        raise InputError(f"--reference {path}: {' '.join(str(error).split())[:300]}; expected a .keras file") from error
    return wide


def _in_floatx(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {name: _in_floatx(value) for name, value in config.items()}
    if isinstance(config, list):
        return [_in_floatx(value) for value in config]
    return keras.config.floatx() if config == "float32" else config
