"""Where to look when a rung does not hold: for kinds of layers and optimizers in which ports usually go wrong."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_ref.parity.rungs import Verdict

MISSING = (
    "the candidate has no such thing: a parameter that is frozen or not used has no gradient and no moments; "
    "lit_mnist/trace/candidate.py and mapped.py say what else it has to keep and to log"
)


@dataclass(frozen=True)
class Hint:
    """Where to look.

    Args:
        what: regular expression, found in the name of what differs.
        text: what to look at.
        kinds: of the layer that is named, or of the optimizer; none for any.
        rungs: at which it is given.
    """

    what: str
    text: str
    kinds: tuple[str, ...] = ()
    rungs: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10)


STRIDED = ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2D", "SeparableConv2D", "MaxPooling2D", "AveragePooling2D")
RECURRENT = ("LSTM", "GRU")

SETTINGS = ("axis", "negative_slope", "alpha", "max_value", "rate", "activation", "pool_size", "strides", "padding")

# The first that fits is given.
HINTS = (
    Hint(
        "moving_variance",
        "torch tracks the unbiased variance, n / (n - 1) times the one of Keras; and its momentum is one minus Keras'",
        ("BatchNormalization",),
    ),
    Hint("moving_mean", "the momentum of torch's BatchNorm is one minus Keras': 0.99 is 0.01", ("BatchNormalization",)),
    Hint(
        "training/",
        "look at epsilon (Keras 1e-3, torch 1e-5), and whether the layer normalises with the statistics of the batch",
        ("BatchNormalization",),
    ),
    Hint(
        "activations/",
        "look at epsilon (Keras 1e-3, torch 1e-5), and whether evaluation mode is on: it normalises with the moving "
        "statistics",
        ("BatchNormalization", "LayerNormalization", "GroupNormalization"),
    ),
    Hint(
        "activations/|training/",
        "look at padding: with strides Keras' `same` pads more at the end than at the beginning, torch's padding=1 "
        "evenly; then at strides, and at the activation function of the layer before",
        STRIDED,
    ),
    Hint(
        "share of inputs that it leaves out",
        "Keras' rate and torch's p are both the share that is left out, not the share that is kept",
    ),
    Hint("drawn by itself", "nn.Dropout leaves out single numbers; nn.Dropout2d whole channels, as SpatialDropout2D"),
    Hint("what it makes of a one that stays", "what stays is divided by 1 - rate, in training alone"),
    Hint(
        "parameters that are trained",
        "torch's LSTM has two biases where Keras has one: freeze one of them at zero",
        ("LSTM",),
    ),
    Hint(
        "activations/|training/",
        "look at the order of the gates (Keras' GRU has z, r, h and torch's r, z, n), at which bias holds Keras', and "
        "at which output is taken: the last of the sequence",
        RECURRENT,
    ),
    Hint(
        "loss",
        "look at regularisation (Keras adds l2 * sum(w^2) of the kernels named, without a half, to the loss), at the "
        "reduction, at shapes (targets [N] against predictions [N, 1] make a matrix of all pairs), and at what the "
        "loss itself is given: delta, label smoothing, logits, sample weights",
        rungs=(6,),
    ),
    Hint(
        "/weights/|/momentum/",
        "look at Nesterov momentum, at the learning rate of this step (a schedule of Keras goes by steps, not epochs), "
        "and at weight decay in place of L2 in the loss",
        ("SGD",),
        (8,),
    ),
    Hint(
        "/weights/",
        "look at epsilon: Keras adds 1e-7 within the root, torch 1e-8 outside of it; then at rho (alpha "
        "in torch: 0.99)",
        ("RMSprop",),
        (8,),
    ),
    Hint(
        "/velocity/|/adam_v/|/accumulator/",
        "Keras on TensorFlow squares the gradient of each occurrence of a token by itself, as KerasEmbedding does; if "
        "the port does, too, look at rho (Keras 0.9, torch's alpha 0.99) or at the betas",
        ("Embedding",),
        (8,),
    ),
)


def hint(verdict: Verdict, model: Mapping[str, Any] | None = None) -> str:
    """Return where to look, for what a rung names as the first divergence.

    Args:
        verdict: of a rung that does not hold.
        model: description of the Keras model, where it is another than the documented one.
    """
    what = verdict.shown.what
    if "(not there)" in what:
        return MISSING
    if model is not None:
        kinds = kinds_of(what, model)
        fitting = (
            one.text
            for one in HINTS
            if re.search(one.what, what)
            and verdict.rung.number in one.rungs
            and (not one.kinds or kinds & set(one.kinds))
        )
        text = next(fitting, verdict.rung.hint)
        if verdict.rung.name == "loss" and (added := regularisers(model)):
            text += f"; Keras adds {', '.join(added)}"
        if verdict.rung.trainings and (unseen := between(verdict, model)):
            text += f"; between it and what agrees Keras has {', '.join(unseen)}"
        return text
    return verdict.rung.hint


def kinds_of(what: str, model: Mapping[str, Any]) -> set[str]:
    """Return the class of the layer that is named, as far as one is, and that of the optimizer."""
    named = layer_of(what, model)
    return {model["optimizer"], *([named["class"]] if named else [])}


def layer_of(what: str, model: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the layer that is named."""
    named = [layer for layer in model["layers"] if re.search(rf"(^|[/ ]){re.escape(layer['name'])}($|[/\[ :])", what)]
    return max(named, key=lambda layer: len(layer["name"]), default=None)


def regularisers(model: Mapping[str, Any]) -> list[str]:
    """Return what the layers add to the loss, as in "L1 l1=0.001 of hidden's kernel"."""
    added = []
    for layer in model["layers"]:
        for name, one in layer["config"].items():
            if name.endswith("_regularizer") and isinstance(one, Mapping):
                settings = " ".join(f"{key}={value:g}" for key, value in one.items() if isinstance(value, float))
                added.append(f"{one['class']} {settings} of {layer['name']}'s {name.removesuffix('_regularizer')}")
    return added


def between(verdict: Verdict, model: Mapping[str, Any]) -> list[str]:
    """Return the layers, with what is set of them, between one whose output differs and those before it that agree.

    A port has no modules for them: a concatenation, an activation, a pooling.
    """
    if not re.search("activations/|training/", verdict.shown.what):
        return []
    differs = layer_of(verdict.shown.what, model)
    agreeing = [layer_of(one.what, model) for one in verdict.comparisons if one.holds]
    compared = {layer["name"] for layer in agreeing if layer}
    layers = {layer["name"]: layer for layer in model["layers"]}
    unseen: dict[str, str] = {}
    waiting = list(differs["inputs"]) if differs else []
    while waiting:
        layer = layers.get(waiting.pop(0))
        if layer is None or layer["name"] in compared or layer["name"] in unseen:
            continue
        settings = {name: layer["config"].get(name) for name in SETTINGS if layer["config"].get(name) is not None}
        shown = [layer["class"], *(f"{name}={value}" for name, value in settings.items())]
        of = f" of {', '.join(layer['inputs'])}" if len(layer["inputs"]) > 1 else ""
        unseen[layer["name"]] = f"{layer['name']} ({' '.join(shown)}{of})"
        waiting += layer["inputs"]
    return list(unseen.values())
