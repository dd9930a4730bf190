"""python -m lit_mnist.evaluate: test a trained model; what it gets right, class by class, and what it finds hardest."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_mnist.runs.command import percent, run
from lit_mnist.runs.directory import find_checkpoint
from lit_mnist.runs.files import check_output, check_picture, write_file

if TYPE_CHECKING:
    import numpy as np

Precision = Literal["32-true", "64-true", "16-mixed", "bf16-mixed", "bf16-true"]


def evaluate(
    ckpt_path: str | None = None,
    data_dir: str = "data",
    verify_data: bool = True,
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
    precision: Precision | None = None,
    json: str | None = None,
    plot: str | None = None,
) -> dict[str, Any]:
    """Test a trained model on the 10,000 test images: loss and accuracy, precision and recall, mistakes.

    Loss and accuracy are those that training reported, to the last digit on the same device with as many threads.

    Args:
        ckpt_path: A checkpoint, a run directory (its newest checkpoint) or a file of Keras; null takes the newest run
            below runs.
        data_dir: Where the data set is; files that are not there are those that ship with this package.
        verify_data: Insist on MNIST's own files; false accepts other data in the same format.
        accelerator: What to compute on; auto takes a GPU if there is one.
        precision: Bits of the arithmetic; null takes those of the training, of the weights where it is not known.
        json: File to write all figures to.
        plot: File to draw the mistakes into that the model was surest of (.png, .svg or .pdf).

    Returns:
        The figures that --json writes.

    Raises:
        InputError: a wrong value or file.
    """
    path = find_checkpoint(ckpt_path)
    if json is not None:
        check_output(Path(json))
    check_picture(plot)

    import numpy as np

    from lit_mnist.data import MNISTDataModule
    from lit_mnist.load import load_trained
    from lit_mnist.runs.progress import silence_lightning
    from lit_mnist.runs.trainer import make_tester

    silence_lightning()
    trained = load_trained(path)
    data = MNISTDataModule(data_dir, verify_data=verify_data)
    data.setup()
    asked = precision or trained.settings.get("--precision") or _of_weights(trained.module)
    trainer = make_tester(accelerator, asked)
    (tested,) = trainer.test(trained.module, data, verbose=False)
    probabilities = data.gather(trainer.predict(trained.module, data))  # type: ignore[arg-type]  # of one loader
    images, labels = (tensor.numpy() for tensor in data.test.tensors)
    figures: dict[str, Any] = {"checkpoint": str(path), **tested, "test_images": len(labels)}
    figures |= by_class(labels, probabilities.argmax(axis=1))
    figures["hardest"] = hardest_digits(labels, probabilities)

    print(f"{path}")
    trained_on = trained.settings.get("the data set in --data_dir, sha256", data.sha256)
    if trained_on != data.sha256:
        print("It was trained on other data than these; --data_dir names them.")
    print(table(figures))
    if json is not None:
        _write_json(Path(json), figures)
    if plot is not None:
        _plot(Path(plot), images[:, 0], labels, np.asarray(probabilities))
    return figures


def by_class(labels: "np.ndarray", predicted: "np.ndarray") -> dict[str, Any]:
    """Count what was taken for what.

    Args:
        labels: true classes, [N].
        predicted: predicted classes, [N].

    Returns:
        `confusion_matrix`, rows of true classes; `classes`: of each precision (of the images taken for it, the share
        that is; null if there is none), recall (of its images, the share that was found) and number of images.
    """
    import numpy as np

    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (labels, predicted), 1)
    right, taken, there = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    classes = [
        {
            "class": k,
            "precision": right[k] / taken[k] if taken[k] else None,
            "recall": right[k] / there[k] if there[k] else None,
            "images": int(there[k]),
        }
        for k in range(10)
    ]
    return {"classes": classes, "confusion_matrix": counts.tolist()}


def hardest_digits(labels: "np.ndarray", probabilities: "np.ndarray", most: int = 10) -> list[dict[str, Any]]:
    """Return the test images whose true class the model found least likely, the hardest first.

    Args:
        labels: true classes, [N].
        probabilities: of each class, [N, 10].
        most: how many.
    """
    import numpy as np

    of_label = probabilities[np.arange(len(labels)), labels]
    return [
        {
            "image": int(i),
            "label": int(labels[i]),
            "predicted": int(probabilities[i].argmax()),
            "probability": float(probabilities[i].max()),
            "probability_of_label": float(of_label[i]),
        }
        for i in np.argsort(of_label, kind="stable")[:most]
    ]


def table(figures: dict[str, Any]) -> str:
    """Lay the figures out for the terminal."""

    def share(value: float | None) -> str:
        return "     -" if value is None else f"{value:6.4f}"

    lines = [
        f"Test loss {figures['test_loss']!r}, accuracy {figures['test_accuracy']!r} "
        f"on {figures['test_images']:,} images",
        "",
        "class  precision  recall  images   taken for 0" + "".join(f"{k:>6}" for k in range(1, 10)),
    ]
    for row, counts in zip(figures["classes"], figures["confusion_matrix"], strict=True):
        counted = "".join(f"{count or '.':>6}" for count in counts)
        lines.append(
            f"{row['class']:>5}  {share(row['precision']):>9}  {share(row['recall'])}  {row['images']:>6}  "
            f"{counted[:12].rjust(12)}{counted[12:]}"
        )
    lines += ["", "Hardest digits, the least probable class first (number of the test image, from 0):"]
    lines += [
        f"  {one['image']:>5}  a {one['label']}, taken for {one['predicted']} with {percent(one['probability'])}"
        for one in figures["hardest"]
    ]
    return "\n".join(lines)


def _of_weights(module: Any) -> str:
    return {"torch.float64": "64-true", "torch.bfloat16": "bf16-true"}.get(str(module.dtype), "32-true")


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    write_file(path, (json.dumps(figures, indent=1) + "\n").encode())


def _plot(path: Path, images: "np.ndarray", labels: "np.ndarray", probabilities: "np.ndarray") -> None:
    from lit_mnist.runs.figures import misclassified, write_figure

    write_figure(path, misclassified(images, labels, probabilities))


if __name__ == "__main__":
    run(evaluate, prog="python -m lit_mnist.evaluate")
