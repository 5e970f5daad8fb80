"""Engines: where cells are computed."""
