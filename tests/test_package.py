"""What a user installs."""

import hashlib
import re
import zipfile
from pathlib import Path

from conftest import Command

ROOT = Path(__file__).parent.parent


def test_a_wheel_holds_both_packages_and_the_data_set(tmp_path: Path, command: Command) -> None:
    # A copy, so that no build directory is left in the project.
    source = tmp_path / "source"
    for pattern in ("pyproject.toml", "README.md", "LICENSE", "lit_mnist/**/*", "keras_ref/**/*"):
        for path in ROOT.glob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                (source / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    built = command("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        readme = archive.read("lit_mnist/mnist/README.md").decode()
        stated = dict(re.findall(r"\| (\S+\.gz) \| [\d,]+ \| (\w{64}) \|", readme))
        assert len(stated) == 4
        for name, sha256 in stated.items():
            assert hashlib.sha256(archive.read(f"lit_mnist/mnist/{name}")).hexdigest() == sha256
    for name in (
        "lit_mnist/train.py",
        "keras_ref/train.py",
        "lit_mnist/py.typed",
        "keras_ref/py.typed",
        "lit_mnist/page/page.js",
        "keras_ref/parity/golden.npz",
    ):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests") for name in names)
