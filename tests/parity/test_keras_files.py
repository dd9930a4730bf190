"""Files that Keras itself wrote, and files that were forged from them."""

import hashlib
import io
import json
import os
import random
import shutil
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Command, write_small_data_set

from lit_mnist import MNISTClassifier, read_keras_file
from lit_mnist import keras_files as reader
from lit_mnist.errors import InputError
from lit_mnist.layout import WEIGHTS
from lit_mnist.weights import from_keras

# Run by a process of its own: each file with its weights and its probabilities, as Keras has them, beside it.
WRITE = """
import sys
from pathlib import Path
import numpy as np
from keras_ref.data import load_data, scale_pixels
from keras_ref.train import train

directory, data_dir = Path(sys.argv[1]), sys.argv[2]
train(max_epochs=1, data_dir=data_dir, verify_data=False, output_dir=str(directory), run_name="run")

import keras
from keras import layers
from keras_ref.model import build_model

mnist = load_data(data_dir, False)
labels = keras.utils.to_categorical(mnist.test_labels[:200], 10)

def save(model, *names, dtype="float32"):
    images = scale_pixels(mnist.test_images[:200], dtype)
    weighty = [layer for layer in model.layers if layer.weights]
    arrays = {"images": images, "probabilities": model.predict(images, verbose=0)}
    for layer, ours in zip(weighty, ("conv", "hidden", "output")):
        for kind, array in zip(("kernel", "bias"), layer.get_weights()):
            arrays[f"{ours}/{kind}"] = array
    for name in names:
        path = directory / name
        model.save_weights(path) if name.endswith(".weights.h5") else model.save(path)
        np.savez(f"{path}.npz", **arrays)

def stack(activation="relu", *more):
    return keras.Sequential([
        keras.Input((28, 28, 1)), layers.Conv2D(6, 3, padding="same", activation=activation),
        layers.MaxPooling2D(), *more, layers.Flatten(), layers.Dense(128, activation="relu"),
        layers.Dense(10, activation="softmax"),
    ])

save(keras.models.load_model(directory / "run/checkpoints/epoch=01.keras"), "unused.keras")
Path(directory / "unused.keras.npz").rename(directory / "run/checkpoints/epoch=01.keras.npz")
model = build_model()
save(model, "before_fit.keras", "before_fit.weights.h5", "before_fit.h5")
model.fit(scale_pixels(mnist.test_images[:200]), labels, verbose=0)
save(model, "fit.keras", "fit.weights.h5", "fit.h5")
save(keras.models.clone_model(model), "uncompiled.keras", "uncompiled.weights.h5", "uncompiled.h5")
save(stack(), "unnamed.keras", "unnamed.weights.h5", "unnamed.h5")
stack("tanh").save(directory / "tanh.keras")
stack("tanh").save(directory / "tanh.h5")
stack("relu", layers.Lambda(lambda maps: 2 * maps)).save(directory / "lambda.keras")
stack("relu", layers.Lambda(lambda maps: 2 * maps)).save_weights(directory / "lambda.weights.h5")
stack("relu", layers.Dropout(0.5)).save_weights(directory / "dropout.weights.h5")
for dtype in ("float16", "bfloat16", "float64"):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    save(build_model(), f"{dtype}.keras", f"{dtype}.weights.h5", f"{dtype}.h5", dtype=dtype.replace("bf", "f"))
"""

KINDS = [".keras", ".weights.h5", ".h5"]
GOOD = [f"{state}{kind}" for state in ("before_fit", "fit", "uncompiled", "unnamed", "float64") for kind in KINDS]
GOOD.append("run/checkpoints/epoch=01.keras")


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    """A directory of files that Keras wrote. Tests only read them."""
    directory = tmp_path_factory.mktemp("keras_files")
    write_small_data_set(directory / "data", training_images=600)
    finished = command("-c", WRITE, directory, directory / "data")
    assert finished.returncode == 0, finished.stderr
    return directory


def refusal(path: Path) -> str:
    """Return the line with which a file is refused."""
    with pytest.raises(InputError) as caught:
        read_keras_file(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert line.endswith("expected the documented model in a .keras, .weights.h5 or .h5 file, as Keras 3 saves it")
    assert line.isprintable()
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", GOOD)
def test_weights_are_those_of_keras_bit_by_bit_and_the_port_gives_its_probabilities(
    keras_files: Path, name: str
) -> None:
    arrays = read_keras_file(keras_files / name)
    with np.load(keras_files / f"{name}.npz") as theirs:
        assert list(arrays) == list(WEIGHTS)
        for key, array in arrays.items():
            assert array.dtype == ("float64" if "float64" in name else "float32")
            assert array.dtype == theirs[key].dtype
            np.testing.assert_array_equal(array, theirs[key])
        images, probabilities = theirs["images"], theirs["probabilities"]
    dtype = torch.float64 if "float64" in name else torch.float32
    model = MNISTClassifier().to(dtype)
    model.load_state_dict(from_keras(arrays))
    ours = model(torch.from_numpy(images).movedim(-1, 1)).softmax(1).detach().numpy()
    assert probabilities.std() > 0.001  # they differ by far more than the tolerance
    np.testing.assert_allclose(ours, probabilities, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_left_as_it_was_and_nothing_is_put_anywhere(keras_files: Path, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"fit{kind}"
    shutil.copyfile(keras_files / path.name, path)
    path.chmod(0o400)
    before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns
    read_keras_file(path)
    assert (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_no_framework_is_imported_and_no_module_of_the_working_directory(
    keras_files: Path, kind: str, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "h5py.py").write_text("raise SystemExit(77)")
    read = f"""
import sys
sys.path = {sys.path}
from pathlib import Path
from lit_mnist import keras_files
keras_files.read_keras_file({str(keras_files / f"fit{kind}")!r})  # in a process of its own
keras_files._read(Path({str(keras_files / f"fit{kind}")!r}).read_bytes())  # what that process does
assert not {{"torch", "lightning", "keras", "tensorflow"}} & set(sys.modules)
"""
    finished = command("-c", read, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("tanh.keras", "its config has a Conv2D with activation tanh, not relu"),
        ("tanh.h5", "its config has a Conv2D with activation tanh, not relu"),
        ("lambda.keras", "has layers ['conv2d', 'dense', 'dense_1', 'flatten', 'lambda', 'max_pooling2d'], not"),
        ("lambda.weights.h5", "has layers ['conv2d', 'dense', 'dense_1', 'flatten', 'lambda', 'max_pooling2d'], not"),
        ("dropout.weights.h5", "has layers ['conv2d', 'dense', 'dense_1', 'dropout', 'flatten', 'max_pooling2d'], not"),
        ("float16.keras", "(output/bias) is float16, expected float32 or float64"),
        ("float16.h5", "is float16, expected float32 or float64"),
        ("bfloat16.weights.h5", "(output/bias) is |V2, expected float32 or float64"),
        ("run/metrics.csv", "neither a zip nor an HDF5 file"),
        ("run", "is not a file"),
        ("nowhere.keras", "no such file"),
    ],
)
def test_what_keras_saves_of_another_model_is_refused(keras_files: Path, name: str, found: str) -> None:
    assert found in refusal(keras_files / name)


def replace(file: h5py.File, path: str, **how: object) -> None:
    del file[path]
    file.create_dataset(path, **how)


def elsewhere(file: h5py.File) -> Path:
    """A file of good weights beside the forged one, whose path that has in an attribute."""
    return Path(file.attrs["beside"])


def external_storage(file: h5py.File) -> None:
    replace(file, KERNEL, shape=(128, 10), dtype="f4", external=[(elsewhere(file), 0, 5120)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((128, 10), "f4")
    layout[:] = h5py.VirtualSource(elsewhere(file), KERNEL, (128, 10))
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


def swap(file: h5py.File, path: str, link: object) -> None:
    del file[path]
    file[path] = link


def loop(file: h5py.File) -> None:
    file["layers/dense/vars/loop"] = file["layers"]


KERNEL, BIAS = "layers/dense_1/vars/0", "layers/dense_1/vars/1"
ONES = np.ones((128, 10), "f4")
ODD_FLOAT = h5py.h5t.IEEE_F32LE.copy()
ODD_FLOAT.set_ebias(126)

FORGED: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "no bias": (lambda file: file.pop(BIAS), "output/bias missing"),
    "no layer": (lambda file: file.pop("layers/conv2d"), "conv/kernel, conv/bias missing"),
    "no layers": (lambda file: file.pop("layers"), "layers is missing"),
    "wider": (lambda file: replace(file, KERNEL, data=np.ones((128, 11), "f4")), f"/{KERNEL} is (128, 11), expected"),
    "transposed": (lambda file: replace(file, KERNEL, data=ONES.T), f"/{KERNEL} is (10, 128), expected"),
    "a scalar": (lambda file: replace(file, KERNEL, data=1.0), f"/{KERNEL} is (), expected"),
    "empty": (lambda file: replace(file, KERNEL, data=h5py.Empty("f4")), f"/{KERNEL} is None, expected"),
    "twice": (lambda file: file.create_dataset("layers/dense_1/vars/2", data=ONES), "is (128, 10), expected one each"),
    "one more": (lambda file: file.create_dataset("layers/dense/vars/2", data=1), "is (), expected one each"),
    "one more layer": (lambda file: file.create_group("layers/rescaling"), "'rescaling'], not"),
    "integers": (lambda file: replace(file, KERNEL, data=ONES.astype(int)), "(output/kernel) is int64, expected float"),
    "big-endian": (lambda file: replace(file, KERNEL, data=ONES.astype(">f4")), "(output/kernel) is >f4, expected"),
    "complex": (lambda file: replace(file, KERNEL, data=ONES.astype("c8")), "(output/kernel) is complex64, expected"),
    "texts": (lambda file: replace(file, KERNEL, shape=(128, 10), dtype=h5py.string_dtype()), "is object, expected"),
    "lists": (lambda file: replace(file, KERNEL, shape=(128, 10), dtype=h5py.vlen_dtype("f4")), "is object, expected"),
    "references": (lambda file: replace(file, KERNEL, shape=(128, 10), dtype=h5py.ref_dtype), "is object, expected"),
    "an odd float": (
        lambda file: (
            file.pop(KERNEL),
            h5py.h5d.create(file.id, KERNEL.encode(), ODD_FLOAT, file[BIAS].id.get_space()),
        ),
        "expected",
    ),
    "mixed": (lambda file: replace(file, KERNEL, data=ONES.astype("f8")), "its weights are float32 and float64"),
    "nan": (lambda file: replace(file, KERNEL, data=ONES * np.nan), "(output/kernel) has values that are not finite"),
    "inf": (lambda file: replace(file, BIAS, data=-np.inf * ONES[0]), "(output/bias) has values that are not finite"),
    "chunks": (lambda file: replace(file, KERNEL, data=ONES, chunks=(8, 10)), "is not stored in one piece"),
    "gzip": (lambda file: replace(file, KERNEL, data=ONES, compression="gzip"), "is not stored in one piece"),
    "not there": (lambda file: replace(file, KERNEL, shape=(128, 10), dtype="f4"), "is not stored in one piece"),
    "huge": (lambda file: replace(file, KERNEL, shape=(2**50,), dtype="f4", chunks=(2**20,)), "is (1125899906842624,)"),
    "external storage": (external_storage, "is not stored in one piece"),
    "virtual": (virtual, "is not stored in one piece"),
    "soft link": (lambda file: swap(file, KERNEL, h5py.SoftLink("/good")), f"{KERNEL} is a link to elsewhere"),
    "dangling link": (lambda file: swap(file, KERNEL, h5py.SoftLink("/gone")), f"{KERNEL} is a link to elsewhere"),
    "external link": (
        lambda file: swap(file, KERNEL, h5py.ExternalLink(elsewhere(file), KERNEL)),
        f"{KERNEL} is a link to elsewhere",
    ),
    "external layer": (
        lambda file: swap(file, "layers/dense", h5py.ExternalLink(elsewhere(file), "layers/dense")),
        "layers/dense is a link to elsewhere",
    ),
    "external layers": (
        lambda file: swap(file, "layers", h5py.ExternalLink(elsewhere(file), "layers")),
        "layers is a link to elsewhere",
    ),
    "external model_weights": (
        lambda file: file.update(model_weights=h5py.ExternalLink(elsewhere(file), "layers")),
        "model_weights is a link to elsewhere",
    ),
    "a loop": (loop, "layers has more in it than 100 links"),
    "a type": (lambda file: swap(file, KERNEL, np.dtype("f4")), "'Datatype' object is not iterable"),
    "an odd name": (
        lambda file: file.create_dataset("layers/dense/a\nb\x1b[2J", data=1),
        "/layers/dense/a b [2J is ()",
    ),
}


@pytest.fixture(scope="module")
def to_forge(keras_files: Path) -> Path:
    """A good file with what the forgeries need in it."""
    path = keras_files / "to_forge.weights.h5"
    shutil.copyfile(keras_files / "fit.weights.h5", path)
    with h5py.File(path, "r+") as file:
        file["good"] = ONES
        file.attrs["model_config"] = "{}"  # read of a file with model_weights alone
        file.attrs["beside"] = str(keras_files / "before_fit.weights.h5")
    read_keras_file(path)  # so far it is good
    return path


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_hdf5_file_is_refused(to_forge: Path, case: str, tmp_path: Path) -> None:
    change, found = FORGED[case]
    path = tmp_path / "forged.weights.h5"
    shutil.copyfile(to_forge, path)
    with h5py.File(path, "r+") as file:
        change(file)
    assert found in refusal(path)


def members(keras_files: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(keras_files / "fit.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, content: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in content:
                archive.writestr(name, data)


def test_a_zip_file_that_was_packed_again_is_read(keras_files: Path, tmp_path: Path) -> None:
    write_zip(tmp_path / "x.keras", [*members(keras_files).items()][::-1], zipfile.ZIP_DEFLATED)
    arrays = read_keras_file(tmp_path / "x.keras")
    for key, array in read_keras_file(keras_files / "fit.keras").items():
        np.testing.assert_array_equal(arrays[key], array)


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "assets/evil", "model.weights.h5", "evil\x1b[2J"])
def test_a_zip_file_with_any_other_member_is_refused(keras_files: Path, name: str, tmp_path: Path) -> None:
    write_zip(tmp_path / "x.keras", [*members(keras_files).items(), (name, b"")])
    assert "not ['config.json', 'metadata.json', 'model.weights.h5']" in refusal(tmp_path / "x.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["x.keras"]


@pytest.mark.parametrize("name", reader.MEMBERS)
def test_a_zip_file_without_one_of_its_members_is_refused(keras_files: Path, name: str, tmp_path: Path) -> None:
    write_zip(tmp_path / "x.keras", [member for member in members(keras_files).items() if member[0] != name])
    assert "not ['config.json', 'metadata.json', 'model.weights.h5']" in refusal(tmp_path / "x.keras")


@pytest.mark.parametrize("name", reader.MEMBERS)
def test_a_zip_file_that_unpacks_to_too_much_is_refused(keras_files: Path, name: str, tmp_path: Path) -> None:
    bomb = members(keras_files) | {name: b"\0" * (reader.MAX_BYTES + 1)}
    write_zip(tmp_path / "x.keras", [*bomb.items()], zipfile.ZIP_DEFLATED)
    assert (tmp_path / "x.keras").stat().st_size < reader.MAX_BYTES / 2
    assert "has more than 16777216 bytes" in refusal(tmp_path / "x.keras")


@pytest.mark.parametrize(("method", "number"), [(zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)])
def test_a_zip_file_packed_in_another_way_is_refused(
    keras_files: Path, method: int, number: int, tmp_path: Path
) -> None:
    write_zip(tmp_path / "x.keras", [*members(keras_files).items()], method)
    assert f"config.json is packed by method {number}" in refusal(tmp_path / "x.keras")


def set_in_directory(data: bytes, offset: int, form: str, value: int) -> bytes:
    """Change a field of the last entry of a zip file's directory, which is that of the weights."""
    forged = bytearray(data)
    struct.pack_into(form, forged, data.rindex(b"PK\x01\x02") + offset, value)
    return bytes(forged)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda data: data[:-1], "File is not a zip file"),
        (lambda data: data[: len(data) // 2], "File is not a zip file"),
        (lambda data: data[:100], "File is not a zip file"),
        (lambda data: data[:3], "neither a zip nor an HDF5 file"),
        (lambda data: set_in_directory(data, 8, "<H", 1), "is encrypted, password required"),
        (lambda data: set_in_directory(data, 16, "<I", 0), "Bad CRC-32"),
        (lambda data: set_in_directory(data, 24, "<I", 1000), "Bad CRC-32"),
        (
            lambda data: set_in_directory(data, 42, "<I", 2**31),
            "Truncated file header",
        ),
    ],
)
def test_a_torn_or_forged_zip_file_is_refused(
    keras_files: Path, change: Callable[[bytes], bytes], found: str, tmp_path: Path
) -> None:
    (tmp_path / "x.keras").write_bytes(change((keras_files / "fit.keras").read_bytes()))
    assert found in refusal(tmp_path / "x.keras")


def relayer(number: int, **fields: object) -> Callable[[dict], object]:
    return lambda config: config["config"]["layers"][number].update(fields)


def reset(number: int, **settings: object) -> Callable[[dict], object]:
    return lambda config: config["config"]["layers"][number]["config"].update(settings)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (relayer(2, class_name="Lambda"), "('keras.layers', 'Lambda')"),
        (relayer(1, module="evil"), "its config is a Sequential of [('evil', 'Conv2D')"),
        (relayer(3, class_name="InputLayer"), "its config is a Sequential of"),
        (lambda config: config["config"]["layers"].append(config["config"]["layers"][4]), "its config is a Sequential"),
        (lambda config: config.update(class_name="Evil"), "its config is a Evil of"),
        (reset(1, activation="relu6"), "a Conv2D with activation relu6, not relu"),
        (reset(1, padding="valid"), "a Conv2D with padding valid, not same"),
        (reset(1, strides=[2, 2]), "a Conv2D with strides [2, 2], not [1, 1]"),
        (reset(1, dilation_rate=[2, 2]), "a Conv2D with dilation_rate [2, 2], not [1, 1]"),
        (reset(1, data_format="channels_first"), "a Conv2D with data_format channels_first"),
        (reset(2, pool_size=[3, 3]), "a MaxPooling2D with pool_size [3, 3], not [2, 2]"),
        (reset(2, strides=[1, 1]), "a MaxPooling2D with strides [1, 1], not [2, 2]"),
        (reset(2, padding="same"), "a MaxPooling2D with padding same, not valid"),
        (reset(3, data_format="channels_first"), "a Flatten with data_format channels_first"),
        (reset(4, activation={"class_name": "function", "config": "evil"}), "a Dense with activation {'class_name'"),
        (reset(5, activation="linear"), "a Dense with activation linear, not softmax"),
    ],
)
def test_a_config_of_another_model_is_refused(
    keras_files: Path, change: Callable[[dict], object], found: str, tmp_path: Path
) -> None:
    content = members(keras_files)
    config = json.loads(content["config.json"])
    change(config)
    write_zip(tmp_path / "x.keras", [*(content | {"config.json": json.dumps(config).encode()}).items()])
    assert found in refusal(tmp_path / "x.keras")


@pytest.mark.parametrize(
    "config", [b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 10**6, b'{"config": ' + b"9" * 10**5 + b"}"]
)
def test_a_config_that_is_none_is_refused(keras_files: Path, config: bytes, tmp_path: Path) -> None:
    write_zip(tmp_path / "x.keras", [*(members(keras_files) | {"config.json": config}).items()])
    refusal(tmp_path / "x.keras")


def test_only_regular_files_of_a_fitting_size_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.keras")  # to open it would be to wait for a writer
    assert refusal(tmp_path / "fifo.keras").startswith("is not a file")
    (tmp_path / "empty.keras").touch()
    assert refusal(tmp_path / "empty.keras").startswith("neither a zip nor an HDF5 file")
    with (tmp_path / "large.keras").open("wb") as stream:
        stream.truncate(2**40)
    assert refusal(tmp_path / "large.keras").startswith("has more than 16777216 bytes")


def test_a_file_over_which_hdf5_crashes_is_refused(keras_files: Path, tmp_path: Path) -> None:
    data = bytearray((keras_files / "fit.h5").read_bytes())
    data[data.index(b"model_config\0\0\0\0\x19\x01") + 17] = 0xFF  # the kind of the variable-length text, 1
    (tmp_path / "x.h5").write_bytes(data)
    assert refusal(tmp_path / "x.h5").startswith("HDF5 breaks down over it (exit code -11)")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_a_file_for_which_hdf5_takes_all_memory_is_refused(keras_files: Path, tmp_path: Path) -> None:
    data = bytearray((keras_files / "before_fit.weights.h5").read_bytes())
    data[data.index(b"vars\0\0\0\0\x01\0\0\0") + 8] = 0x10  # a heap's free block has itself as its next
    (tmp_path / "x.weights.h5").write_bytes(data)
    assert "memory allocation failed" in refusal(tmp_path / "x.weights.h5")


def test_a_file_that_takes_too_long_is_refused(keras_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_SECONDS", 0.01)
    assert refusal(keras_files / "fit.keras").startswith("takes more than 0.01 seconds to read")


def test_a_reader_that_cannot_start_is_not_blamed_on_the_file(
    keras_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        read_keras_file(keras_files / "fit.keras")


def structure(data: bytes) -> list[int]:
    """Return where a file has what is neither zero nor an element of a dataset: there, a change is felt."""
    start = data.index(reader.HDF5)
    own = np.frombuffer(data, np.uint8) != 0
    with h5py.File(io.BytesIO(data[start:]), "r") as file:

        def leave_out(_: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                offset = start + item.id.get_offset()
                own[offset : offset + item.nbytes] = False

        file.visititems(leave_out)
    return np.flatnonzero(own).tolist()


@pytest.mark.parametrize("cases", [6, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_fitting_weights_or_is_refused(
    keras_files: Path, kind: str, cases: int, tmp_path: Path
) -> None:
    whole = (keras_files / f"fit{kind}").read_bytes()
    felt = structure(whole)
    path = tmp_path / f"x{kind}"
    draw = random.Random(cases)
    read = 0
    for case in range(cases):
        data = bytearray(whole)
        if case % 5 == 0:
            del data[draw.randrange(len(data)) :]
        else:
            for _ in range(draw.choice([1, 1, 2, 8])):
                place = draw.choice(felt) if draw.random() < 0.8 else draw.randrange(len(data))
                data[place] = draw.choice([0, 255, data[place] ^ 1 << draw.randrange(8), draw.randrange(256)])
        path.write_bytes(data)
        try:
            arrays = read_keras_file(path)
        except InputError:
            continue
        read += 1
        assert {key: array.shape for key, array in arrays.items()} == WEIGHTS
        assert all(np.isfinite(array).all() for array in arrays.values())
    assert read < (0.1 if kind == ".keras" else 0.8) * cases  # a zip file has checksums
