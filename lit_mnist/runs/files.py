"""Files that are there as a whole or not at all, and what made them."""

import contextlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from lit_mnist.errors import InputError


def write_file(path: Path, content: bytes) -> None:
    """Write a file beside its place, sync it and rename it: it is there as a whole or not at all. Links are followed.

    Raises:
        OSError: of a full disk or a directory that cannot be written; it names `path`.
    """
    named, path = path, Path(os.path.realpath(path))
    beside = _beside(path)
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        if hasattr(os, "O_DIRECTORY"):  # not on Windows
            directory = os.open(path.parent, os.O_DIRECTORY)
            try:
                os.fsync(directory)  # the new name, too, survives a power cut
            finally:
                os.close(directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(named)) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def check_output(path: Path) -> None:
    """Make sure, before the work, that a file can be written.

    Raises:
        InputError: if it cannot.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: a directory; name a file")
        if path.exists() and not path.is_file():  # /dev/null, say, in whose place a file would be put
            raise InputError(f"{path}: a device or the like; name a file")
        _beside(path).exists()
    except OSError as error:  # a name that is too long
        raise InputError(f"{path}: {error.strerror}; name another file") from error
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no such directory; make it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"{path}: its directory cannot be written; name another")


def check_picture(path: str | None) -> None:
    """Make sure, before the work, that a picture can be written to `--plot`, if there is to be one.

    Raises:
        InputError: if it cannot.
    """
    if path is None:
        return
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path}: expected a name that ends with .png, .svg or .pdf")
    check_output(Path(path))


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of the named packages."""
    return {"python": platform.python_version()} | {package: version(package) for package in packages}
