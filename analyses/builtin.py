"""The built-in analyses: the name of each, and where it lies."""

from __future__ import annotations

from collections.abc import Mapping

DECIDES_NO_NUMBER = True

BUILTIN: Mapping[str, str] = {
    "propagation": "aftershock.analyses.propagation.analysis:Propagation",
    "rdm": "aftershock.analyses.rdm.analysis:Rdm",
    "functional_codes": "aftershock.analyses.functional_codes.analysis:FunctionalCodes",
    "self_introspection": "aftershock.analyses.self_introspection.analysis:SelfIntrospection",
    "cladec": "aftershock.analyses.cladec.analysis:ClaDec",
    "ldam": "aftershock.analyses.ldam.analysis:Ldam",
    "departure": "aftershock.analyses.departure.analysis:Departure",
}
