"""The four MNIST files: put them in place, unpack them, make sure that they are what they claim to be."""

import gzip
import hashlib
import math
import shutil
import struct
import zlib
from importlib.resources import as_file, files
from pathlib import Path

import filelock
import torchvision
from torchvision.datasets.utils import calculate_md5

from lit_mnist.runs.command import InputError

# md5 of each file after `gunzip`. Those of the packed files are in torchvision.datasets.MNIST.resources.
UNPACKED_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049  # first four bytes, big-endian: unsigned bytes in 3 dimensions and in 1
LARGEST_FILE = 2**28  # bytes; five times MNIST's largest, and nothing that unpacks to more is read any further
OTHER_DATA = "or pass --verify_data false for another data set in MNIST's format"


def prepare_files(data_dir: Path, verify: bool) -> None:
    """Leave the four unpacked files in `<data_dir>/MNIST/raw`, checked.

    Files that are there already, packed or unpacked, are used and never overwritten; the others come from this
    package, unless `verify` is False. A file appears under its name only when it is whole, whoever else prepares the
    same directory at the same time and whenever the process is killed.

    Args:
        data_dir: directory as torchvision.datasets.MNIST understands it; made if it does not exist.
        verify: check that the files are MNIST's own, by md5. False admits other data sets in MNIST's format
            (Fashion-MNIST, KMNIST), whose four files must all be there. Magic numbers, counts, shapes and the range of
            the labels are checked always.

    Raises:
        InputError: names the first file that is missing, torn, of another shape or not MNIST's.
    """
    raw = data_dir / "MNIST" / "raw"
    try:
        if not verify and not raw.is_dir():
            raise _missing(raw / next(iter(UNPACKED_MD5)))
        if not all((raw / name).exists() for name in UNPACKED_MD5):
            raw.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(data_dir / "MNIST" / ".lock"):
                staging = data_dir / "MNIST" / ".unpacking"
                try:
                    _unpack_missing(raw, staging, verify)
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
        for split in ("train", "t10k"):
            _check_split(raw / f"{split}-images-idx3-ubyte", raw / f"{split}-labels-idx1-ubyte", verify)
    except OSError as error:
        raise InputError(f"--data_dir {data_dir}: {error}; give a directory that can be read and written") from error


def dataset_digest(data_dir: Path) -> str:
    """Return the sha256 of the four unpacked files, one after the other in the order of `UNPACKED_MD5`."""
    digest = hashlib.sha256()
    for name in UNPACKED_MD5:
        digest.update((data_dir / "MNIST" / "raw" / name).read_bytes())
    return digest.hexdigest()


def _unpack_missing(raw: Path, staging: Path, verify: bool) -> None:
    """Copy and unpack in a directory on the same file system, then rename. The caller holds the lock."""
    shutil.rmtree(staging, ignore_errors=True)  # left behind by a process that was killed
    staging.mkdir()
    for packed_name, packed_md5 in torchvision.datasets.MNIST.resources:
        packed, unpacked = raw / packed_name, raw / packed_name.removesuffix(".gz")
        for path in (packed, unpacked):
            if path.is_symlink() and not path.exists():
                raise InputError(f"{path}: a link to {path.readlink()}, which does not exist; mend or delete it")
        if unpacked.exists():
            continue
        if packed.exists():
            if verify and (md5 := calculate_md5(packed)) != packed_md5:
                raise InputError(f"{packed}: md5 is {md5}, MNIST's is {packed_md5}; delete the file, {OTHER_DATA}")
        elif not verify:
            raise _missing(unpacked)
        else:
            with as_file(files("lit_mnist") / "mnist" / packed_name) as shipped:
                shutil.copyfile(shipped, staging / packed_name)
            (staging / packed_name).replace(packed)
        try:
            with gzip.open(packed) as file:
                content = file.read(LARGEST_FILE + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{packed}: cannot be unpacked ({error}); delete the file or replace it") from error
        if len(content) > LARGEST_FILE:
            raise InputError(
                f"{packed}: unpacks to more than {LARGEST_FILE:,} bytes; replace it with one of MNIST's format"
            )
        (staging / unpacked.name).write_bytes(content)
        _check_header(staging / unpacked.name, culprit=packed)
        (staging / unpacked.name).replace(unpacked)


def _missing(path: Path) -> InputError:
    return InputError(
        f"{path}: missing; with --verify_data false all four files must be there, packed (.gz) or not, since MNIST's "
        "would not belong to them"
    )


def _check_split(images: Path, labels: Path, verify: bool) -> None:
    image_count, *size = _check_header(images, culprit=images)
    (label_count,) = _check_header(labels, culprit=labels)
    if size != [28, 28]:
        raise InputError(f"{images}: images of {size[0]} x {size[1]} pixels; the model takes 28 x 28")
    if image_count != label_count or image_count == 0:
        raise InputError(
            f"{labels}: {label_count} labels for the {image_count} images of {images.name}; "
            "expected one for each, at least one: replace the file that does not belong"
        )
    largest = max(labels.read_bytes()[8:])
    if largest > 9:
        raise InputError(f"{labels}: holds the label {largest}; the model tells the classes 0 to 9 apart")
    for path in (images, labels):
        if verify and (md5 := calculate_md5(path)) != UNPACKED_MD5[path.name]:
            raise InputError(
                f"{path}: md5 is {md5}, MNIST's is {UNPACKED_MD5[path.name]}; "
                f"delete the file, it is then made anew, {OTHER_DATA}"
            )


def _check_header(path: Path, culprit: Path) -> tuple[int, ...]:
    """Return the lengths of the dimensions that an IDX file declares, after comparing them with the file's size."""
    magic, dimensions = (IMAGES_MAGIC, 3) if "images" in path.name else (LABELS_MAGIC, 1)
    with path.open("rb") as file:
        header = file.read(4 + 4 * dimensions)
    repair = "delete the file, it is then made anew, or replace it"
    if len(header) < 4 + 4 * dimensions:
        raise InputError(f"{culprit}: holds {len(header)} bytes, too few for an IDX header; {repair}")
    found, *lengths = struct.unpack(f">{1 + dimensions}I", header)
    if found != magic:
        raise InputError(f"{culprit}: begins with the number {found}, expected {magic}; {repair}")
    expected, size = len(header) + math.prod(lengths), path.stat().st_size
    if size != expected:
        shape = " x ".join(map(str, lengths))
        raise InputError(f"{culprit}: {size} bytes, but the header declares {shape}, which takes {expected}; {repair}")
    return tuple(lengths)
