"""The documented Keras MNIST classifier: the original that `lit_mnist` is measured against.

Importing the package is light. It never imports torch; of `lit_mnist` it uses only the command line and the run
directory, which know neither framework.
"""
