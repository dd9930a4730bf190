"""The ladder: whether a port trains exactly as its Keras original. `python -m keras_ref.parity`, or `check_port`."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from keras_ref.parity.result import Result


def check_port(
    candidate: str,
    reference: str = "",
    data: str = "",
    layers: str | None = None,
    rungs: list[int] | None = None,
    steps: int = 600,
    batch_size: int = 32,
    seed: int = 0,
    dtype: Literal["both", "float64", "float32"] = "both",
    backend: Literal["tensorflow", "jax", "torch"] = "tensorflow",
    seeds: int = 0,
    devices: bool = False,
    resume: bool = False,
    data_dir: str = "data",
    export_golden: str | None = None,
    import_golden: str | None = None,
) -> "Result":
    """Compare a port with its Keras original, as `python -m keras_ref.parity` does, in silence.

        check_port("my_port:LitNet", "my_keras:build_model", "my_data:load").raise_if_failed()

    Args:
        candidate: the port, as package.module:Class.
        reference: the original, as package.module:function, or a .keras file; "" for the documented model.
        data: the examples, as package.module:function; "" for MNIST and the documented model.
        layers: file that says which module is which layer; None where names say it.
        rungs: numbers of the rungs to climb; None for the usual ones.
        steps: of the trajectory.
        batch_size: of the trajectory, of another model than the documented one.
        seed: decides start weights and batches.
        dtype: precision of the trainings.
        backend: what Keras runs on in float32.
        seeds: trainings for rung 11.
        devices: climb rung 12 as well.
        resume: climb rung 13 as well.
        data_dir: directory of MNIST.
        export_golden: file to write what Keras' side said to.
        import_golden: file that such a climb wrote, in place of Keras' side, which need not be installed.

    Raises:
        InputError: if it could not be run.
    """
    flags = dict(locals())

    from keras_ref.parity.result import compare

    return compare(flags)
