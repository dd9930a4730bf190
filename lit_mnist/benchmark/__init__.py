"""Contestants of `python -m keras_ref.benchmark` that are written with torch, each as its users would write it."""
