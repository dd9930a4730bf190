"""The documented training as a plain PyTorch loop."""

import argparse

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import MNIST

parser = argparse.ArgumentParser()
parser.add_argument("--data_dir")
parser.add_argument("--epochs", type=int)
parser.add_argument("--batch_size", type=int)
parser.add_argument("--output_dir")
parser.add_argument("--accelerator")


def load(data_dir: str, train: bool) -> TensorDataset:
    mnist = MNIST(data_dir, train)
    return TensorDataset(mnist.data.unsqueeze(1) / 255, mnist.targets)  # [I, 1, 28, 28] in [0, 1], [I]


def main() -> None:
    args = parser.parse_args()
    train_loader = DataLoader(load(args.data_dir, train=True), batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(load(args.data_dir, train=False), batch_size=1000)
    device = "cuda" if args.accelerator == "gpu" else "cpu"
    model = nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 14 * 14, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    losses, accuracies = [], []
    print("Training begins", flush=True)
    for epoch in range(1, args.epochs + 1):
        total_loss, correct, seen = 0.0, 0, 0
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += loss.item() * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
        losses.append(total_loss / seen)
        accuracies.append(correct / seen)
        print(f"Epoch {epoch}/{args.epochs} loss {losses[-1]:.4f} accuracy {accuracies[-1]:.4f}", flush=True)

    test_loss, correct, seen = 0.0, 0, 0
    with torch.no_grad():
        for images, labels in test_loader:
            images, labels = images.to(device), labels.to(device)
            logits = model(images)
            test_loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
    torch.save(model.state_dict(), f"{args.output_dir}/model.pt")
    for name, values in (("loss", losses), ("accuracy", accuracies)):
        plt.figure()
        plt.plot(values)
        plt.xlabel("epoch")
        plt.ylabel(name)
        plt.savefig(f"{args.output_dir}/{name}.png")
    print(f"Test loss {test_loss / seen:.4f}, accuracy {correct / seen:.4f}", flush=True)


if __name__ == "__main__":
    main()
