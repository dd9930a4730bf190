"""How long the documented training takes, here and elsewhere: `python -m keras_ref.benchmark`."""
