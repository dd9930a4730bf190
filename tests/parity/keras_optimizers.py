"""Run as a process of its own: what Keras' Adam and AdamW make of given gradients, for each of some arguments.

python keras_optimizers.py IN.npz OUT.npz
"""

import json
import sys
from pathlib import Path

import numpy as np

from keras_ref.quiet import import_keras

import_keras()

import keras  # noqa: E402  # quietly

for dtype in ("float64", "float32"):
    keras.backend.clear_session()
    keras.config.set_floatx(dtype)
    given = np.load(Path(sys.argv[1], f"in-{dtype}.npz"))
    results = {}
    for case, arguments in json.loads(str(given["cases"])).items():
        excluded = arguments.pop("excluded", None)
        optimizer = getattr(keras.optimizers, arguments.pop("class", "Adam"))(**arguments)
        if excluded:
            optimizer.exclude_from_weight_decay(var_names=excluded)
        variables = [keras.Variable(given[name], name=name) for name in ("kernel", "bias")]
        for step in range(len(given["kernel gradients"])):
            gradients = [keras.ops.convert_to_tensor(given[f"{v.name} gradients"][step]) for v in variables]
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            results |= {f"{case}/{step}/{variable.name}": variable.numpy() for variable in variables}
        optimizer.finalize_variable_values(variables)
        results |= {f"{case}/final/{variable.name}": variable.numpy() for variable in variables}
    np.savez(Path(sys.argv[1], f"out-{dtype}.npz"), **results)
