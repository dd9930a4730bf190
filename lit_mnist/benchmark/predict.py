"""Predict the test images with the trained model of a run, through the Trainer: the first time, and once it is warm."""

import argparse
import json
import statistics
import time

import torch

from lit_mnist.data import MNISTDataModule
from lit_mnist.load import load_model
from lit_mnist.runs.progress import silence_lightning
from lit_mnist.runs.trainer import make_tester

parser = argparse.ArgumentParser()
parser.add_argument("--data_dir")
parser.add_argument("--model")
parser.add_argument("--accelerator", default="cpu")


def main() -> None:
    args = parser.parse_args()
    silence_lightning()
    module = load_model(args.model)
    data = MNISTDataModule(args.data_dir, verify_data=False)
    data.setup()
    trainer = make_tester(args.accelerator, "32-true")
    times = []
    for _ in range(6):
        start = time.perf_counter()
        trainer.predict(module, data)
        times.append(time.perf_counter() - start)
    device = "cpu" if args.accelerator == "cpu" else torch.cuda.get_device_name()
    print(json.dumps({"first": times[0], "warm": statistics.median(times[1:]), "device": device}))


if __name__ == "__main__":
    main()
