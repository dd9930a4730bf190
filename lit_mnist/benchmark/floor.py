"""The least that a step of the documented training takes here: its matrix products and the bytes that it moves."""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

N = 100  # images in a step
PIXELS = 28 * 28
PARAMETERS = 152_006
# (rows, inner, columns) of each product: forwards, the gradient of the weight, the gradient of the input.
PRODUCTS = (
    (6, 9, PIXELS * N),  # convolution, one product for all images
    (6, PIXELS * N, 9),
    (N, 1176, 128),  # hidden
    (128, N, 1176),
    (N, 128, 1176),
    (N, 128, 10),  # output
    (10, N, 128),
    (N, 10, 128),
)
# Bytes that pass through memory whatever computes it, four to a float: the images, read as bytes and written scaled;
# the output of the convolution and its gradient, each written and read; the same of the pooled images; of each
# parameter the gradient, written and read, and weight, m and v, read and written.
BYTES = PIXELS * N * (1 + 4) + 4 * 4 * 6 * PIXELS * N + 4 * 4 * 1176 * N + 4 * 8 * PARAMETERS


def seconds(work: Callable[[], object], repetitions: int) -> float:
    """Return the median of 15 means over repetitions."""
    times = []
    for _ in range(15):
        start = time.perf_counter()
        for _ in range(repetitions):
            work()
        times.append((time.perf_counter() - start) / repetitions)
    return statistics.median(times)


def product(rows: int, inner: int, columns: int) -> float:
    """Return the seconds of one product of matrices, float32."""
    left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    return seconds(lambda: torch.mm(left, right, out=out), 20)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    source, target = torch.randn(2**22), torch.empty(2**22)  # 16 MiB each, about what a step moves
    rate = 2 * source.nbytes / seconds(lambda: target.copy_(source), 5)  # bytes a second, read and written
    products = [product(*shape) for shape in PRODUCTS]
    flop = sum(2 * rows * inner * columns for rows, inner, columns in PRODUCTS)
    milliseconds = {"products": 1000 * sum(products), "bytes": 1000 * BYTES / rate}
    print(json.dumps({"floor": sum(milliseconds.values()), **milliseconds, "gflop_per_s": flop / sum(products) / 1e9}))


if __name__ == "__main__":
    main()
