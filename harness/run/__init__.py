"""Runs: from a suite to a run directory. Importing it makes plugins available, each in a process of its own."""

from ..core.registry import host_plugins
from .workers.host import Host

host_plugins(Host())
