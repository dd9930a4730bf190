"""Weights of the Keras original, out of the files that Keras writes. Neither framework is imported, nothing is run.

What Keras 3 writes (keras/src/saving/saving_lib.py, read in 3.15.1):

- `model.save("x.keras")`: a zip file of config.json, metadata.json and model.weights.h5, uncompressed.
- `model.save_weights("x.weights.h5")`: that HDF5 file alone. A layer's variables are `layers/<class>/vars/0` (kernel)
  and `1` (bias), where <class> is conv2d, dense, dense_1, ...: the class, counted. Its own name (conv, hidden, output)
  is no more than an attribute of `vars`. What belongs to the optimizer is beside `layers`, in `optimizer`.
- `model.save("x.h5")`, the older format: `model_weights/<layer>/<model>/<layer>/kernel` and `bias`, under the layers'
  own names, and the config as an attribute.

So names depend on the format, the release and the user. Shapes do not: no two weights of the documented model have the
same one, so here each array is found by its shape, and the rest of what is called layers may hold no other.
"""

import io
import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lit_mnist.errors import InputError
from lit_mnist.layout import WEIGHTS

# Bytes of a file and of what it unpacks to: the model in float64 with both moments of Adam takes 3.7 million.
MAX_BYTES = 2**24
# Links of an HDF5 file that are followed; the older format, which has the most, takes 19.
MAX_LINKS = 100
# Of the process that reads. It needs a third of a second and 130 million bytes of address space.
MAX_SECONDS = 60
MAX_MEMORY = 2**30
REFUSED = 2  # its exit code for a file that it could read well enough to say what is wrong

ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"  # how such files begin
MEMBERS = ["config.json", "metadata.json", "model.weights.h5"]
GROUPS = {"conv2d", "max_pooling2d", "flatten", "dense", "dense_1"}

# Of each layer the settings that decide what it computes, as config.json has them; weights show the others.
CHANNELS_LAST = {"data_format": "channels_last"}
LAYERS: list[tuple[str, dict[str, Any]]] = [
    (
        "Conv2D",
        {"strides": [1, 1], "padding": "same", "dilation_rate": [1, 1], "activation": "relu"} | CHANNELS_LAST,
    ),
    ("MaxPooling2D", {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"} | CHANNELS_LAST),
    ("Flatten", CHANNELS_LAST),
    ("Dense", {"activation": "relu"}),
    ("Dense", {"activation": "softmax"}),
]


def read_keras_file(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of the documented model from a .keras, .weights.h5 or .h5 file, as Keras 3 writes them.

    The file is told by what is in it, not by its name. It may hold the state of an optimizer, which is left alone. The
    config of a .keras or .h5 file is compared with the documented layers and never executed: a Lambda, a class from
    elsewhere or another activation is refused, even where the weights would fit. A .weights.h5 file has no config, so
    activations, padding and strides are taken on trust.

    Args:
        path: a regular file of at most `MAX_BYTES`. It is only read; nothing is unpacked to disk.

    Returns:
        Arrays in Keras' layout, float32 or float64 as in the file, finite, with the keys and shapes of `WEIGHTS`.

    Raises:
        InputError: if the file is missing, torn, too large, or holds anything else than that.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError("is not a file" if path.exists() else "no such file")
        with path.open("rb") as stream:
            return _read_apart(_at_most(stream.read(MAX_BYTES + 1)))
    except (OSError, ValueError) as error:
        found = "".join(character if character.isprintable() else " " for character in str(error))
        expected = "expected the documented model in a .keras, .weights.h5 or .h5 file, as Keras 3 saves it"
        raise InputError(f"{path}: {found[:300]}; {expected}") from error


def _read_apart(data: bytes) -> dict[str, np.ndarray]:
    """Read in a process of its own: over one changed byte, HDF5 1.14.6 may crash, or take all the memory there is."""
    # Not -m, which would look for modules in the working directory first.
    start = "import sys; sys.path = sys.argv[1:]; from lit_mnist.keras_files import _main; sys.exit(_main())"
    try:
        finished = subprocess.run(
            [sys.executable, "-c", start, *sys.path],
            input=data,
            capture_output=True,
            timeout=MAX_SECONDS,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # threads of BLAS would take from the memory that is granted
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"takes more than {MAX_SECONDS} seconds to read") from error
    if finished.returncode == REFUSED:
        raise ValueError(finished.stdout.decode(errors="replace"))
    if finished.returncode == 1:  # it did not get so far as to read
        raise RuntimeError(finished.stderr.decode(errors="replace"))
    if finished.returncode != 0:
        raise ValueError(f"HDF5 breaks down over it (exit code {finished.returncode})")
    with np.load(io.BytesIO(finished.stdout), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in WEIGHTS}


def _main() -> int:
    """Turn the file at standard input into an .npz file at standard output, or into the reason why not."""
    if sys.platform == "linux":  # elsewhere there is no such limit, or it is not kept
        import resource

        _, allowed = resource.getrlimit(resource.RLIMIT_AS)
        memory = MAX_MEMORY if allowed == resource.RLIM_INFINITY else min(MAX_MEMORY, allowed)
        resource.setrlimit(resource.RLIMIT_AS, (memory, allowed))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    buffer = io.BytesIO()
    try:
        np.savez(buffer, **_read(sys.stdin.buffer.read()))  # type: ignore[arg-type]  # as in trace/files.py
    except Exception as error:  # whatever zipfile, json and h5py come upon in a forged file, the file is what is wrong
        buffer, code = io.BytesIO((str(error) or repr(error)).encode(errors="replace")), REFUSED
    else:
        code = 0
    sys.stdout.buffer.write(buffer.getvalue())
    return code


def _read(data: bytes) -> dict[str, np.ndarray]:
    config = None
    if data.startswith(ZIP):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sorted(archive.namelist()) != MEMBERS:
                raise ValueError(f"holds {archive.namelist()[:9]}, not {MEMBERS}")
            config, _, data = [_unpack(archive, archive.getinfo(name)) for name in MEMBERS]
    if not data.startswith(HDF5):
        raise ValueError("neither a zip nor an HDF5 file")
    with h5py.File(io.BytesIO(data), "r") as file:
        if file.get("model_weights", getlink=True):  # `in` would follow it
            config, root = file.attrs["model_config"], "model_weights"
        else:
            root = "layers"
        datasets = _find_datasets(file, root)
        if root == "layers" and not file[root].keys() <= GROUPS:
            raise ValueError(f"has layers {sorted(file[root])[:9]}, not {sorted(GROUPS)}")
        if config is not None:
            _check_config(json.loads(config))
        return _read_datasets(datasets)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    # The other methods may ask for any amount of memory before the first byte is out.
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError(f"{member.filename} is packed by method {member.compress_type}, not stored or deflated")
    with archive.open(member) as stream:
        return _at_most(stream.read(MAX_BYTES + 1))


def _at_most(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes, which the model does not need")
    return data


def _find_datasets(file: h5py.File, root: str) -> list[h5py.Dataset]:
    """Return all below `root`, through hard links alone: the others lead to other files, or to nowhere."""
    paths = [root]
    datasets: list[h5py.Dataset] = []
    for _ in range(MAX_LINKS):
        if not paths:
            return datasets
        path = paths.pop()
        link = file.get(path, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path} is {'a link to elsewhere' if link else 'missing'}")
        item = file[path]
        if isinstance(item, h5py.Dataset):
            datasets.append(item)
        else:
            paths += [f"{path}/{name}" for name in item]
    raise ValueError(f"{root} has more in it than {MAX_LINKS} links")


def _check_config(config: Any) -> None:
    layers = [layer for layer in config["config"]["layers"] if layer["class_name"] != "InputLayer"]
    ours = [("keras.layers", name) for name, _ in LAYERS]
    theirs = [(layer.get("module", "keras.layers"), layer["class_name"]) for layer in layers]
    if config["class_name"] != "Sequential" or theirs != ours:
        raise ValueError(f"its config is a {config['class_name']} of {theirs}, not a Sequential of {ours}")
    for layer, (name, settings) in zip(layers, LAYERS, strict=True):
        for key, expected in settings.items():
            if layer["config"][key] != expected:
                raise ValueError(f"its config has a {name} with {key} {layer['config'][key]}, not {expected}")


def _read_datasets(datasets: list[h5py.Dataset]) -> dict[str, np.ndarray]:
    keys = {shape: key for key, shape in WEIGHTS.items()}
    arrays: dict[str, np.ndarray] = {}
    for dataset in datasets:
        key = keys.pop(dataset.shape, None)
        if key is None:
            raise ValueError(f"{dataset.name} is {dataset.shape}, expected one each of {list(WEIGHTS.values())}")
        file_type = dataset.id.get_type()  # exactly these: h5py would convert from others, custom floats among them
        if file_type not in (h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F64LE):
            raise ValueError(f"{dataset.name} ({key}) is {dataset.dtype}, expected float32 or float64")
        # Chunks, compression, plugins, other files, values that are declared and not there: Keras uses none of them.
        layout = dataset.id.get_create_plist()
        size = math.prod(dataset.shape) * file_type.get_size()
        plain = layout.get_layout() == h5py.h5d.CONTIGUOUS and layout.get_external_count() == 0
        if not plain or dataset.id.get_storage_size() != size:
            raise ValueError(f"{dataset.name} ({key}) is not stored in one piece")
        arrays[key] = dataset[()]
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{dataset.name} ({key}) has values that are not finite")
    if keys:
        raise ValueError(f"{', '.join(keys.values())} missing")
    if len({array.dtype for array in arrays.values()}) > 1:
        raise ValueError("its weights are float32 and float64")
    return {key: arrays[key] for key in WEIGHTS}
