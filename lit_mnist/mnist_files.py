"""The four MNIST files: read into memory, packed or not, and checked to be what they claim to be."""

import gzip
import hashlib
import math
import struct
import zlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lit_mnist.errors import InputError

# md5 of each file after `gunzip`; of the packed ones, torchvision.datasets.MNIST.resources says the same.
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
LARGEST_FILE = 2**30  # bytes, unpacked; twenty times MNIST's largest
OTHER_DATA = "or set verify_data false for another data set in MNIST's format"


class MNISTFiles(NamedTuple):
    """Images are bytes, [I, 1, 28, 28]; labels are classes 0 to 9, int64 [I]."""

    train: TensorDataset
    test: TensorDataset
    sha256: str  # of the four unpacked files, one after the other in the order of `MD5`


def read_files(data_dir: str | Path, verify: bool = True) -> MNISTFiles:
    """Read each file from `<data_dir>/MNIST/raw`, unpacked or packed (.gz); nothing is written anywhere.

    Files that are not there come from this package, unless `verify` is False.

    Args:
        data_dir: directory as torchvision.datasets.MNIST understands it; it need not exist.
        verify: insist on MNIST's own files, by md5. False admits other data sets in MNIST's format (Fashion-MNIST,
            KMNIST), whose four files must all be there. Magic numbers, counts, shapes and the range of the labels are
            checked always.

    Raises:
        InputError: names the first file that is missing, torn, of another shape or not MNIST's.
    """
    try:
        if Path(data_dir).exists() and not Path(data_dir).is_dir():
            raise InputError("a file; give a directory that holds MNIST/raw, or may", data_dir=str(data_dir))
    except OSError as error:  # a name that is too long
        raise InputError(f"{error.strerror}; give a directory", data_dir=str(data_dir)) from error
    digest = hashlib.sha256()
    files_read: list[tuple[Path, Tensor]] = []
    for name, md5 in MD5.items():
        path = _find(Path(data_dir) / "MNIST" / "raw" / name, verify)
        content = _unpack(path)
        files_read.append((path, _parse(path, content, images="images" in name)))
        if verify and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
            raise InputError(f"{path}: md5 of the content is {found}, MNIST's is {md5}; delete the file, {OTHER_DATA}")
        digest.update(content)
    return MNISTFiles(_join(*files_read[:2]), _join(*files_read[2:]), digest.hexdigest())


def _find(path: Path, verify: bool) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    for candidate in (path, packed):
        if candidate.exists() or candidate.is_symlink():  # a link to nowhere is named when it is opened
            return candidate
    if not verify:
        raise InputError(
            f"{path}: missing; with verify_data false all four files must be there, packed (.gz) or not, since "
            "MNIST's would not belong to them"
        )
    return Path(str(files("lit_mnist") / "mnist" / packed.name))


def _unpack(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete the file or replace it") from error
    if len(content) > LARGEST_FILE:
        raise InputError(f"{path}: holds more than {LARGEST_FILE:,} bytes; replace it with one of MNIST's format")
    return content


def read_images(path: Path) -> Tensor:
    """Read the images of one IDX file, packed (.gz) or not: bytes, [I, H, W].

    Raises:
        InputError: if it cannot be read or is no such file.
    """
    return _parse(path, _unpack(path), images=True)


def _parse(path: Path, content: bytes, images: bool) -> Tensor:
    """Return the bytes of an IDX file: a magic number, the lengths of the dimensions, the data, all big-endian."""
    magic, dimensions = (2051, 3) if images else (2049, 1)
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise InputError(f"{path}: holds {len(content)} bytes, too few for an IDX header; delete or replace it")
    first, *lengths = struct.unpack_from(f">{1 + dimensions}I", content)
    kinds = {2051: "images", 2049: "labels"}
    if first != magic and first in kinds:
        raise InputError(f"{path}: holds {kinds[first]}; expected a file of {kinds[magic]}")
    if first != magic:
        raise InputError(f"{path}: begins with the number {first}, expected {magic}; delete or replace it")
    if len(content) != start + math.prod(lengths):
        shape = " x ".join(map(str, lengths))
        raise InputError(f"{path}: {len(content)} bytes, but its header declares {shape}; delete or replace it")
    if math.prod(lengths) == 0:
        raise InputError(f"{path}: holds nothing; expected at least one image and its label")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(lengths)


def _join(images_file: tuple[Path, Tensor], labels_file: tuple[Path, Tensor]) -> TensorDataset:
    (images_path, images), (labels_path, labels) = images_file, labels_file
    if images.shape[1:] != (28, 28):
        size = " x ".join(map(str, images.shape[1:]))
        raise InputError(f"{images_path}: images of {size} pixels; the model takes 28 x 28")
    if len(images) != len(labels):
        raise InputError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}; expected one "
            "for each: replace the file that does not belong"
        )
    if labels.max() > 9:
        raise InputError(f"{labels_path}: holds the label {labels.max()}; the model tells the classes 0 to 9 apart")
    return TensorDataset(images.unsqueeze(1), labels.long())  # [I, 1, 28, 28], [I]
