"""Answers to questions about finished runs, from their tables alone: the command line and the Python API show them."""
