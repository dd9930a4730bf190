"""Turn a typed function into a command: flags from its signature, help from its docstring.

Light on purpose: `--help` and a mistyped flag are answered before torch or TensorFlow is imported.
"""

import functools
import inspect
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli
from jsonargparse.typing import restricted_number_type

if TYPE_CHECKING:
    FinitePositiveFloat = float
else:
    FinitePositiveFloat = restricted_number_type("FinitePositiveFloat", float, [(">", 0), ("<", float("inf"))])


class InputError(Exception):
    """A wrong flag, value or file: one line that says what was found, what was expected and what to do."""


class OneLineErrorParser(ArgumentParser):
    """An ArgumentParser that reports a mistake in one line, without the usage block above it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (--help lists all flags)\n")


def run(function: Callable[..., Any], prog: str) -> None:
    """Run `function` with the arguments of the command line; exit with 2 after an `InputError`.

    Args:
        function: its signature gives the flags and their defaults, its docstring the help.
        prog: how the command is called, as in "python -m lit_mnist.train".
    """

    @functools.wraps(function)
    def with_plain_numbers(**flags: Any) -> Any:
        return function(**{name: _plain(value) for name, value in flags.items()})

    description, _, _ = inspect.getdoc(function).partition("\n\nArgs:")  # type: ignore[union-attr]  # all have one
    try:
        auto_cli(
            with_plain_numbers,
            prog=prog,
            usage="%(prog)s [--flag value ...]",
            description=description,
            parser_class=OneLineErrorParser,
        )
    except InputError as error:
        sys.exit(_print_error(f"{prog}: error: {error}"))


def _plain(value: Any) -> Any:
    """Undo jsonargparse's PositiveInt and the like: pickled into a checkpoint, they would need it to be read."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return int(value) if isinstance(value, int) else float(value)


def _print_error(line: str) -> int:
    print(line, file=sys.stderr)
    return 2


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    line = re.sub(r'Parser key "(\w+)":', r"--\1:", line)
    line = re.sub(r"<class '(\w+)'>", r"\1", line).replace("typing.", "").replace("Got value", "Given value")
    line = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ", "", line)
    return re.sub(r"Given value type: \S+ ", "", line).replace(" - Expected a ", " or ").replace(" - ", ", ")
