"""Weights that built-in suites come with, written by ``docs/tools/train_quick_weights.py``."""
