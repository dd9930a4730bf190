"""Digits in anybody's pictures: what is taken, what is refused, and how often the model is right."""

import contextlib
import io
import json
import struct
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import uci
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from trained import trained_model, write_checkpoint

from lit_mnist import preprocess
from lit_mnist.errors import InputError
from lit_mnist.images import normalise, read_picture
from lit_mnist.mnist_files import read_files

ROOT = Path(__file__).parent.parent.parent
SIX = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trained") / "model.ckpt")


@pytest.fixture(scope="module")
def drawing() -> Image.Image:
    """A six, dark on a light sheet of 480 x 480, off its centre."""
    images, labels = uci.digits(100)
    (first, *_) = np.flatnonzero(labels == SIX)
    return ImageOps.invert(uci.on_sheet(uci.enlarged(images[first]), np.random.default_rng(3)))


def six_in_all_formats(directory: Path, drawing: Image.Image) -> list[Path]:
    for name in ("png", "jpg", "gif", "bmp", "tiff", "webp"):
        drawing.save(directory / f"six.{name}")
    Image.fromarray(np.asarray(drawing).astype(np.uint16) * 257).save(directory / "16_bit.png")
    drawing.convert("RGB").point(lambda value: 255 - value // 2).save(directory / "light_colours.png")
    ImageOps.invert(drawing).save(directory / "light_on_dark.png")
    for name, colour in (("dark", 0), ("light", 255)):
        clear = Image.new("LA", drawing.size, colour)
        clear.putalpha(ImageOps.invert(drawing))
        clear.save(directory / f"{name}_on_nothing.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6  # turn by a quarter to see it upright
    drawing.rotate(90).save(directory / "rotated.jpg", exif=rotated)
    drawing.convert("1").save(directory / "two_colours.png")
    drawing.quantize(8).save(directory / "palette.png")
    drawing.resize((3000, 3000)).save(directory / "large.jpg")
    return sorted(directory.iterdir())


def test_every_format_shows_the_same_digit(tmp_path: Path, drawing: Image.Image) -> None:
    files = six_in_all_formats(tmp_path, drawing)
    assert len(files) == 15
    probabilities = trained_model()(torch.cat([preprocess(file) for file in files]))
    assert (probabilities.argmax(dim=1) == SIX).all()
    assert (probabilities.max(dim=1).values > 0.95).all()


def test_images_of_mnist_are_left_nearly_as_they_are() -> None:
    images, labels = read_files("data").test.tensors
    images, labels = images[:300], labels[:300]
    again = torch.cat([preprocess(image) for image in images])
    model = trained_model()
    right = [(model(batch).argmax(dim=1) == labels).double().mean() for batch in (images, again)]
    assert right[0] - right[1] <= 0.03
    assert (again.float() - images.float()).abs().mean() < 16  # measured: 15.0, of 255


def test_the_centre_of_mass_is_in_the_middle_and_the_digit_in_20_by_20() -> None:
    ink = np.zeros((90, 50))
    ink[10:80, 5:9] = 1  # a stem
    ink[70:80, 5:40] = 1  # and a foot
    image = normalise(ink).astype(float)
    rows, columns = np.flatnonzero(image.sum(axis=1)), np.flatnonzero(image.sum(axis=0))
    assert len(rows) == 20
    assert len(columns) == 10
    middle = [(image.sum(axis=axis) * (np.arange(28) + 0.5)).sum() / image.sum() for axis in (0, 1)]
    assert np.abs(np.array(middle) - 14).max() < 0.51  # a whole pixel is the least shift; bytes round


@pytest.mark.parametrize("size", [(5000, 100), (100, 5000)])
def test_a_digit_in_a_long_strip_is_found(size: tuple[int, int], drawing: Image.Image) -> None:
    strip = Image.new("L", size, 255)
    strip.paste(drawing.resize((90, 90)), (1600, 5) if size[0] > size[1] else (5, 1600))
    assert trained_model()(preprocess(strip)).argmax() == SIX


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_specks_and_the_edge_of_the_table_are_no_part_of_the_digit(angle: int, drawing: Image.Image) -> None:
    spoilt = np.array(drawing.rotate(angle))
    spoilt[:, :6] = 20  # the table beside the sheet
    spoilt[200:203, 470:473] = 90  # a speck
    theirs = preprocess(drawing.rotate(angle)).float()
    assert (preprocess(spoilt).float() - theirs).abs().mean() < 15
    if angle == 0:
        assert trained_model()(preprocess(spoilt)).argmax() == SIX


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("anywhere on a sheet of 480 x 480", 0.85),
        ("8 x 8 pixels, as they are", 0.75),
    ],
)
def test_digits_of_uci_are_read_with_the_preprocessing_and_not_without(name: str, least: float) -> None:
    without, with_it = uci.accuracy(uci.VARIANTS[name], count=100)
    assert without < 0.3
    assert with_it >= least


@pytest.mark.slow
def test_the_table_of_accuracies_says_what_is_measured() -> None:
    page = (ROOT / "docs" / "using.md").read_text()
    for line in uci.table(300):
        assert line in page


def empty_sheet(lightest: float, darkest: float, noise: float, kind: str, inverted: bool = False) -> np.ndarray:
    y, x = np.mgrid[0:1:400j, 0:1:300j]  # type: ignore[misc]  # a step of so many
    shade = {"linear": x, "diagonal": (x + y) / 2, "radial": ((x - 0.5) ** 2 + (y - 0.5) ** 2) * 2}[kind]
    sheet = lightest - (lightest - darkest) * shade + np.random.default_rng(0).normal(0, noise, x.shape)
    return np.clip(np.round(255 - sheet if inverted else sheet), 0, 255)


@pytest.mark.parametrize(
    "sheet",
    [
        (250, 230, 3, "linear"),
        (250, 230, 1, "diagonal"),
        (250, 240, 0, "radial"),
        (250, 190, 1, "radial"),
        (250, 220, 1, "linear", True),
    ],
)
def test_an_empty_sheet_in_uneven_light_is_empty(sheet: tuple[float, float, float, str]) -> None:
    with pytest.raises(InputError, match=r"nothing stands out|nothing to be seen"):
        preprocess(empty_sheet(*sheet))


@pytest.mark.parametrize("inverted", [False, True])
def test_a_faint_digit_on_such_a_sheet_is_seen(drawing: Image.Image, inverted: bool) -> None:
    ink = np.array(drawing.convert("L").resize((300, 400)), dtype=np.float64)
    ink = abs(ink - ink[0, 0]) / 255
    picture = empty_sheet(250, 230, 1, "linear", inverted) - (-30 if inverted else 30) * ink
    found = preprocess(picture)[0, 0] > 128
    expected = preprocess(255 * ink)[0, 0] > 128
    assert (found & expected).sum() > 0.8 * (found | expected).sum()


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def unusable_files(directory: Path, drawing: Image.Image) -> dict[str, str]:
    """Write files of every kind that cannot be used; return what is said of each."""
    whole = io.BytesIO()
    drawing.save(whole, "png")
    content = {
        "a_text.png": (b"no image", "no image; expected a PNG, JPEG"),
        "empty.png": (b"", "empty"),
        "bomb.png": (
            png(10_000, 10_000, zlib.compress(b"\0" * 1000)),
            "10000 x 10000 pixels, more than 80,000,000; shrink it",
        ),
        "larger_bomb.png": (
            png(20_000, 20_000, zlib.compress(b"\0" * 1000)),  # which Pillow itself refuses, in words of its own
            "more than 80,000,000 pixels; shrink it",
        ),
        "torn.png": (whole.getvalue()[: len(whole.getvalue()) // 2], "torn.png: "),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image"),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        "digits-idx3-ubyte": (b"\0\0\x08\x03" + struct.pack(">III", 2, 28, 28) + bytes(784), "its header declares 2 x"),
        "digits-idx3-ubyte.gz": (b"\x1f\x8b no gzip", "cannot be read"),
    }
    for name, (data, _) in content.items():
        (directory / name).write_bytes(data)
    Image.new("L", (100, 100), 200).save(directory / "blank.png")
    noise = np.random.default_rng(0).integers(100, 130, (200, 200)).astype(np.uint8)
    Image.fromarray(noise).save(directory / "noise.png")
    (directory / "folder").mkdir()
    labels = "t10k-labels-idx1-ubyte.gz"
    (directory / labels).write_bytes((files("lit_mnist") / "mnist" / labels).read_bytes())
    said = {name: says for name, (_, says) in content.items()}
    return said | {
        "blank.png": "nothing to be seen",
        "noise.png": "nothing stands out",
        "folder": "a folder without pictures",
        labels: "holds labels; expected a file of images",
        "missing.png": "no such file",
        "x" * 300: "File name too long",
    }


def test_a_file_that_cannot_be_used_gets_a_line_and_the_rest_goes_on(
    tmp_path: Path, drawing: Image.Image, checkpoint: Path, command: Command
) -> None:
    said = unusable_files(tmp_path, drawing)
    drawing.save(tmp_path / "six.png")
    drawing.save(tmp_path / "odd \udcff name.png")
    names = [*said, "six.png", "odd \udcff name.png"]
    flags = ["--json", "--plot", "seen.png", "--ckpt-path", checkpoint]
    finished = command("-m", "lit_mnist.predict", *flags, *names[:-1], cwd=tmp_path)
    assert finished.returncode == 2
    lines = finished.stderr.splitlines()
    assert len(lines) == len(said), finished.stderr
    for line, (name, says) in zip(lines, said.items(), strict=True):
        assert line.startswith(f"{name}: "), line
        assert says in line, line
    (six,) = json.loads(finished.stdout)
    assert (six["file"], six["label"]) == ("six.png", SIX)
    assert six["probability"] > 0.95
    assert six["runner_up"] != SIX
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.size[0] > 300


def test_folders_and_files_of_mnist_are_taken_as_they_are(
    tmp_path: Path, drawing: Image.Image, checkpoint: Path, data_dir: Path, command: Command
) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    drawing.save(tmp_path / "folder" / "below" / "six.PNG")
    (tmp_path / "folder" / "notes.txt").write_text("not looked at")
    images, _ = read_files(data_dir).test.tensors
    header = b"\0\0\x08\x03" + struct.pack(">III", 5, 28, 28)
    (tmp_path / "folder" / "five-images-idx3-ubyte").write_bytes(header + images[:5].numpy().tobytes())
    finished = command("-m", "lit_mnist.predict", tmp_path / "folder", "--ckpt_path", checkpoint)
    assert finished.returncode == 0, finished.stderr
    head, *rows = finished.stdout.splitlines()
    assert head.split() == ["label", "probability", "runner-up", "file"]
    expected = trained_model()(images[:5]).argmax(dim=1).tolist()
    assert [int(row.split()[0]) for row in rows] == [SIX, *expected]
    assert rows[-1].endswith("five-images-idx3-ubyte[4]")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "required: images"),
        (["six.png", ""], "an empty name"),
        (["six.png"], "no trained model below runs/; train one (python -m lit_mnist.train)"),
        (["six.png", "--plot", "seen.doc"], "no trained model"),
        (
            ["six.png", "--ckpt_path", "{checkpoint}", "--plot", "seen.doc"],
            "--plot seen.doc: expected a name that ends",
        ),
        (["six.png", "--ckpt_path", "{checkpoint}", "--plot", "no/seen.png"], "there is no such directory"),
        (["six.png", "--ckpt_path", "none.ckpt"], "none.ckpt: no such file"),
        (["six.png", "--ckpt_path", "."], ".: a directory without checkpoints"),
        (["--plt", "x"], "--plt: no such flag; did you mean --plot"),
    ],
)
def test_a_mistake_gets_one_line(
    words: list[str], says: str, tmp_path: Path, checkpoint: Path, command: Command
) -> None:
    given = [word.format(checkpoint=checkpoint) for word in words]
    finished = command("-m", "lit_mnist.predict", *given, cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (2, "")
    (line,) = finished.stderr.splitlines()
    assert says in line


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_bytes_a_picture_has_it_is_read_or_refused(data: st.DataObject) -> None:
    drawing = Image.fromarray(np.eye(12, dtype=np.uint8) * 255)
    content = io.BytesIO()
    drawing.save(content, data.draw(st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp"])))
    torn = bytearray(content.getvalue())
    for _ in range(data.draw(st.integers(0, 4))):
        torn[data.draw(st.integers(0, min(len(torn) - 1, 120)))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(torn)))
    path = Path(data.draw(st.just("/dev/shm/torn") if Path("/dev/shm").is_dir() else st.just("torn")))
    path.write_bytes(torn[:end] if data.draw(st.booleans()) else torn)
    try:
        with contextlib.suppress(InputError):
            preprocess(read_picture(path))
    finally:
        path.unlink()


@pytest.mark.parametrize("image", [np.zeros((0, 3)), np.zeros((2, 3, 4)), np.full((5, 5), np.nan), "missing.png"])
def test_what_is_no_picture_is_refused_in_python_too(image: object) -> None:
    with pytest.raises(InputError):
        preprocess(image)
