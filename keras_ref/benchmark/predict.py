"""Predict the test images with a trained model, through Keras' `predict`: the first time, and once it is warm."""

import argparse
import json
import statistics
import time

import keras

from keras_ref.data import load_data

parser = argparse.ArgumentParser()
parser.add_argument("--data_dir")
parser.add_argument("--model")


def main() -> None:
    args = parser.parse_args()
    model = keras.models.load_model(args.model)
    images = load_data(args.data_dir, verify=False).test_images[..., None].astype("float32") / 255
    times = []
    for _ in range(6):
        start = time.perf_counter()
        model.predict(images, verbose=0)  # 32 images at a time, unless told otherwise
        times.append(time.perf_counter() - start)
    print(json.dumps({"first": times[0], "warm": statistics.median(times[1:])}))


if __name__ == "__main__":
    main()
