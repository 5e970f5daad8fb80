"""What a plugin's process answers: its parts are made here, and asked here, by number."""

from __future__ import annotations

from .router import Answers

__all__ = ["Answers"]
