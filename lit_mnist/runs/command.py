"""Turn a typed function into a command: flags from its signature, help from its docstring.

Light on purpose: `--help` and a mistyped flag are answered before torch or TensorFlow is imported.
"""

import atexit
import functools
import inspect
import io
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser, auto_cli
from jsonargparse.typing import restricted_number_type

from lit_mnist.runs.signals import Interruption, wait_if_ending

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


class InputError(Exception):
    """A wrong flag, value or file: one line that says what was found, what was expected and what to do."""


class OneLineErrorParser(ArgumentParser):
    """An ArgumentParser that reports a mistake in one line, without the usage block above it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (--help lists all flags)\n")


def run(function: Callable[..., Any], prog: str) -> None:
    """Run `function` with the arguments of the command line; exit with its code if it returns one, 2 if it is wrong.

    SIGTERM and Ctrl-C end it at once, with 143 and 130, unless it sees to them itself.

    Args:
        function: its signature gives the flags and their defaults, its docstring the help.
        prog: how the command is called, as in "python -m lit_mnist.train".
    """

    types = get_type_hints(function)

    @functools.wraps(function)
    def with_plain_numbers(**flags: Any) -> Any:
        for name, value in flags.items():  # in a file, jsonargparse takes null for anything
            if value is None and type(None) not in get_args(types[name]):
                raise InputError(f"--{name} null: expected a value; leave it out for the default")
            if isinstance(value, str) and not _is_text(value):
                raise InputError(f"--{name} {value!r}: expected a text in UTF-8, without NUL")
        return function(**{name: _plain(value) for name, value in flags.items()})

    Interruption().listen()
    _ignore_environment()
    atexit.register(_leave_process_group)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show is no reason to fail
    description, _, _ = inspect.getdoc(function).partition("\n\nArgs:")  # type: ignore[union-attr]  # all have one
    try:
        result = auto_cli(
            with_plain_numbers,
            prog=prog,
            usage="%(prog)s [--flag value ...]",
            description=description,
            as_positional=False,
            allow_abbrev=False,
            parser_class=OneLineErrorParser,
        )
    except (InputError, UnicodeDecodeError) as error:  # the latter from a --config that is not text
        wait_if_ending()
        print(f"{prog}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a directory that has vanished
        wait_if_ending()
        print(f"{prog}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except BaseException:
        wait_if_ending()
        raise
    if isinstance(result, int):
        sys.exit(result)


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


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    line = re.sub(r'Parser key "(\w+)":', r"--\1:", line)
    line = re.sub(r"Not of type \w+: (\S+ )?does not conform to restriction", r"\1is out of range, expected", line)
    line = re.sub(r"Not of type \w+: invalid literal for int\(\) with base 10:", "expected a whole number, got", line)
    line = re.sub(r"Not of type \w+: could not convert string to float:", "expected a number, got", line)
    line = re.sub(r"<class '(\w+)'>", r"\1", line).replace("typing.", "").replace("Got value", "Given value")
    line = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ", "", line)
    line = re.sub(r"Given value type: \S+ ", "", line).replace(" - Expected a ", " or ").replace(" - ", ", ")
    line = re.sub(r"\.? Given value: ", ", given ", line)
    return line if len(line) < 1_000 else f"{line[:1_000]} ..."
