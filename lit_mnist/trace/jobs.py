"""The worker processes of the comparison: jobs in on standard input, answers out on standard output, arrays in files.

One process a framework serves all trainings of a ladder; neither framework is imported here.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_mnist.errors import InputError
from lit_mnist.trace.files import write_arrays

Tell = Callable[[int, int], None]  # called with the steps done and their number
STEPS_BETWEEN_MESSAGES = 50


def serve(jobs: Mapping[str, Callable[..., Mapping[str, np.ndarray]]]) -> None:
    """Do the jobs that come in, until standard input ends.

    A job is a line of JSON: `{"job": name, "output": file, ...}` with the arguments of the function of that name. It
    is called with them and with `tell`, and what it returns is written to the file. Lines that go out:
    `{"step": 50, "steps": 600}` while it works, then `{"done": file}` or `{"error": one line}`.

    Args:
        jobs: by name, functions that return named arrays.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes where errors go

    def answer(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    def tell(step: int, steps: int) -> None:
        if step % STEPS_BETWEEN_MESSAGES == 0:
            answer(step=step, steps=steps)

    for line in sys.stdin:
        job = json.loads(line)
        output = job.pop("output")
        try:
            write_arrays(Path(output), jobs[job.pop("job")](**job, tell=tell))
        except InputError as error:
            answer(error=str(error))
        except Exception as error:  # of a candidate, whatever it may be; the traceback goes to the log
            traceback.print_exc()
            answer(error=f"{type(error).__name__}: {' '.join(str(error).split())} ({_where(error)})")
        else:
            answer(done=output)
        gc.collect()  # a Trainer and its module refer to one another


def _where(error: Exception) -> str:
    """Return file and line of the innermost frame outside of installed libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith("<")]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else "in a library"
