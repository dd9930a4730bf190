"""Import Keras on TensorFlow without the log lines that TensorFlow writes while it loads."""

import os
import sys
import tempfile

from lit_mnist.errors import InputError


def import_keras(backend: str = "tensorflow") -> None:
    """Load Keras on a backend, in float32 and channels-last, whatever the user's keras.json says.

    TensorFlow's native code writes to standard error before any of its log levels applies, of oneDNN and of missing
    CUDA drivers. What it writes is shown only if the import fails.

    Args:
        backend: tensorflow, jax or torch.

    Raises:
        InputError: if Keras or the backend is not installed.
    """
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only, once it applies
    for name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
        os.environ.pop(name, None)  # they would shorten the documented training
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            import keras

            if backend == "tensorflow":
                import tensorflow as tf

                tf.config.list_physical_devices("GPU")  # probes the drivers now, while nobody listens
        except ModuleNotFoundError as error:
            if backend != "tensorflow":
                raise InputError(f"{error}: Keras on {backend} needs it; pip install {backend}") from error
            raise InputError(f'{error}: the original needs TensorFlow and Keras; pip install -e ".[keras]"') from error
        except BaseException:
            log.seek(0)
            os.write(kept, log.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
