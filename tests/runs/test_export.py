"""Each format is loaded back by the runtime that its users would use, and compared on the 10,000 test images."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from trained import page_weights, trained_model, write_checkpoint

from lit_mnist import export
from lit_mnist.errors import InputError
from lit_mnist.layout import WEIGHTS
from lit_mnist.mnist_files import read_files

# Of probabilities. Both sides round to float32, in another order: largest differences measured on the
# 10,000 test images: ONNX 1.3e-6, torch.export 7.2e-7, Keras 1.5e-6. Flattening in the other order gives about 1.
LARGEST_DIFFERENCE = 5e-6


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A directory with a checkpoint and what it was exported to."""
    directory = tmp_path_factory.mktemp("exported")
    write_checkpoint(directory / "runs" / "named" / "checkpoints" / "step=00001.ckpt")
    finished = command("-m", "lit_mnist.export", "--format", "onnx", "--output", "model.onnx", cwd=directory)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert re.fullmatch(r"model.onnx: [\d,]+ bytes, from runs/named/checkpoints/step=00001.ckpt\n", finished.stdout)
    for name, ending in (("safetensors", "safetensors"), ("torch_export", "pt2")):
        export.export(name, str(directory / f"model.{ending}"), str(directory / "runs" / "named"))
    return directory


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return read_files("data").test.tensors[0]


@pytest.fixture(scope="module")
def ours(images: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return trained_model()(images).numpy()


def check(theirs: np.ndarray, ours: np.ndarray) -> None:
    assert theirs.shape == ours.shape == (10_000, 10)
    assert np.abs(theirs - ours).max() <= LARGEST_DIFFERENCE
    assert (theirs.argmax(axis=1) == ours.argmax(axis=1)).all()


def test_onnxruntime_gives_the_same_probabilities(exported: Path, images: torch.Tensor, ours: np.ndarray) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported / "model.onnx")
    assert [(x.name, x.type, x.shape) for x in session.get_inputs()] == [
        ("images", "tensor(float)", ["batch", 1, 28, 28])
    ]
    assert [(x.name, x.shape) for x in session.get_outputs()] == [("probabilities", ["batch", 10])]
    assert session.get_modelmeta().custom_metadata_map["run"] == "named"
    pixels = images.numpy().astype(np.float32) / 255
    check(np.concatenate([session.run(None, {"images": part})[0] for part in np.split(pixels, [1, 4000])]), ours)


def test_the_graph_holds_the_plain_layers(exported: Path) -> None:
    import onnx

    model = onnx.load(exported / "model.onnx")
    layers = [node.op_type for node in model.graph.node]
    assert [name for name in layers if name not in ("Reshape", "Flatten", "Concat", "Shape", "Transpose")] == [
        "Conv", "Relu", "MaxPool", "Gemm", "Relu", "Gemm", "Softmax",
    ]  # fmt: skip
    assert sorted(path.name for path in exported.glob("*.onnx*")) == ["model.onnx"]  # no data beside it


@pytest.mark.slow
def test_an_onnx_graph_of_bytes_takes_bytes(
    tmp_path: Path, exported: Path, images: torch.Tensor, ours: np.ndarray, command: Command
) -> None:
    import onnxruntime

    flags = ["--format", "onnx", "--images", "uint8", "--output", tmp_path / "bytes.onnx", "--ckpt_path", "runs/named"]
    finished = command("-m", "lit_mnist.export", *flags, cwd=exported)
    assert finished.returncode == 0, finished.stderr
    session = onnxruntime.InferenceSession(tmp_path / "bytes.onnx")
    check(session.run(["probabilities"], {"images": images.numpy()})[0], ours)


def test_safetensors_holds_the_weights_in_the_documented_layout(exported: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file
    from trained import PAGE

    arrays = load_file(exported / "model.safetensors")
    assert {key: array.shape for key, array in arrays.items()} == WEIGHTS
    for key, array in page_weights(PAGE.read_text()).items():
        np.testing.assert_array_equal(arrays[key], array)
    with safe_open(exported / "model.safetensors", "numpy") as file:
        assert file.metadata()["run"] == "named"
        assert "H, W" in file.metadata()["layout"]


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch 2.10, of its own reading
def test_torch_export_gives_the_same_probabilities(exported: Path, images: torch.Tensor, ours: np.ndarray) -> None:
    extra = {"description.json": ""}
    program = torch.export.load(exported / "model.pt2", extra_files=extra)
    assert json.loads(extra["description.json"])["run"] == "named"
    module = program.module()
    pixels = images.float() / 255
    with torch.inference_mode():
        check(torch.cat([module(part) for part in pixels.split([1, 3999, 6000])]).numpy(), ours)


LOADS = """
import sys
import keras, numpy as np
model = keras.saving.load_model("model.keras")
assert model.optimizer.name == "adam" and model.loss == "categorical_crossentropy"
np.save("theirs.npy", model.predict(np.load("images.npy")[..., None] / np.float32(255), verbose=0))
assert not [name for name in sys.modules if name.startswith(("lit_mnist", "keras_ref", "torch"))]
"""


@pytest.mark.slow
def test_plain_keras_gives_the_same_probabilities(
    exported: Path, images: torch.Tensor, ours: np.ndarray, command: Command
) -> None:
    finished = command("-m", "lit_mnist.export", "--format", "keras", "--output", "model.keras", cwd=exported)
    assert finished.returncode == 0, finished.stderr
    np.save(exported / "images.npy", images[:, 0].numpy())
    loaded = subprocess.run(
        [sys.executable, "-I", "-c", LOADS], cwd=exported, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
    assert "optimizer" not in loaded.stderr  # Keras warns of one without its variables
    check(np.load(exported / "theirs.npy"), ours)


def test_a_failed_export_leaves_what_was_there(exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export.export("safetensors", str(tmp_path / "model.safetensors"), str(exported / "runs" / "named"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_link_goes_on_to_lead_to_the_file(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/model.safetensors")
    export.export("safetensors", str(tmp_path / "link"), str(exported / "runs" / "named"))
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "required: format, output"),
        (["--format", "onnx"], "required: output"),
        (
            ["--format", "pmml", "--output", "x"],
            "--format pmml: expected onnx, safetensors, torch_export, keras or html",
        ),
        (["--format", "keras", "--output", "x.h5"], "--output x.h5: keras wants a name that ends with .keras"),
        (
            ["--format", "torch_export", "--output", "x.pt"],
            "--output x.pt: torch_export wants a name that ends with .pt2",
        ),
        (["--format", "html", "--output", "no/x.html"], "there is no such directory"),
        (["--format", "html", "--output", "runs"], "a directory; name a file"),
        (["--format", "html", "--output", "fifo"], "fifo: a device or the like; name a file"),
        (["--format", "html", "--output", "x" * 252], "File name too long; name another file"),
        (["--format", "html", "--output", "x", "--ckpt_path", "fifo"], "fifo: a device or the like; give a checkpoint"),
        (["--format", "html", "--output", "x", "--images", "uint8"], "--images uint8: html has no images"),
        (["--format", "onnx", "--output", "x", "--ckpt_path", "none"], "none: no such file"),
    ],
)
def test_a_mistake_gets_one_line_and_writes_nothing(
    flags: list[str], says: str, exported: Path, command: Command
) -> None:
    if not (exported / "fifo").exists():
        os.mkfifo(exported / "fifo")
    before = sorted(exported.iterdir())
    finished = command("-m", "lit_mnist.export", *flags, cwd=exported)
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert says in line
    assert sorted(exported.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("onnx", "onnxscript", "export"), ("safetensors", "safetensors", "export"), ("keras", "tensorflow", "keras")],
)
def test_a_package_that_is_missing_is_named_in_one_line_before_anything_is_loaded(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    says = rf'--format {name}: {package} is not installed; pip install -e "\.\[{extra}\]"'
    with pytest.raises(InputError, match=says):
        export.export(name, f"x.{name}", "no file")  # type: ignore[arg-type]
