"""Help, and what a user is told who got something wrong."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
from commands import Forked
from conftest import Command

from keras_ref.parity.__main__ import parity
from keras_ref.record import record
from keras_ref.train import train as theirs_train
from lit_mnist.errors import InputError
from lit_mnist.evaluate import evaluate
from lit_mnist.export import export
from lit_mnist.predict import predict
from lit_mnist.runs.command import arguments, in_words
from lit_mnist.trace.__main__ import trace
from lit_mnist.train import train

# Only macOS has MPS; CUDA devices are hidden from the commands below.
LACKING = (
    [] if sys.platform == "darwin" else [(["--accelerator", name], f"--accelerator {name} ") for name in ("gpu", "mps")]
)
COMMANDS = ["lit_mnist.train", "keras_ref.train"]


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        *((module, flags) for module in COMMANDS for flags in (["--help"], ["--no_such_flag"], ["--batch_size", "0"])),
        *(
            (module, flags)
            for module in ("lit_mnist.evaluate", "lit_mnist.predict", "lit_mnist.export", "keras_ref.benchmark")
            for flags in (["--help"], ["--x"])
        ),
    ],
)
def test_help_and_wrong_flags_are_answered_before_a_framework_is_imported(
    module: str, flags: list[str], command: Command
) -> None:
    finished = command("-X", "importtime", "-m", module, *flags)
    assert finished.returncode == (0 if flags == ["--help"] else 2)
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "jsonargparse" in imported
    assert not imported & {"torch", "lightning", "tensorflow", "keras", "matplotlib"}


@pytest.mark.parametrize("lines", [1, 10_000])  # what is written at the end, and before
def test_output_that_nobody_reads_on_ends_a_command_without_a_word(lines: int) -> None:
    code = f"""
from lit_mnist.runs.command import run
def chatter():
    "Print lines."
    for _ in range({lines}):
        print("line")
run(chatter, prog="chatter")
"""
    reader, writer = os.pipe()
    os.close(reader)
    finished = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (finished.returncode, finished.stderr) == (1, b"")


def test_importing_the_packages_is_light(command: Command) -> None:
    code = "import sys, lit_mnist, keras_ref; sys.exit(bool({'torch', 'tensorflow', 'numpy'} & set(sys.modules)))"
    assert command("-c", code).returncode == 0


def test_the_package_offers_its_classes_by_name() -> None:
    import lit_mnist

    assert {name: getattr(lit_mnist, name).__name__ for name in lit_mnist.__all__ if name != "__version__"} == {
        name: name for name in lit_mnist.__all__ if name != "__version__"
    }
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lit_mnist.no_such_name


@pytest.mark.parametrize("module", COMMANDS)
def test_help_describes_every_flag_with_its_default(module: str, command: Command) -> None:
    text = " ".join(command("-m", module, "--help", COLUMNS="200").stdout.split())
    for flag in ("--max_epochs", "--batch_size", "--learning_rate", "--seed", "--data_dir", "--output_dir"):
        assert flag in text
    assert "Images in a step" in text
    assert "(a whole number from 1 to 1,000,000; default: 100)" in text
    assert "--config" in text


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("--max-epochs 3 --batch-size=7", ["--max_epochs=3", "--batch_size=7"]),
        ("--fast-dev-run --seed 3", ["--fast_dev_run=true", "--seed=3"]),
        ("--seed 3 --verify_data false --deterministic", ["--seed=3", "--verify_data=false", "--deterministic=true"]),
        ("--run_name=a=b --learning_rate 1e-3", ["--run_name=a=b", "--learning_rate=1e-3"]),
        ("--limit_train_batches 0.5 --devices auto", ["--limit_train_batches=0.5", "--devices=auto"]),
        ("--resume null --output-dir a-b", ["--resume=null", "--output_dir=a-b"]),
        ("-h --print_config --print_config=skip_default", ["--help", "--print_config", "--print_config=skip_default"]),
    ],
)
def test_flags_are_taken_as_people_type_them(words: str, taken: list[str]) -> None:
    assert list(arguments(words.split(), get_type_hints(train))) == taken


@pytest.mark.parametrize("place", [0, 2])
def test_flags_go_before_a_file_of_flags_wherever_they_stand(place: int, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("max_epochs: 7\nbatch_size: 50")
    words = ["--max_epochs", "3"]
    words[place:place] = ["--config", str(file)]
    printed = command("-m", "lit_mnist.train", *words, "--print_config").stdout.splitlines()
    assert {"max_epochs: 3", "batch_size: 50"} <= set(printed)


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ("a.png --json b.png", ["--json=true", '--images=["a.png", "b.png"]']),
        ("--json false a.png", ["--json=false", '--images=["a.png"]']),
        ("--plot p.png a.png -- --b.png", ["--plot=p.png", '--images=["a.png", "--b.png"]']),
    ],
)
def test_words_without_a_flag_are_images(words: str, taken: list[str]) -> None:
    assert list(arguments(words.split(), get_type_hints(predict), positional="images")) == taken


@pytest.mark.parametrize("function", [train, theirs_train])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-epoch", "1"], "--max_epoch: no such flag; did you mean --max_epochs"),
        (["--lr=1"], "--lr: no such flag; did you mean --learning_rate"),
        (["--nonsense", "1"], "--nonsense: no such flag; --help lists all flags"),
        (["--max-epochs", "three"], "--max_epochs three: expected a whole number from 1 up"),
        (["--seed"], "--seed: a value is missing; expected a whole number from 0 to 4,294,967,295"),
        (["--config"], "--config: a value is missing; expected the path of a file"),
        (["--no-verify-data"], "--no_verify_data: no such flag; did you mean --verify_data false"),
        (["--batch_size", "-3"], "batch_size.*-3"),
        (["--batch_size", "many"], "batch_size.*many"),
        (["--learning_rate", "nan"], "learning_rate.*nan"),
        (["--learning_rate", "inf"], "learning_rate.*inf"),
        (["--seed", "-1"], "seed.*-1"),
        (["--verify_data", "perhaps"], "verify_data.*perhaps"),
        (["--epochs", "3"], "--epochs"),
        (["--seed", str(2**32)], "seed.*4294967296"),
        (["--learning_rate", "1e300"], "learning_rate.*1e300"),
    ],
)
def test_a_wrong_flag_or_value_is_named(function: Callable[..., object], words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        list(arguments(words, get_type_hints(function)))


def test_types_are_named_in_words() -> None:
    types = get_type_hints(train)
    assert in_words(types["precision"]) == "32-true, 64-true, 16-mixed, bf16-mixed or bf16-true"
    assert in_words(types["limit_train_batches"]) == "a whole number from 1 up or a share between 0 and 1"
    for function in (train, evaluate, predict, export, parity, trace, record):
        assert all(in_words(annotation) for name, annotation in get_type_hints(function).items() if name != "return")


@pytest.mark.parametrize(
    ("package", "commands"),
    [
        ("lit_mnist", [f"lit_mnist.{name}" for name in ("evaluate", "export", "predict", "trace", "train")]),
        ("keras_ref", [f"keras_ref.{name}" for name in ("benchmark", "parity", "record", "trace", "train")]),
    ],
)
def test_a_package_lists_its_commands(package: str, commands: list[str], command: Command) -> None:
    rows = [line for line in command("-m", package).stdout.splitlines() if line.startswith("  python -m ")]
    assert [row.split()[2] for row in rows] == commands
    finished = command("-m", package, "train")
    assert (finished.returncode, len(finished.stderr.splitlines())) == (2, 1)
    assert f"train: expected none; a command is python -m {package}.COMMAND" in finished.stderr


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--max_epochs", "0"], "max_epochs.*0"),
        (["stray"], "stray"),
        (["--config", "missing.yaml"], "--config missing.yaml: no such file"),
        (["--see", "1"], "--see: no such flag; did you mean --seed"),
        (["--config", "wrong.yaml"], "wrong.yaml: batch_size is many, expected a whole number from 1 to 1,000,000"),
        (["--config", "unknown.yaml"], "unknown.yaml: epochs: no such flag; did you mean --max_epochs"),
        (["--config", "nested.yaml"], "nested.yaml: config: a file of flags cannot name another one"),
        (["--config", "binary.yaml"], "utf-8"),
        (["--config", "open.yaml"], "--config open.yaml: no YAML .*expected"),
        (["--run_name", "a/b"], "--run_name 'a/b': expected up to 100 letters"),
        (["--run_name", ".."], "--run_name"),
        (["--run_name", ""], "--run_name"),
        (["--run_name", "a::b"], "--run_name"),
        (["--run_name", "[red]{x}"], "--run_name"),
        (["--run_name", "x" * 300], "--run_name"),
        (["--output_dir", "a::b"], "--output_dir a::b"),
        (["--run_name", "taken"], "taken: exists already; choose another --run_name"),
        (["--output_dir", "a_file"], "--output_dir a_file"),
        (["--data_dir", "a_file"], "a_file"),
        (["--config", "nul.yaml"], "--output_dir .*without NUL"),
        (["--config", "tagged.yaml"], "invalid literal for int.*'x'"),
        (["--config", "digits.yaml"], "Exceeds the limit"),
        (["--config", "null.yaml"], "--seed null: expected a value"),
        (["--output_dir", "o\udcff"], "--output_dir .*in UTF-8"),
        (["--batch_size", "1" + "0" * 30], "--batch_size 10{30}: expected a whole number from 1 to 1,000,000"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(module: str, flags: list[str], says: str, tmp_path: Path) -> None:
    check_refused(module, flags, says, tmp_path)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--accelerator", "quantum"], "--accelerator quantum: expected auto, cpu, gpu or mps"),
        *LACKING,
        (["--devices", "0"], "devices.*0"),
        (["--devices", "-1"], "devices.*-1"),
        (["--devices", "1" + "0" * 30], "--devices 10{30}: expected a whole number from 1 to 10,000 or auto"),
        (["--accelerator", "cpu", "--precision", "16-mixed"], "--precision 16-mixed: cpu has bf16-mixed"),
        (["--devices", "x"], "--devices x: expected a whole number from 1 to 10,000 or auto"),
        (["--strategy", "magic"], "--strategy magic: expected auto or ddp"),
        (["--precision", "8"], "--precision 8: expected 32-true, .* or bf16-true"),
        (["--logger", "paper"], "--logger paper: expected csv, tensorboard, mlflow, wandb or none"),
        (["--validation_images", "60000"], "--validation_images 60000"),
        (["--limit_train_batches", "1.5"], r"limit_train_batches.*1\.5"),
        (["--accelerator", "cpu", "--devices", "3"], "do not divide among 3 devices"),
        (["--timeout", "100000000000000"], "--timeout 10{14}: expected a whole number from 1 to 10,000,000"),
        (["--run_name", "x", "--resume", "a" * 300], "--resume a+: File name too long"),
    ],
)
def test_a_mistake_with_a_flag_of_the_port_gets_one_line(flags: list[str], says: str, tmp_path: Path) -> None:
    check_refused("lit_mnist.train", flags, says, tmp_path)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"MASTER_PORT": "99999"}, "MASTER_PORT='99999' in the environment: expected a number from 0 to 65535"),
        ({"LOCAL_RANK": "abc"}, "LOCAL_RANK='abc'"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE='0' in the environment: expected a number from 1"),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "x"}, "set `--ntasks=2` in your SLURM bash script"),
        ({"TORCHELASTIC_RUN_ID": "none"}, "RANK is not in the environment"),
        ({"NODE_RANK": "1"}, "NODE_RANK=1 in the environment: expected less than --num_nodes"),
    ],
)
def test_what_is_left_over_in_the_environment_is_named(environment: dict[str, str], says: str, tmp_path: Path) -> None:
    flags = ["--accelerator", "cpu", "--devices", "2"]
    check_refused("lit_mnist.train", flags, says, tmp_path, **environment)


def check_refused(module: str, flags: list[str], says: str, directory: Path, **environment: str) -> None:
    (directory / "runs" / "taken").mkdir(parents=True)
    (directory / "a_file").touch()
    (directory / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (directory / "open.yaml").write_text("max_epochs: [1")
    (directory / "nul.yaml").write_text('output_dir: "a\\0b"')
    (directory / "null.yaml").write_text("seed: null")
    (directory / "tagged.yaml").write_text('seed: !!int "x"')
    (directory / "wrong.yaml").write_text("batch_size: many")
    (directory / "nested.yaml").write_text("config: other.yaml")
    (directory / "unknown.yaml").write_text("epochs: 3")
    (directory / "digits.yaml").write_text("seed: 1" + "0" * 5_000)
    (directory / "keras.py").write_text("raise RuntimeError('Keras was imported')")  # which takes longer than to refuse
    finished = Forked([module, *flags], directory, CUDA_VISIBLE_DEVICES="", **environment).finish()
    assert finished.returncode == 2, finished.stderr
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"python -m {module}: error: ")
    assert re.search(says, line), line
    assert [path.name for path in (directory / "runs").iterdir()] == ["taken"]
    assert (directory / "a_file").read_bytes() == b""


def test_without_tensorflow_the_original_says_what_to_install(tmp_path: Path, command: Command) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ModuleNotFoundError(\"No module named 'tensorflow'\")")
    finished = command("-m", "keras_ref.train", "--output_dir", tmp_path / "runs", PYTHONPATH=str(tmp_path))
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert 'pip install -e ".[keras]"' in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "nothing to record"),
        (["--mutants", "1", "--only", "[NoSuch]"], r"--only \['NoSuch'\]: no wrong port NoSuch"),
        (["--port", "1", "--output", "none/recorded.json"], "none/recorded.json: there is no such directory"),
        (["--port", "1", "--output", "a_file"], "a_file: .*name a file that this command has written"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_any_training(flags: list[str], says: str, tmp_path: Path) -> None:
    check_refused("keras_ref.record", flags, says, tmp_path)


def test_a_command_that_is_done_ends_without_taking_its_libraries_down(command: Command) -> None:
    code = (
        "import atexit, sys\n"
        "from lit_mnist.runs.command import run\n"
        "class Library:\n"
        "    def __del__(self): print('taken down')\n"
        "library = Library()\n"
        "def work(code: int = 0) -> int:\n"
        '    """Work.\n\n    Args:\n        code: to exit with.\n    """\n'
        "    atexit.register(print, 'written')\n"
        "    sys.stdout.write('done ')\n"
        "    return code\n"
        "sys.argv[1:] = ['--code', CODE]\n"
        "run(work, 'work')\n"
    )
    for exit_code in ("0", "3"):
        finished = command("-c", code.replace("CODE", repr(exit_code)))
        assert (finished.returncode, finished.stdout) == (int(exit_code), "done written\n"), finished.stderr
