"""What others do when something happens in a run: told by the run, done in processes of their own."""

from .base import Hook
from .telling import installed_hooks

__all__ = ["Hook", "installed_hooks"]
