"""List the commands of this package."""

from lit_mnist.runs.command import list_commands

if __name__ == "__main__":
    list_commands("keras_ref")
