"""What a compiled Keras model is: layers, weights and optimizer, as JSON can hold them."""

from collections.abc import Iterator
from typing import Any

import keras

from lit_mnist.errors import InputError

DRAWS = ["GaussianNoise", "GaussianDropout", "AlphaDropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"]


def describe(model: keras.Model, name: str) -> dict[str, Any]:
    """Describe a compiled model.

    Returns:
        - `layers`, in the order of the model; those of a nested model as "outer/inner". Of each `name`, `class`,
          `config`, `inputs` (names of the layers that it is called on), `shape` of what it gives without the batch,
          `input_shape`, `weights` (of each `key`, `shape` and `trainable`), and `recorded`, whether what it gives can
          be looked at by itself;
        - `input_shape`, `input_dtype`, and `output`, the name of the layer that gives what the model gives;
        - `optimizer`, the name of its class.

    Raises:
        InputError: names what cannot be described.
    """
    if not (hasattr(model, "inputs") and "layers" in model.get_config()):
        raise InputError(f"--reference {name}: a subclass of keras.Model, whose layers do not say how they are joined")
    for kind in ("inputs", "outputs"):
        if len(getattr(model, kind)) != 1:
            raise InputError(f"--reference {name}: the model has {len(getattr(model, kind))} {kind}; expected one")
    layers = list(_layers(model, "", {}))
    for layer, described in layers:
        _refuse(layer, described["name"], name)
    return {
        "layers": [described for _, described in layers],
        "input_shape": list(model.inputs[0].shape[1:]),
        "input_dtype": str(model.inputs[0].dtype),
        "output": layers[-1][1]["name"],
        "optimizer": type(model.optimizer).__name__,
    }


def _layers(model: keras.Model, prefix: str, given: dict[str, str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each layer with its description, those of nested models in the place of the model."""
    configs = {config["name"]: config for config in model.get_config()["layers"] if "name" in config}
    alias = dict(given)  # from the name of a layer here to the qualified name of what gives its output
    previous = [given[name] for name in given][:1]
    for layer in model.layers:
        qualified = f"{prefix}{layer.name}"
        inbound = configs.get(layer.name, {}).get("inbound_nodes")
        names = [alias.get(n, f"{prefix}{n}") for n in _inbound(inbound)] if inbound else previous
        if isinstance(layer, keras.Model):
            inner = [f"{n.name}" for n in layer.layers if isinstance(n, keras.layers.InputLayer)]
            for inner_layer, described in _layers(layer, f"{qualified}/", dict.fromkeys(inner[:1], (names or [""])[0])):
                yield inner_layer, described | {"recorded": False}
                last = described["name"]
            alias[layer.name] = last
            previous = [last]
            continue
        if isinstance(layer, keras.layers.InputLayer):
            if layer.name not in given:
                alias[layer.name] = ""
            previous = [alias[layer.name]]
            continue
        shared = bool(inbound) and len(inbound) > 1
        yield (
            layer,
            {
                "name": qualified,
                "class": type(layer).__name__,
                "config": _plain(layer.get_config()),
                "inputs": [n for n in names if n],
                "shape": None if shared else _shape(layer.output),
                "input_shape": None if shared else _shape(layer.input),
                "weights": [
                    {
                        "key": f"{prefix}{key(variable)}",
                        "shape": list(variable.shape),
                        "trainable": any(variable is other for other in layer.trainable_weights),
                    }
                    for variable in _weights(layer)
                ],
                "recorded": not shared and not prefix,
            },
        )
        previous = [qualified]


def _weights(layer: Any) -> list[Any]:
    return [variable for variable in layer.weights if "seed_generator" not in variable.path]


def key(variable: Any) -> str:
    """Return the name of a weight in files, as in hidden/kernel or lstm/lstm_cell/kernel, without enclosing models."""
    parts = variable.path.split("/")
    return "/".join(parts[-3:] if parts[-2].endswith("_cell") else parts[-2:])


def keys(model: keras.Model) -> dict[str, Any]:
    """Return all weights of a model by their names in files, those of nested models as "outer/inner/kernel"."""
    named: dict[str, Any] = {}
    for layer, described in _layers(model, "", {}):
        variables = _weights(layer)
        named |= {weight["key"]: v for weight, v in zip(described["weights"], variables, strict=True)}
    return named


def recorded(model: keras.Model) -> list[Any]:
    """Return the layers whose output can be looked at by itself: those of the model itself that are called once."""
    return [layer for layer, described in _layers(model, "", {}) if described["recorded"]]


def _inbound(nodes: list[Any]) -> list[str]:
    """Return the names of the layers whose outputs a layer is called on, from its serialized nodes."""
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("class_name") == "__keras_tensor__":
                found.append(value["config"]["keras_history"][0])
            else:
                for part in value.values():
                    look(part)
        elif isinstance(value, list | tuple):
            for part in value:
                look(part)

    look(nodes)
    return found


def _shape(tensor: Any) -> list[int] | None:
    return None if isinstance(tensor, list | tuple | dict) else list(tensor.shape[1:])


def _refuse(layer: Any, qualified: str, name: str) -> None:
    """Raise an InputError for what could not be compared."""
    kind, config = type(layer).__name__, layer.get_config()
    drawn = kind in DRAWS or kind.startswith("Random") or config.get("recurrent_dropout")
    if drawn or (kind != "Dropout" and config.get("dropout")):
        raise InputError(
            f"--reference {name}: layer {qualified} ({kind}) draws at random; only Dropout can be given its draws"
        )
    if kind == "Dropout" and "/" in qualified:
        raise InputError(f"--reference {name}: layer {qualified} is a Dropout within another model; join the two")
    if getattr(layer, "activity_regularizer", None) is not None:
        raise InputError(f"--reference {name}: layer {qualified} has an activity_regularizer, which is not compared")
    if isinstance(layer, keras.layers.Wrapper) or kind in ("Bidirectional", "RNN", "ConvLSTM1D", "ConvLSTM2D"):
        raise InputError(f"--reference {name}: layer {qualified} is a {kind}, which cannot be described")


def _plain(config: Any) -> Any:
    """Return a configuration as JSON can hold it."""
    if isinstance(config, dict):
        if "class_name" in config and "config" in config:  # a serialized object
            return {"class": config["class_name"], **(_plain(config["config"]) or {})}
        return {str(name): _plain(value) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [_plain(value) for value in config]
    return config if isinstance(config, str | int | float | bool | None) else str(config)
