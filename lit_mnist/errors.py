"""The one exception that becomes one line and exit code 2."""


class InputError(Exception):
    """A wrong flag, value or file: one line that says what was found, what was expected and what to do."""
