"""Which room may import which, read from the imports themselves, those inside functions too."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORMAT = "lit_mnist.trace.files"
ARRAYS = "lit_mnist.trace.arrays"
FRAMEWORKS = "lit_mnist.trace.frameworks"
# Beside the port's files; they may look at `runs`, too, and so may what the last three load a trained model with.
COMMANDS = {"lit_mnist.train", "lit_mnist.evaluate", "lit_mnist.predict", "lit_mnist.export", "lit_mnist.__main__"}
LOADING = "lit_mnist.load"
ROOMS = {  # the most particular name first: (may import of this project, libraries it never loads)
    FORMAT: (("lit_mnist.errors", "lit_mnist.runs.files"), ("torch", "lightning", "tensorflow", "keras")),
    FRAMEWORKS: ((), ("torch", "lightning", "tensorflow", "keras")),
    ARRAYS: (("lit_mnist.errors", FORMAT), ("torch", "lightning", "tensorflow", "keras")),
    "lit_mnist.runs": (("lit_mnist.errors", "lit_mnist.runs"), ("tensorflow", "keras")),
    "lit_mnist.trace": (("lit_mnist",), ("tensorflow", "keras")),
    "lit_mnist.benchmark": (("lit_mnist",), ("tensorflow", "keras")),
    "lit_mnist": (("lit_mnist",), ("tensorflow", "keras")),
    "keras_ref.trace": (
        ("keras_ref", "lit_mnist.errors", "lit_mnist.runs", FORMAT, ARRAYS, FRAMEWORKS),
        ("torch", "lightning"),
    ),
    "keras_ref.parity": (
        ("keras_ref.parity", "lit_mnist.errors", "lit_mnist.runs", FORMAT),
        ("torch", "lightning", "tensorflow", "keras"),
    ),
    "keras_ref.record": (("keras_ref.parity", "lit_mnist.errors", "lit_mnist.runs", FORMAT), ()),
    "keras_ref": (("keras_ref", "lit_mnist.errors", "lit_mnist.runs"), ("torch", "lightning")),
}


def below(name: str, packages: tuple[str, ...] | set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imports(path)
    for package in ("lit_mnist", "keras_ref")
    for path in (ROOT / package).rglob("*.py")
}


def reached(module: str) -> set[str]:
    """Everything that a module imports, by way of this project's other modules, too."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for name in MODULES[waiting.pop()] - seen:
            seen.add(name)
            waiting += [other for other in MODULES if below(name, {other}) and other.count(".")]
    return seen


def test_every_room_imports_what_it_may() -> None:
    wrong = []
    for module, names in MODULES.items():
        room = next(room for room in ROOMS if below(module, {room}))
        allowed, never = ROOMS[room]
        own = {name for name in names if below(name, {"lit_mnist", "keras_ref"})}
        wrong += [(module, name) for name in own if not below(name, allowed)]
        if room == "lit_mnist":  # the port: no command, and `runs` for commands alone
            beyond = {"lit_mnist.trace", "lit_mnist.benchmark", *COMMANDS}
            if module not in (LOADING, *COMMANDS):
                beyond.add("lit_mnist.runs")
            wrong += [(module, name) for name in own if below(name, beyond)]
        if room in ("lit_mnist.trace", "lit_mnist.benchmark"):
            wrong += [(module, name) for name in own if below(name, COMMANDS)]
        wrong += [(module, name) for name in reached(module) if below(name, never)]
    assert not wrong


def test_the_comparison_knows_no_model() -> None:
    of_the_model = ("conv", "pool", "hidden", "output/", 28, 128, 1176, 60_000, 152_006, 6_000)
    found = []
    engine = [*(ROOT / "keras_ref" / "parity").glob("*.py")]
    engine += [
        ROOT / "keras_ref" / "trace" / f"{name}.py" for name in ("description", "plan", "reference", "unrounded")
    ]
    engine += [ROOT / "lit_mnist" / "trace" / f"{name}.py" for name in ("arrays", "files", "mapped", "mapping")]
    for path in engine:
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        values = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docstrings]
        texts = [value for value in values if isinstance(value, str)]
        found += [
            (path.name, word)
            for word in of_the_model
            if word in values or any(re.search(rf"\b{word}(\b|(?<=/))", t) for t in texts)
        ]
    # The mistakes are of the documented port.
    assert {name for name, _ in found} <= {"pitfalls.py"}, found
