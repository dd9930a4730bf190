"""The one exception that becomes one line and exit code 2."""

from typing import Any


class InputError(Exception):
    """A wrong value or file: one line that says what was found, what was expected and what to do.

    Args:
        text: the line.
        arguments: that it is about, by name. They are put before it: "batch_size=7: ...", or as the flags of a command.
    """

    def __init__(self, text: str, **arguments: Any) -> None:
        super().__init__(_line(", ".join(f"{name}={value!r}" for name, value in arguments.items()), text))
        self.as_flags = _line(" ".join(f"--{name} {value}" for name, value in arguments.items()), text)


def _line(arguments: str, text: str) -> str:
    return f"{arguments}: {text}" if arguments else text
