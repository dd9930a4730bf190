"""Turn a typed function into a command: flags from its signature, help from its docstring.

Light on purpose: `--help` and a mistyped flag are answered before torch or TensorFlow is imported.
"""

import atexit
import functools
import inspect
import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser, auto_cli
from jsonargparse.typing import restricted_number_type

from lit_mnist.errors import InputError
from lit_mnist.runs.signals import SignalHandler, StoppedError

if TYPE_CHECKING:
    BatchSize = int
    Devices = int
    LearningRate = float
    Seed = int
    Seconds = int
else:
    BatchSize = restricted_number_type("BatchSize", int, [(">", 0), ("<=", 10**6)])
    Devices = restricted_number_type("Devices", int, [(">", 0), ("<=", 10**4)])
    LearningRate = restricted_number_type("LearningRate", float, [(">", 0), ("<=", 1e6)])
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])  # what NumPy's and torch's generators take
    Seconds = restricted_number_type("Seconds", int, [(">", 0), ("<=", 10**7)])  # what C++ can count in nanoseconds


class OneLineErrorParser(ArgumentParser):
    """An ArgumentParser that reports a mistake in one line, without the usage block above it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split())
        line = line if len(line) < 1_000 else f"{line[:1_000]} ..."
        self.exit(2, f"{self.prog}: error: {line} (--help lists all flags)\n")

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse_args(*args, **kwargs)
        except Exception as error:  # of a --config: no text, a tag that YAML does not know, a number of 5,000 digits
            self.error(f"{type(error).__name__}: {error}", error)


def run(function: Callable[..., Any], prog: str, tell_parent: Callable[[Exception], bool] = lambda _: False) -> None:
    """Run `function` with the arguments of the command line; exit with its code if it returns one, 2 if it is wrong.

    SIGTERM and Ctrl-C end it at once, with 143 and 130, unless it sees to them itself.

    Args:
        function: its signature gives the flags and their defaults, its docstring the help.
        prog: how the command is called, as in "python -m lit_mnist.train".
        tell_parent: is given what goes wrong; returns whether somebody else tells the user.
    """
    _ignore_environment()
    atexit.register(_leave_process_group)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show is no reason to fail
    description, _, _ = inspect.getdoc(function).partition("\n\nArgs:")  # type: ignore[union-attr]  # all have one
    with SignalHandler():
        try:
            result = auto_cli(
                _with_plain_values(function),
                prog=prog,
                usage="%(prog)s [--flag value ...]",
                description=description,
                as_positional=False,
                allow_abbrev=False,
                parser_class=OneLineErrorParser,
            )
        except StoppedError as stopped:
            _exit(stopped.exit_code, "" if tell_parent(stopped) else str(stopped))
        except InputError as error:
            line = " ".join(error.as_flags.splitlines())
            _exit(2, "" if tell_parent(InputError(line)) else f"{prog}: error: {line}\n")
        except OSError as error:  # a full disk, a directory that has vanished, a process that was lost
            _exit(1, "" if tell_parent(error) else f"{prog}: error: {error}\n")
        except Exception as error:
            if tell_parent(error):
                sys.exit(1)
            raise
    if isinstance(result, int):
        sys.exit(result)


def _exit(code: int, text: str) -> NoReturn:
    sys.stderr.write(text)
    sys.exit(code)


def _with_plain_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function; what a --config may hold and a flag may not is refused, numbers are plain ones."""
    types = get_type_hints(function)

    @functools.wraps(function)
    def checked(**flags: Any) -> Any:
        for name, value in flags.items():
            if value is None and type(None) not in get_args(types[name]):
                raise InputError(f"--{name} null: expected a value; leave it out for the default")
            if isinstance(value, str) and not _is_text(value):
                raise InputError(f"--{name} {value!r}: expected a text in UTF-8, without NUL")
        return function(**{name: _plain(value) for name, value in flags.items()})

    return checked


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:  # bytes of a path that are no UTF-8; a YAML file could not hold them
        return False


def _plain(value: Any) -> Any:
    """Undo jsonargparse's PositiveInt and the like: pickled into a checkpoint, they would need it to be read."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return int(value) if isinstance(value, int) else float(value)


def _ignore_environment() -> None:
    """Forget the variables that would change what a command does without a flag of it saying so."""
    for name in [name for name in os.environ if name.startswith("PL_TRAINER_")]:  # defaults for Lightning's Trainer
        del os.environ[name]
    os.environ["MPLBACKEND"] = "agg"  # figures are files here, and a wrong name stops the import


def _leave_process_group() -> None:
    """End gloo's threads while the interpreter is whole: later, one of them may abort the process (pytorch#190489)."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
