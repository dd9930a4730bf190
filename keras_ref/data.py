"""The MNIST files, read with NumPy alone."""

import gzip
import hashlib
import zlib
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_mnist.errors import InputError

# Of the files after `gunzip`.
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

LARGEST_FILE = 2**30  # bytes, unpacked; nothing larger is read any further


class MNIST(NamedTuple):
    """Images are bytes, [I, 28, 28]; labels are classes 0 to 9, [I]."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    sha256: str  # of the four unpacked files, one after the other in the order of SHA256


def load_data(data_dir: str | Path = "data", verify: bool = True) -> MNIST:
    """Load MNIST from files on disk.

    Each file is looked for in `<data_dir>/MNIST/raw`, unpacked or packed (.gz), and then, if it is to be verified,
    among the files that ship with `lit_mnist`.

    Args:
        data_dir: directory of the data set; nothing is written there.
        verify: insist on MNIST's own files, by digest. False accepts other data in the same format, whose four files
            must then all be there.

    Raises:
        InputError: names the file that is missing, torn, of another shape or not MNIST's.
    """
    try:
        if Path(data_dir).exists() and not Path(data_dir).is_dir():
            raise InputError("not a directory; expected one that holds, or may hold, MNIST/raw", data_dir=str(data_dir))
    except OSError as error:
        raise InputError(f"{error}; give a directory that can be read", data_dir=str(data_dir)) from error
    raw = Path(data_dir) / "MNIST" / "raw"
    places = [raw]
    if verify:
        places.append(Path(str(files("lit_mnist") / "mnist")))
    digest = hashlib.sha256()
    arrays = []
    for name in SHA256:
        path, content = _read(places, name)
        if verify and (sha256 := hashlib.sha256(content).hexdigest()) != SHA256[name]:
            raise InputError(
                f"{path}: sha256 of the content is {sha256}, MNIST's is {SHA256[name]}; delete the file, "
                "or set verify_data false for another data set in MNIST's format"
            )
        digest.update(content)
        arrays.append(_parse(path, content, dimensions=3 if "images" in name else 1))
    train_images, train_labels, test_images, test_labels = arrays
    for images, labels, split in ((train_images, train_labels, "train"), (test_images, test_labels, "t10k")):
        if images.shape[1:] != (28, 28):
            raise InputError(f"{raw / split}-images-idx3-ubyte: images of {images.shape[1:]}; expected (28, 28)")
        if len(images) != len(labels) or len(labels) == 0:
            raise InputError(
                f"{raw / split}-labels-idx1-ubyte: {len(labels)} labels for {len(images)} images; expected one for each"
            )
        if labels.max() > 9:
            raise InputError(f"{raw / split}-labels-idx1-ubyte: holds the label {labels.max()}; expected 0 to 9")
    return MNIST(train_images, train_labels, test_images, test_labels, digest.hexdigest())


def scale_pixels(images: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Scale bytes [I, 28, 28] to [0, 1] and add the channel that `Conv2D` expects: [I, 28, 28, 1]."""
    return images[..., None].astype(dtype) / 255


def _read(places: list[Path], name: str) -> tuple[Path, bytes]:
    for path in (place / file for place in places for file in (name, f"{name}.gz")):
        if path.exists():
            try:
                if not path.is_file():
                    raise OSError("not a file")
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                    content = file.read(LARGEST_FILE + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path}: cannot be read ({error}); replace the file or delete it") from error
            if len(content) > LARGEST_FILE:
                raise InputError(f"{path}: holds more than {LARGEST_FILE:,} bytes; replace it")
            return path, content
    raise InputError(f"{places[0] / name}: missing; add it, packed (.gz) or not")


def _parse(path: Path, content: bytes, dimensions: int) -> np.ndarray:
    """Parse an IDX file: the bytes 0, 0, 8 (unsigned bytes), the number of dimensions, big-endian lengths, the data."""
    header, body = content[: 4 + 4 * dimensions], content[4 + 4 * dimensions :]
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(f"{path}: not an IDX file of bytes in {dimensions} dimension(s); replace it")
    shape = tuple(int(length) for length in np.frombuffer(header, dtype=">u4", offset=4))
    if len(body) != np.prod(shape, dtype=object):
        raise InputError(f"{path}: {len(body)} bytes of data, but the header declares {shape}; replace it")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)
