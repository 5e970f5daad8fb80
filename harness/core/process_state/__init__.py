"""What a process knows besides its variables, recorded before the code of others runs and put back afterwards.

A table of probes says how each piece of state is read and written (:mod:`.python_probes`, :mod:`.torch_probes`), and
:mod:`.patches` knows which functions of torch, NumPy and this package stand where. Only another process protects from
the rest: threads that go on, memory, values inside objects, the code of a function itself.
"""

from __future__ import annotations

from .guard import ARITHMETIC, CHANGED, CHANGED_FLAG, PROBES, Changes, guarded, guarded_part, noted, own_code

DECIDES_NO_NUMBER = True

__all__ = ["ARITHMETIC", "CHANGED", "CHANGED_FLAG", "PROBES", "Changes", "guarded", "guarded_part", "noted", "own_code"]
