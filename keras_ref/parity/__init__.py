"""The ladder: whether a port trains exactly as its Keras original. `python -m keras_ref.parity`, or `check_port`."""

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_ref.parity.result import Result


NOT_HERE = ("mutants", "report", "backends", "compare")  # what the command does besides climbing


def check_port(candidate: str, reference: str = "", data: str = "", **flags: Any) -> "Result":
    """Compare a port with its Keras original, as `python -m keras_ref.parity` does, in silence.

        check_port("my_port:LitNet", "my_keras:build_model", "my_data:load").raise_if_failed()

    Args:
        candidate: the port, as package.module:Class.
        reference: the original, as package.module:function, or a .keras file; "" for the documented model.
        data: the examples, as package.module:function; "" for MNIST and the documented model.
        flags: flags of the command, by name, which are as there unless given: `layers`, `rungs`, `steps`, `batch_size`,
            `seed`, `dtype`, `backend`, `accelerator`, `seeds`, `devices`, `resume`, `data_dir`, `export_golden`,
            `import_golden`.

    Raises:
        InputError: if it could not be run.
        TypeError: if there is no such flag.
    """
    from keras_ref.parity.__main__ import parity
    from keras_ref.parity.result import compare

    parameters = inspect.signature(parity).parameters
    for name in flags:
        if name not in parameters or name in NOT_HERE:
            raise TypeError(f"check_port has no {name}")
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return compare(defaults | flags | {"candidate": candidate, "reference": reference, "data": data})
