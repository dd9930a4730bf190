"""Turn a typed function into a command: flags from its signature, help from its docstring.

Light on purpose: `--help` and a mistyped flag are answered before torch or TensorFlow is imported.
"""

import argparse
import ast
import atexit
import difflib
import functools
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, auto_cli
from jsonargparse.typing import restricted_number_type

from lit_mnist.errors import InputError
from lit_mnist.runs.signals import SignalHandler, StoppedError

IN_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list[int]: "whole numbers, as in [1,2,5]",
    list[str]: "names, as in [a,b]",
    NoneType: "null",
}


def _number(name: str, base: type, words: str, *limits: tuple[str, float]) -> Any:
    """Make a type of numbers within limits, and say in words which those are."""
    restricted = restricted_number_type(name, base, list(limits))
    IN_WORDS[restricted] = words
    return restricted


if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    BatchSize = int
    Devices = int
    Seed = int
    Seconds = int
    LearningRate = float
    Share = float
else:
    PositiveInt = _number("PositiveInt", int, "a whole number from 1 up", (">", 0))
    NonNegativeInt = _number("NonNegativeInt", int, "a whole number from 0 up", (">=", 0))
    BatchSize = _number("BatchSize", int, "a whole number from 1 to 1,000,000", (">", 0), ("<=", 10**6))
    Devices = _number("Devices", int, "a whole number from 1 to 10,000", (">", 0), ("<=", 10**4))
    # What NumPy's and torch's generators take.
    Seed = _number("Seed", int, "a whole number from 0 to 4,294,967,295", (">=", 0), ("<", 2**32))
    LearningRate = _number("LearningRate", float, "a number above 0, at most 1,000,000", (">", 0), ("<=", 1e6))
    # What C++ can count in nanoseconds.
    Seconds = _number("Seconds", int, "a whole number from 1 to 10,000,000", (">", 0), ("<=", 10**7))
    Share = _number("OpenUnitInterval", float, "a share between 0 and 1", (">", 0), ("<", 1))

# What other programs call the same.
SYNONYMS = {
    "lr": "learning_rate",
    "epochs": "max_epochs",
    "gpus": "devices",
    "workers": "devices",
    "batch": "batch_size",
    "ckpt_path": "resume",
    "ckpt": "resume",
    "checkpoint": "ckpt_path",
    "out": "output",
    "file": "output",
    "name": "run_name",
    "model": "candidate",
}


class OneLineErrorParser(ArgumentParser):
    """An ArgumentParser that reports a mistake in one line, and says in words what a flag takes.

    Attributes:
        types: of the flags, by name.
    """

    types: Mapping[str, Any] = {}

    def add_argument(self, *flags: str, **options: Any) -> Any:
        if flags[0] == "--config":
            options["help"] = "A file of flags, in YAML; those of the command line go before it, wherever they stand."
        annotation = self.types.get(flags[0].removeprefix("--"))
        if annotation is not None:
            default = options.get("default")
            shown_by_argparse = get_origin(annotation) is Literal or annotation is bool  # in braces, behind the flag
            takes = [] if shown_by_argparse or annotation in (str, str | None) else [in_words(annotation)]
            if options.get("required"):
                takes.append("required")
            if default is not None:
                takes.append(f"default: {str(default).lower() if isinstance(default, bool) else default}")
            options["help"] = f"{options['help']} ({'; '.join(takes)})" if takes else options["help"]
        return super().add_argument(*flags, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split())
        line = line if len(line) < 1_000 else f"{line[:1_000]} ..."
        self.exit(2, f"{self.prog}: error: {line} (--help lists all flags)\n")

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().parse_args(*args, **kwargs)
        except Exception as error:  # of a --config: no text, a tag that YAML does not know, a number of 5,000 digits
            self.error(f"{type(error).__name__}: {error}", error)


def run(
    function: Callable[..., Any],
    prog: str,
    tell_parent: Callable[[Exception], bool] = lambda _: False,
    positional: str | None = None,
) -> None:
    """Run `function` with the arguments of the command line; exit with its code if it returns one, 2 if it is wrong.

    Flags go before those of a --config, wherever they stand. SIGTERM and Ctrl-C end the command at once, with 143 and
    130, unless `function` sees to them itself; so does, with 1 and without a word, a standard output that nobody reads
    on, as in `| head`. A process that is the command's own ends with it, see `_end_process`.

    Args:
        function: its signature gives the flags and their defaults, its docstring the help.
        prog: how the command is called, as in "python -m lit_mnist.train".
        tell_parent: is given what goes wrong; returns whether somebody else tells the user.
        positional: name of the argument, a list of texts, that takes the words which belong to no flag.
    """
    _ignore_environment()
    codes: list[int] = []
    if function.__module__ == "__main__":  # else the process is somebody else's, a test runner's, say
        atexit.register(_end_process, codes)  # first, which makes it the last to be called
    atexit.register(_leave_process_group)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show is no reason to fail
    description, _, _ = inspect.getdoc(function).partition("\n\nArgs:")  # type: ignore[union-attr]  # all have one
    types = get_type_hints(function)
    with SignalHandler():
        try:
            # jsonargparse lets a file win over the flags in front of it.
            words = sorted(
                arguments(sys.argv[1:], types, positional), key=lambda word: not word.startswith("--config=")
            )
            result = auto_cli(
                _with_plain_values(function),
                args=words,
                prog=prog,
                usage="%(prog)s " + (f"{positional.upper()} ... " if positional else "") + "[--flag value ...]",
                description=description,
                as_positional=False,
                allow_abbrev=False,
                parser_class=type("Parser", (OneLineErrorParser,), {"types": types}),
                formatter_class=argparse.HelpFormatter,
            )
            sys.stdout.flush()
        except StoppedError as stopped:
            _exit(stopped.exit_code, "" if tell_parent(stopped) else str(stopped))
        except InputError as error:
            line = " ".join(error.as_flags.splitlines())
            _exit(2, "" if tell_parent(InputError(line)) else f"{prog}: error: {line}\n")
        except OSError as error:  # a full disk, a directory that has vanished, a process that was lost
            _exit(1, "" if _nobody_reads(error) or tell_parent(error) else f"{prog}: error: {error}\n")
        except Exception as error:
            if tell_parent(error):
                sys.exit(1)
            raise
    code = result if isinstance(result, int) else 0
    codes.append(code)
    if code:
        sys.exit(code)


def with_code_2(function: Callable[..., int]) -> Callable[..., int]:
    """Return the same function for `run`, whose exit code 1 is a verdict: what the system refuses could not be run."""

    @functools.wraps(function)
    def command(*flags: Any, **named_flags: Any) -> int:
        try:
            return function(*flags, **named_flags)
        except OSError as error:
            raise InputError(str(error)) from error

    return command


def arguments(words: list[str], types: Mapping[str, Any], positional: str | None = None) -> Iterator[str]:
    """Return the words of a command line as jsonargparse takes them: `--flag=value` or, of its own flags, `--flag`.

    Dashes within a flag stand for underscores, and a switch without a value for true.

    Args:
        words: of the command line.
        types: of the flags, by name.
        positional: of the flag that takes the words which belong to none; -- makes all that follow such words.

    Raises:
        InputError: names the first flag that there is not, or whose value is not one of its type.
    """
    waiting = list(words)
    collected: list[str] = []
    while waiting:
        word = waiting.pop(0)
        if word == "-h":
            word = "--help"
        if positional and word == "--":
            collected += waiting
            break
        if positional and not word.startswith("--"):
            collected.append(word)
            continue
        if not word.startswith("--"):
            raise InputError(f"{word}: expected a flag, which begins with --; --help lists all flags")
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name in ("help", "print_config"):
            yield f"--{name}{equals}{value}"
            continue
        _check_name(name, types)
        bare_switch = positional is not None and types.get(name) is bool and waiting[:1] not in (["true"], ["false"])
        if not equals and waiting and not waiting[0].startswith("--") and not bare_switch:
            value = waiting.pop(0)
            if list[str] in (types.get(name), *get_args(types.get(name))) and not value.startswith("["):
                value = json.dumps([value, *_values(waiting)])
        elif not equals and types.get(name) is bool:
            value = "true"
        elif not equals:
            expected = in_words(types[name]) if name in types else "the path of a file of flags"
            raise InputError(f"--{name}: a value is missing; expected {expected}")
        if name == "config":
            _check_config(Path(value), types)
        elif not _fits(types[name], f"--x={value}"):
            raise InputError(f"--{name} {_short(value)}: expected {in_words(types[name])}")
        yield f"--{name}={value}"
    if collected:
        yield f"--{positional}={json.dumps(collected)}"


def _values(waiting: list[str]) -> Iterator[str]:
    """Take the words up to the next flag away: more values of one that takes several."""
    while waiting and not waiting[0].startswith("--"):
        yield waiting.pop(0)


def in_words(annotation: Any) -> str:
    """Say which values a type has."""
    if annotation in IN_WORDS:
        return IN_WORDS[annotation]
    if get_origin(annotation) is Literal:
        *others, last = get_args(annotation)
        return f"{', '.join(others)} or {last}" if others else str(last)
    parts = [in_words(part) for part in get_args(annotation) if part is not NoneType]
    return " or ".join(parts)


def check_installed(flag: str, extra: str, *packages: str) -> None:
    """Make sure, before the work, that the packages are installed that a flag needs.

    Raises:
        InputError: if one is not; it says how to install it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f'{flag}: {package} is not installed; pip install -e ".[{extra}]"')


def percent(probability: float) -> str:
    """Return a probability as people read it; what is not certain is never called 100%."""
    return ">99.9%" if probability > 0.9995 else f"{probability:.1%}"


def list_commands(package: str) -> None:
    """Print the commands of a package, each with what its module says of it; exit with 2 if there are arguments."""
    if sys.argv[1:] not in ([], ["-h"], ["--help"]):
        what = " ".join(sys.argv[1:])
        _exit(2, f"python -m {package}: error: {what}: expected none; a command is python -m {package}.COMMAND\n")
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (directory,) = spec.submodule_search_locations
    print(f"Commands of {package}; each explains its flags with --help:\n")
    for path in sorted(Path(directory).rglob("*.py")):
        line = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        if line.startswith("python -m "):
            command, _, what = line.partition(": ")
            print(f"  {command:<32}  {what}")


def _check_name(name: str, types: Mapping[str, Any], where: str = "--") -> None:
    if name in types or name == "config":
        return
    near = SYNONYMS.get(name)
    if near not in types:
        (near,) = difflib.get_close_matches(name, types, n=1, cutoff=0.7) or [None]
    if types.get(name.removeprefix("no_")) is bool:
        near = f"{name.removeprefix('no_')} false"
    hint = f"did you mean --{near}?" if near else "--help lists all flags"
    raise InputError(f"{where}{name}: no such flag; {hint}")


def _check_config(path: Path, types: Mapping[str, Any]) -> None:
    """Look at the values of a file of flags, as far as it can be read; of what cannot, jsonargparse says why."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"--config {path}: no such file") from None
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: no YAML ({' '.join(str(error).split())})") from None
    except Exception:  # it says so in a line of its own
        return
    for name, value in values.items() if isinstance(values, dict) else ():
        if name == "config":
            raise InputError(f"{path}: config: a file of flags cannot name another one")
        _check_name(str(name), types, f"{path}: ")
        if value is not None and not _fits(types[name], {"x": value}):
            raise InputError(f"{path}: {name} is {_short(value)}, expected {in_words(types[name])}")


def _fits(annotation: Any, value: str | dict[str, Any]) -> bool:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=annotation)
    try:
        parser.parse_args([value]) if isinstance(value, str) else parser.parse_object(value)
    except (ArgumentError, TypeError, ValueError, KeyError):
        return False
    return True


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) < 100 else f"{text[:100]} ..."


def _exit(code: int, text: str) -> NoReturn:
    sys.stderr.write(text)
    sys.exit(code)


def _nobody_reads(error: OSError) -> bool:
    """Say whether the error is that nobody reads standard output any more, and not that another process was lost."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would say so once more at its end
        return True
    return False


def _with_plain_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function; what a --config may hold and a flag may not is refused, numbers are plain ones."""
    types = get_type_hints(function)

    @functools.wraps(function)
    def checked(**flags: Any) -> Any:
        for name, value in flags.items():
            if value is None and type(None) not in get_args(types[name]):
                raise InputError(f"--{name} null: expected a value; leave it out for the default")
            texts = value if isinstance(value, list) else [value]
            if not all(_is_text(text) for text in texts if isinstance(text, str)):
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


def _end_process(codes: list[int]) -> None:
    """End a process whose work is done (`codes` holds its exit code) and leave its memory to the system.

    Taking down torch and its libraries would cost a tenth of the peak memory and a second or more, for nothing. Threads
    have ended by now, and all exit functions that were registered since the command began, so that what they write is
    written; those of before, as of a sitecustomize, are not called.
    """
    if codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(codes[0])


def _leave_process_group() -> None:
    """End gloo's threads while the interpreter is whole: later, one of them may abort the process (pytorch#190489)."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
