"""python -m lit_mnist.predict: read digits in anybody's pictures."""

import json as json_format
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_mnist.errors import InputError
from lit_mnist.runs.command import percent, run
from lit_mnist.runs.directory import find_checkpoint
from lit_mnist.runs.files import check_picture

if TYPE_CHECKING:
    import numpy as np

BATCH_SIZE = 1000  # images of a file at a time, where it holds many
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")  # that are looked for in a folder


def predict(images: list[str], ckpt_path: str | None = None, json: bool = False, plot: str | None = None) -> int:
    """Say which digit each picture shows, how probable the model finds it, and what comes next.

    IMAGES are image files (PNG, JPEG, GIF, BMP, TIFF, WebP), files of MNIST's format (idx3-ubyte, packed or not), and
    folders of them. A picture shows one digit, dark on light or light on dark, anywhere on an otherwise empty sheet; it
    is cut out, shrunk and centred as MNIST's own were. A file that is none gets a line and makes the exit code 2.

    Args:
        images: Files and folders; they are usually given without this flag.
        ckpt_path: A checkpoint, a run directory (its newest checkpoint) or a file of Keras; null takes the newest run
            below runs.
        json: Print a list of objects with file, label, probability and runner_up instead of a table.
        plot: File to draw into what the model saw (.png, .svg or .pdf).

    Returns:
        0, or 2 if there was a file that could not be used.

    Raises:
        InputError: a wrong value.
    """
    if not images:
        raise InputError("no images; name image files or folders")
    if not all(images):
        raise InputError("an empty name; name image files or folders (. is the working directory)")
    path = find_checkpoint(ckpt_path)
    check_picture(plot)
    if ckpt_path is None:
        print(f"With {path}", file=sys.stderr)

    import numpy as np

    from lit_mnist.load import load_trained

    model = load_trained(path).module
    found: list[dict[str, Any]] = []
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    unusable = 0
    for file in expand(images):
        try:
            for names, batch in read(file):
                probabilities = model(batch).float().detach().numpy()  # [N, 10]
                rows = [describe(name, of_one) for name, of_one in zip(names, probabilities, strict=True)]
                found += rows
                seen += zip(batch[:, 0].numpy(), probabilities, strict=True) if plot else ()
                if not json:
                    for row in rows:
                        print_row(row, first=row is found[0])
        except InputError as error:
            unusable += 1
            print(" ".join(str(error).split()), file=sys.stderr)
    if json:
        print(json_format.dumps(found, indent=1))
    if plot and seen:
        from lit_mnist.runs.figures import predictions, write_figure

        titles = [f"{cut(Path(row['file']).name)}\n{row['label']}: {percent(row['probability'])}" for row in found]
        pictures, probabilities = (np.stack(part) for part in zip(*seen, strict=True))
        write_figure(Path(plot), predictions(pictures, titles, probabilities))
    return 2 if unusable else 0


def cut(name: str, most: int = 18) -> str:
    """Return the end of a long name, which is where those of one folder differ."""
    return name if len(name) <= most else f"\N{HORIZONTAL ELLIPSIS}{name[1 - most :]}"


def expand(images: list[str]) -> Iterator[Path]:
    """Return the named files, and those in named folders that are pictures by their names, in order."""
    for path in map(Path, images):
        try:
            if not path.is_dir():
                yield path
                continue
            files = [file for file in sorted(path.rglob("*")) if _looks_like_images(file)]
        except OSError:  # a name that is too long, a folder that may not be read
            files = []
        yield from files or [path]  # of which `read` says that there are none


def _looks_like_images(file: Path) -> bool:
    return not file.name.startswith(".") and (file.suffix.lower() in PICTURES or "-idx3-ubyte" in file.name)


def read(file: Path) -> "Iterator[tuple[list[str], Any]]":
    """Return the names and images of a file, as the model takes them, up to 1,000 at a time: bytes [N, 1, 28, 28].

    Raises:
        InputError: if it cannot be used.
    """
    import torch

    from lit_mnist.images import preprocess
    from lit_mnist.mnist_files import read_images

    try:
        if file.is_dir():
            next(file.iterdir(), None)  # one that may not be read says so
            raise InputError(f"{file}: a folder without pictures; expected {', '.join(PICTURES)} or idx3-ubyte files")
        if not file.exists():
            raise InputError(f"{file}: no such file")
        if not file.is_file():
            raise InputError(f"{file}: not a file")
        if file.stat().st_size == 0:
            raise InputError(f"{file}: empty; expected a picture")
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    if start != b"\x00\x00\x08\x03" and not (start[:2] == b"\x1f\x8b" and "-ubyte" in file.name):
        try:
            yield [str(file)], preprocess(file)
        except InputError as error:
            text = str(error)
            raise InputError(text if text.startswith(str(file)) else f"{file}: {text}") from error
        return
    digits = read_images(file)
    for begin in range(0, len(digits), BATCH_SIZE):
        batch = digits[begin : begin + BATCH_SIZE]
        names = [f"{file}[{begin + i}]" for i in range(len(batch))]
        yield names, batch[:, None] if batch.shape[1:] == (28, 28) else torch.cat([preprocess(x) for x in batch])


def describe(name: str, probabilities: "np.ndarray") -> dict[str, Any]:
    """Return label, probability and runner-up out of the probabilities of one image, [10]."""
    second, first = probabilities.argsort()[-2:].tolist()
    return {
        "file": name,
        "label": first,
        "probability": float(probabilities[first]),
        "runner_up": second,
        "runner_up_probability": float(probabilities[second]),
    }


def print_row(row: dict[str, Any], first: bool) -> None:
    """Print a row of the table, its head before the first."""
    if first:
        print("label  probability  runner-up   file")
    runner_up = f"{row['runner_up']} ({row['runner_up_probability']:.1%})"
    print(f"{row['label']:>5}  {percent(row['probability']):>11}  {runner_up:<10}  {row['file']}", flush=True)


if __name__ == "__main__":
    run(predict, prog="python -m lit_mnist.predict", positional="images")
