"""Anybody's picture of a digit, turned into an image like those of MNIST.

MNIST's authors on their own images (http://yann.lecun.com/exdb/mnist): "The original black and white (bilevel) images
from NIST were size normalized to fit in a 20x20 pixel box while preserving their aspect ratio. The resulting images
contain grey levels as a result of the anti-aliasing technique used by the normalization algorithm. The images were
centered in a 28x28 image by computing the center of mass of the pixels, and translating the image so as to position
this point at the center of the 28x28 field." That is `normalise`. What precedes it, `find_ink`, does for photos and
drawings what scanning did for NIST's forms: it tells the ink from the sheet.

`page/digit.js` says the same in JavaScript; the tests give both the same drawings.
"""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lit_mnist.errors import InputError

# Those that people have. Pillow knows more; one of them, EPS, would start a program.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
LARGEST_PICTURE = 80_000_000  # pixels, which are looked at before any is unpacked; 0.3 GB in colour
WORKING_SIDE = 320  # pixels: larger pictures are shrunk to the area of this square before the digit is looked for
WIDEST_STROKES = (0.08, 0.15, 0.25, 0.4)  # of the shorter side of a picture: what is wider belongs to the sheet
SMALLEST_WINDOW = 7  # pixels, that can tell strokes from the sheet
LEAST_CONTRAST = 0.05  # of ink and sheet, as a share of the sheet's brightness; less is an empty sheet
LEAST_DIFFERENCE = 0.08  # of ink and sheet, as a share of the picture's range: near black, any light is much contrast
LEAST_CONTRAST_TO_NOISE = 4.0  # noise alone has at most 3.5 (uniform; Gaussian 2.8), digits of UCI at least 4.9
LEAST_SHARE = 0.1  # of all that stands out: of noise, no piece has it
FULL = 0.75  # quantile of the ink of a digit that counts as full: of a soft line, only the middle is
LEAST_PIECE = 0.03  # of the ink of the largest piece of a digit; less is a speck
EDGE = 0.1  # of full ink: where a digit begins, whose edges may be soft
BOX, SIDE = 20, 28  # pixels: of the digit, of the image


def preprocess(image: Any) -> Tensor:
    """Turn a picture of one digit, dark on light or light on dark, into what the model takes.

    Args:
        image: path of a file (PNG, JPEG, GIF, BMP, TIFF or WebP), a `PIL.Image.Image`, or an array or tensor of grey
            pixels, [H, W] or [1, H, W]. Any size, colour, alpha, 16 bits; light may be uneven.

    Returns:
        Bytes, light on dark, [1, 1, 28, 28].

    Raises:
        InputError: if the file is no such picture, or no digit is to be seen in it.
    """
    if isinstance(image, Image.Image):
        grey = to_grey(image)
    elif isinstance(image, str | Path):
        grey = read_picture(Path(image))
    else:
        grey = np.asarray(image, dtype=np.float64)
        if grey.ndim == 3 and len(grey) == 1:
            grey = grey[0]
        if grey.ndim != 2 or grey.size == 0 or not np.isfinite(grey).all():
            raise InputError(f"an image is {list(grey.shape)}; expected finite grey pixels, [H, W]")
    return torch.from_numpy(normalise(find_ink(grey)))[None, None]


def read_picture(path: Path) -> np.ndarray:
    """Read the grey pixels of an image file, [H, W], upright as EXIF says; of several pictures in it, the first.

    Raises:
        InputError: if it is no image, too large or torn.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow thinks of other people's EXIF is no help to anybody
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > LARGEST_PICTURE:
                    size = f"{width} x {height} pixels, more than {LARGEST_PICTURE:,}"
                    raise InputError(f"{path}: {size}; shrink it or cut the digit out")
                image.draft(None, (2 * WORKING_SIDE, 2 * WORKING_SIDE))  # a JPEG is unpacked no larger than needed
                return to_grey(image)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: more than {LARGEST_PICTURE:,} pixels; shrink it or cut the digit out") from error
    except Exception as error:  # whatever the decoders come upon in a torn or forged file, the file is what is wrong
        if isinstance(error, UnidentifiedImageError):
            raise InputError(f"{path}: no image; expected a PNG, JPEG, GIF, BMP, TIFF or WebP file") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: damaged ({reason}); get it again, or save it anew") from error


def to_grey(image: Image.Image) -> np.ndarray:
    """Turn a picture into grey pixels, [H, W]: 0 is black. What is transparent takes the colour that shows the rest."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.asarray(image, dtype=np.float64)
        if not np.isfinite(grey).all():
            raise ValueError("pixels that are no finite numbers")
        return grey
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        channels = np.asarray(image.convert("RGBA").convert("LA"), dtype=np.float64)
        grey, opaque = channels[..., 0], channels[..., 1] / 255
        light = (grey * opaque).sum() > 127.5 * opaque.sum()
        return grey * opaque + (0 if light else 255) * (1 - opaque)
    return np.asarray(image.convert("L"), dtype=np.float64)


def find_ink(grey: np.ndarray) -> np.ndarray:
    """Tell the ink of a digit from the sheet, whichever is darker, in uneven light, and leave out specks and edges.

    The sheet's own brightness at a pixel is what a morphological closing leaves of the picture: that without what is
    darker and narrower than a stroke may be. The narrower that is, the less remains of shadows; so it grows from
    picture to picture until the strokes that come out are clearly narrower.

    Args:
        grey: pixels from 0 (black) up, [H, W].

    Returns:
        0 for the sheet to 1 for full ink, [h, w], of a picture that was shrunk if it was large.

    Raises:
        InputError: if nothing stands out.
    """
    grey = _shrink(grey)
    low, high = min(grey.min(), 0), max(grey.max(), 0)
    grey = (grey - low) / (high - low or 1)
    sizes = [math.ceil(share * min(grey.shape)) // 2 * 2 + 1 for share in WIDEST_STROKES]
    for size, contrast in zip(sizes, _contrasts(grey, sizes), strict=True):
        ink, brightness = contrast
        marked = ink > _otsu(ink)
        if not marked.any() or marked.all():
            continue
        digit = _digit(marked, ink)
        if size >= SMALLEST_WINDOW and not _eroded(digit, 0.6 * size).any():
            break
    if not marked.any() or marked.all():
        raise InputError("nothing to be seen; expected a picture of one digit")
    sheet = ink[~marked]
    middle, noise = _middle(sheet)
    full = np.quantile(ink[digit], FULL)
    clear = (
        ink[digit].mean() - sheet.mean() >= LEAST_CONTRAST_TO_NOISE * sheet.std()
        and full - middle >= LEAST_CONTRAST
        and np.quantile((ink * brightness)[digit], FULL) >= LEAST_DIFFERENCE
    )
    if not clear or ink[digit].sum() < LEAST_SHARE * ink[marked].sum():
        raise InputError("nothing stands out; expected a picture of one digit, dark on light or light on dark")
    floor = middle + 3 * noise
    ink = np.clip((ink - floor) / (full - floor), 0, 1)
    return ink * _maximum(digit.astype(float), 5)


def normalise(ink: np.ndarray) -> np.ndarray:
    """Fit ink into 20 x 20 pixels and put its centre of mass at the centre of 28 x 28, as MNIST's authors did.

    Args:
        ink: from 0 to 1, [H, W].

    Returns:
        Bytes, [28, 28].

    Raises:
        InputError: if there is no ink.
    """
    rows, columns = np.flatnonzero((ink > EDGE).any(axis=1)), np.flatnonzero((ink > EDGE).any(axis=0))
    if len(rows) == 0:
        raise InputError("nothing to be seen; expected a picture of one digit")
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(1, math.floor(length * scale + 0.5)) for length in ink.shape)
    small = _resampling(len(ink), height) @ ink @ _resampling(ink.shape[1], width).T
    small = small / small.max()
    image = np.zeros((SIDE, SIDE))
    top, left = _offset(small.sum(axis=1)), _offset(small.sum(axis=0))
    image[top : top + height, left : left + width] = small
    return np.floor(255 * image + 0.5 + 1e-6).astype(np.uint8)  # halves go up, however the sums were rounded


def _offset(mass: np.ndarray) -> int:
    """Return where a line of pixels [n] begins in one of 28 that has its centre of mass in the middle, or near it."""
    centre = (mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum()
    return int(np.clip(math.floor(SIDE / 2 - centre + 0.5 + 1e-6), 0, SIDE - len(mass)))


def _resampling(length: int, to: int) -> np.ndarray:
    """Return the matrix [to, length] that resizes a line of pixels by linear interpolation, or averages that widely.

    Pillow's `BILINEAR` (src/libImaging/Resample.c): a triangle as wide as two of the larger pixels.
    """
    scale = length / to
    centres = (np.arange(to)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(length) + 0.5 - centres) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


def _shrink(grey: np.ndarray) -> np.ndarray:
    height, width = grey.shape
    scale = WORKING_SIDE / math.sqrt(height * width)
    if scale >= 1:
        return grey
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(grey.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BOX), dtype=np.float64)


def _contrasts(grey: np.ndarray, sizes: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return how far each pixel in [0, 1] is from the sheet around it, as a share of its brightness, by size of stroke.

    With it comes that brightness.

    For light ink the same is done to the negative. Dark ink leaves much more in the one than in the other once the size
    is that of its strokes, light ink the other way round. At larger sizes shadows and gaps between the digit and the
    border join in; so the first clear size decides which it is.
    """
    darker, lighter, votes = [], [], []
    for size in sizes:
        darker.append(_closed(grey, size) - grey)
        lighter.append(_closed(1 - grey, size) - (1 - grey))
        votes.append(_beyond_noise(darker[-1]) / max(_beyond_noise(lighter[-1]), 1e-9))
        if not 0.5 < votes[-1] < 2:
            votes = votes[-1:]
            break
    if votes[0] < 1:
        grey, darker = 1 - grey, lighter
    for i, size in enumerate(sizes):
        ink = darker[i] if i < len(darker) else _closed(grey, size) - grey
        brightness = np.maximum(grey + ink, 1e-9)
        yield ink / brightness, brightness


def _beyond_noise(x: np.ndarray) -> float:
    middle, noise = _middle(x)
    return float(np.maximum(0, x - middle - 3 * noise).sum())


def _middle(x: np.ndarray) -> tuple[float, float]:
    """Return the median and, robustly, the standard deviation."""
    middle = np.median(x)
    return float(middle), 1.5 * float(np.median(np.abs(x - middle)))


def _eroded(mask: np.ndarray, size: float) -> np.ndarray:
    """Return where a mask [H, W] holds a square of `size` pixels."""
    return _maximum(1 - mask.astype(float), int(size)) < 0.5


def _closed(grey: np.ndarray, size: int) -> np.ndarray:
    """Return a picture [H, W] without what is darker than its surroundings and holds no square of `size` pixels.

    Beyond the border it goes on as at the border: a margin, however narrow, is no stroke.
    """
    padded = np.pad(grey, size, mode="edge")
    return (1 - _maximum(1 - _maximum(padded, size), size))[size:-size, size:-size]


def _maximum(x: np.ndarray, size: int) -> np.ndarray:
    """Return the largest value in the square of `size` pixels (made odd) around each pixel, of [H, W]."""
    for _ in range(2):
        x = np.pad(x, ((size // 2, size // 2), (0, 0)), mode="edge")
        width = 1
        while width < 2 * (size // 2) + 1:  # windows of 1, 2, 4, ... rows, the last as far as needed
            step = min(width, 2 * (size // 2) + 1 - width)
            x = np.maximum(x[:-step], x[step:])
            width += step
        x = x.T
    return x


def _otsu(x: np.ndarray) -> float:
    """Return the threshold that parts values in [0, 1] best in two classes (Otsu, 1979)."""
    counts, edges = np.histogram(x, bins=256, range=(0, 1))
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1] / x.size
    sums = np.cumsum(counts * middles) / x.size
    between = (sums[-1] * below - sums[:-1]) ** 2 / np.maximum(below * (1 - below), 1e-9)
    best = np.flatnonzero(between == between.max())
    return float(edges[1 + best[len(best) // 2]])


def _digit(marked: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """Return of the marked pixels [H, W] those of the digit: the largest piece, and what is near enough to it.

    What runs into the border is the edge of the sheet rather than the digit, unless it is much larger.
    """
    labels, count = _pieces(marked)
    mass = np.bincount(labels.ravel(), weights=ink.ravel(), minlength=count + 1)[1:]
    at_border = np.zeros(count + 1, dtype=bool)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        at_border[line] = True
    at_border = at_border[1:]
    main = int(np.argmax(np.where(at_border, mass / 5, mass)))
    top, bottom, left, right = _box(labels == main + 1)
    reach = max(bottom - top, right - left) / 2
    belongs = np.zeros(count + 1, dtype=bool)
    for piece in np.flatnonzero((mass >= LEAST_PIECE * mass[main]) & (at_border[main] | ~at_border)):
        first, last, leftmost, rightmost = _box(labels == piece + 1)
        belongs[piece + 1] = max(first - bottom, top - last, leftmost - right, left - rightmost) <= reach
    return belongs[labels]


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def _pieces(marked: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the pieces of a mask [H, W] whose pixels touch, at a corner too, from 1; return them and their number."""
    labels = np.zeros(marked.shape, dtype=np.int64)
    parents = [0]

    def root(label: int) -> int:
        while parents[label] != label:
            label = parents[label]
        return label

    edges = np.diff(np.pad(marked, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    for row in range(len(marked)):
        starts, ends = np.flatnonzero(edges[row] == 1), np.flatnonzero(edges[row] == -1)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            above = labels[row - 1, max(0, start - 1) : end + 1] if row else labels[:0, 0]
            touched = sorted({root(label) for label in set(above.tolist()) - {0}})
            if not touched:
                touched = [len(parents)]
                parents.append(len(parents))
            for other in touched[1:]:
                parents[other] = touched[0]
            labels[row, start:end] = touched[0]
    roots = np.array([root(label) for label in range(len(parents))])
    kept, numbers = np.unique(roots, return_inverse=True)
    return numbers[labels], len(kept) - 1
