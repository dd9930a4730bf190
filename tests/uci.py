"""Digits that are not MNIST's: UCI's, of 8 x 8 pixels, as scikit-learn ships them, on sheets and in photos.

`python tests/uci.py` prints the table of docs/using.md.
"""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_digits
from trained import trained_model

from lit_mnist import preprocess
from lit_mnist.errors import InputError

Picture = Image.Image
LARGE, SHEET = 160, 480  # pixels: of an enlarged digit, of the sheet


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return `count` digits, light on dark, [N, 8, 8] in [0, 255], and their classes, [N]."""
    data = load_digits()
    chosen = np.random.default_rng(seed).permutation(len(data.images))[:count]
    return (data.images[chosen] / 16 * 255).astype(np.uint8), data.target[chosen]


def enlarged(digit: np.ndarray, how: Image.Resampling = Image.Resampling.BICUBIC) -> Picture:
    return Image.fromarray(digit).resize((LARGE, LARGE), how)


def on_sheet(picture: Picture, rng: np.random.Generator, side: int = SHEET) -> Picture:
    sheet = Image.new("L", (side, side), 0)
    x, y = rng.integers(0, side - LARGE, 2).tolist()
    sheet.paste(picture, (x, y))
    return sheet


def photo(picture: Picture, rng: np.random.Generator, side: int = 640) -> Picture:
    """Photograph a dark digit on a light sheet: light from one side, the edge of a shadow across it, noise."""
    ink = np.asarray(on_sheet(picture, rng, side), dtype=float) / 255
    y, x = np.mgrid[-0.5 : 0.5 : side * 1j, -0.5 : 0.5 : side * 1j]  # type: ignore[misc]  # a step of so many
    angle = rng.uniform(0, 2 * np.pi)
    light = 0.65 + 0.35 * (np.cos(angle) * x + np.sin(angle) * y)
    shadow = 1 - 0.3 / (1 + np.exp(-60 * (np.cos(angle + 1) * x + np.sin(angle + 1) * y - 0.05)))
    seen = (0.9 - 0.65 * ink) * light * shadow + rng.normal(0, 0.02, ink.shape)
    return Image.fromarray(np.clip(255 * seen, 0, 255).astype(np.uint8))


Variant = Callable[[np.ndarray, np.random.Generator], Picture]
VARIANTS: dict[str, Variant] = {
    "8 x 8 pixels, as they are": lambda digit, rng: Image.fromarray(digit),
    "enlarged to 160 x 160, smooth": lambda digit, rng: enlarged(digit),
    "enlarged to 160 x 160, in blocks": lambda digit, rng: enlarged(digit, Image.Resampling.NEAREST),
    "anywhere on a sheet of 480 x 480": lambda digit, rng: on_sheet(enlarged(digit), rng),
    "the same, dark on light": lambda digit, rng: ImageOps.invert(on_sheet(enlarged(digit), rng)),
    "the same, thin": lambda digit, rng: on_sheet(enlarged(digit).filter(ImageFilter.MinFilter(13)), rng),
    "the same, thick": lambda digit, rng: on_sheet(enlarged(digit).filter(ImageFilter.MaxFilter(13)), rng),
    "photo, unevenly lit, with a shadow": lambda digit, rng: photo(enlarged(digit), rng),
}


def accuracy(variant: Variant, count: int) -> tuple[float, float]:
    """Return the share of right predictions without the preprocessing (shrunk to 28 x 28) and with it."""
    images, labels = digits(count)
    rng = np.random.default_rng(1)
    plain, preprocessed = [], []
    for image in images:
        picture = variant(image, rng)
        plain.append(torch.from_numpy(np.array(picture.resize((28, 28), Image.Resampling.BILINEAR)))[None])
        try:
            preprocessed.append(preprocess(picture)[0])
        except InputError:
            preprocessed.append(torch.zeros(1, 28, 28, dtype=torch.uint8))  # nothing was found
    model = trained_model()
    right = [(model(torch.stack(batch)).argmax(dim=1).numpy() == labels).mean() for batch in (plain, preprocessed)]
    return float(right[0]), float(right[1])


def table(count: int) -> Iterator[str]:
    yield "| digits of UCI | without | with |"
    yield "|---|---|---|"
    for name, variant in VARIANTS.items():
        without, with_it = accuracy(variant, count)
        yield f"| {name} | {without:.1%} | {with_it:.1%} |"


if __name__ == "__main__":
    for line in table(int(sys.argv[1]) if len(sys.argv) > 1 else 300):
        print(line, flush=True)
