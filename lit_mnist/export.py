"""python -m lit_mnist.export: hand a trained model to somebody, for their runtime or as a page to draw on."""

import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_mnist.errors import InputError
from lit_mnist.runs.command import check_installed, run
from lit_mnist.runs.directory import find_checkpoint
from lit_mnist.runs.files import check_output, write_file

if TYPE_CHECKING:
    import torch

    from lit_mnist.load import Trained

KERAS_SECONDS = 300  # for a process that imports TensorFlow on a busy machine
NEEDS = {  # the extra and its packages
    "onnx": ("export", "onnx", "onnxscript"),
    "safetensors": ("export", "safetensors"),
    "keras": ("keras", "keras", "tensorflow"),
}


def export(
    format: Literal["onnx", "safetensors", "torch_export", "keras", "html"],  # noqa: A002  # what the flag is called
    output: str,
    ckpt_path: str | None = None,
    images: Literal["float32", "uint8"] = "float32",
) -> None:
    """Write a trained model into one file that others can use without this package.

    onnx: a graph from images [N, 1, 28, 28] to probabilities [N, 10], any N. torch_export: the same for
    torch.export.load. safetensors: the six weights under Keras' names, in its layout. keras: a .keras file, written by
    Keras itself. html: a page to draw on, with the model in it; it needs no server and no network.

    Args:
        format: What to write.
        output: File to write.
        ckpt_path: A checkpoint, a run directory (its newest checkpoint) or a file of Keras; null takes the newest run
            below runs.
        images: Pixels that onnx and torch_export take, numbers in [0, 1] (float32) or bytes (uint8).

    Raises:
        InputError: a wrong value or file, or a package that the format needs is missing; nothing was written.
    """
    if images == "uint8" and format not in ("onnx", "torch_export"):
        raise InputError(f"--images uint8: {format} has no images of its own; leave it out")
    for runtime, ending in (("keras", ".keras"), ("torch_export", ".pt2")):
        if format == runtime and not output.endswith(ending):
            raise InputError(f"--output {output}: {runtime} wants a name that ends with {ending}")
    if format in NEEDS:
        check_installed(f"--format {format}", *NEEDS[format])
    path = find_checkpoint(ckpt_path)
    check_output(Path(output))

    from lit_mnist.load import load_trained

    trained = load_trained(path)
    trained.module.float()  # of other precisions there is no runtime to be sure of
    write: Mapping[str, Callable[[], bytes]] = {
        "onnx": lambda: to_onnx(trained, images),
        "torch_export": lambda: to_torch_export(trained, images),
        "safetensors": lambda: to_safetensors(trained),
        "keras": lambda: to_keras_file(trained),
        "html": lambda: to_page(trained),
    }
    content = write[format]()
    write_file(Path(output), content)
    print(f"{output}: {len(content):,} bytes, from {path}")


def to_onnx(trained: "Trained", images: str) -> bytes:
    """Return an ONNX model in one piece: `images` [batch, 1, 28, 28] to `probabilities` [batch, 10]."""
    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter says of its own internals
        program = torch.onnx.export(
            _probabilities(trained, images),
            (_example(images),),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in description(trained).items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def to_torch_export(trained: "Trained", images: str) -> bytes:
    """Return a program for `torch.export.load`: images [batch, 1, 28, 28] to probabilities [batch, 10]."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch's exporter says of its own internals
        program = torch.export.export(
            _probabilities(trained, images),
            (_example(images),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={"description.json": json.dumps(description(trained))})
    return content.getvalue()


def to_safetensors(trained: "Trained") -> bytes:
    """Return the weights in Keras' layout, keyed as in `lit_mnist.layout.WEIGHTS`, with where they come from."""
    from safetensors.numpy import save

    from lit_mnist.weights import to_keras

    layout = {"layout": "kernels of Keras: (H, W, in, out) and (in, out), flattened in the order H, W, C"}
    return save(to_keras(trained.module.model.state_dict()), metadata=description(trained) | layout)


def to_keras_file(trained: "Trained") -> bytes:
    """Return a .keras file, compiled, as Keras itself writes it: in a process of its own, since this one has torch.

    Raises:
        InputError: if Keras is not installed.
    """
    import numpy as np

    from lit_mnist.weights import to_keras

    with tempfile.TemporaryDirectory(prefix="lit_mnist-") as directory:
        weights, written = Path(directory, "weights.npz"), Path(directory, "model.keras")
        np.savez(weights, **to_keras(trained.module.model.state_dict()))  # type: ignore[arg-type]  # as in trace/files
        # Not -m, which would look for modules in the working directory first.
        start = "import sys; sys.path = sys.argv[3:]; from keras_ref.save import main; sys.exit(main(*sys.argv[1:3]))"
        finished = subprocess.run(
            [sys.executable, "-c", start, str(weights), str(written), *sys.path],
            capture_output=True,
            text=True,
            timeout=KERAS_SECONDS,
            check=False,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
        )
        if finished.returncode == 2:
            raise InputError(f"--format keras: {finished.stderr.strip()}")
        if finished.returncode:
            raise RuntimeError(f"Keras could not write the file:\n{finished.stderr}")
        return written.read_bytes()


def to_page(trained: "Trained") -> bytes:
    """Return a page that draws, preprocesses and predicts in plain JavaScript, with everything in it."""
    from lit_mnist.page import render

    return render(trained).encode()


def description(trained: "Trained") -> dict[str, str]:
    """Say in a file what it is and where it comes from."""
    from lit_mnist import __version__

    return {
        "model": "The documented Keras MNIST classifier: conv, pool, flatten, hidden, output",
        "run": trained.run,
        "checkpoint": trained.path.name,
        "written_by": f"lit_mnist {__version__}",
    }


def _probabilities(trained: "Trained", images: str) -> "torch.nn.Module":
    """Return what the graphs hold: the plain layers between pixels and probabilities."""
    import torch

    class Probabilities(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = trained.module.model.to(memory_format=torch.contiguous_format)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pixels = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images
            return self.model(pixels).softmax(dim=1)

    return Probabilities().eval().requires_grad_(False)


def _example(images: str) -> "torch.Tensor":
    import torch

    return torch.zeros(2, 1, 28, 28, dtype=getattr(torch, images))  # of one, torch would make a constant


if __name__ == "__main__":
    run(export, prog="python -m lit_mnist.export")
