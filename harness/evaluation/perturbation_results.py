"""What perturbations did to the evaluate images of one model and seed, read from its cells."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from ..plan import ModelPlan
from ..plan.cells import ROUNDINGS, Rounding
from ..store.stored_traces import cat_column
from ..suite.resolved import PerturbationPart
from .finished import Finished
from .results import PerturbationResult, RoundedResult
from .tables import NORMS

_NONE = np.zeros(0, np.int64)


def perturbation_result(found: Finished, model_plan: ModelPlan, part: PerturbationPart) -> PerturbationResult:
    """Return what one perturbation did to the evaluate images."""
    facts = found.plan.facts.perturbations[part.label]
    about: dict[str, Any] = {
        "label": part.label,
        "kind": facts.kind,
        "family": facts.family,
        "library": facts.library,
        "norm": facts.norm or "",
        "eps": facts.eps,
        "against": part.against or None,
        "group": part.group,
        "box": facts.box,
        "one_step": facts.one_step,
        "effort": facts.effort,
    }
    inapplicable = found.plan.applicability.inapplicable.get(part.label)
    if part.against in found.plan.applicability.unfitted:
        inapplicable = f"it is made against {part.against}, which is not fitted"
    if inapplicable:
        return PerturbationResult(**about, reason=inapplicable, inapplicable=True)
    keys, controls = model_plan.perturbs[part.label, "evaluate"], model_plan.controls[part.label]
    reason = found.reason(*keys)
    if reason:
        blind = facts.kind == "attack" and facts.gradients and not found.store.values(model_plan.key)["gradient"]
        return PerturbationResult(**about, reason=reason, inapplicable=blind)
    values = [found.store.values(key) for key in keys]
    images = sum(v["rows"] for v in values)

    def per_image(name: str) -> float | None:
        return sum(v[name] * v["rows"] for v in values) / images if images else None

    stopped = dict.fromkeys(f"canary: {v['canary'][1]}" for v in values if (v.get("canary") or ("", ""))[1])
    unmeasured = bool(found.reason(*controls))
    reduced = ["reduced-ensemble"] * (part.label in found.plan.applicability.reduced)
    return PerturbationResult(
        **about,
        index=cat_column(found.store, keys, "row").long().numpy(),
        prediction=cat_column(found.store, keys, "prediction").long().numpy(),
        success=cat_column(found.store, keys, "success").bool().numpy(),
        norms={name: cat_column(found.store, keys, f"norm:{name}").double().numpy() for name in NORMS},
        control_index=_NONE if unmeasured else cat_column(found.store, controls, "row").long().numpy(),
        forwards=per_image("forwards"),
        backwards=per_image("backwards"),
        flags=tuple(dict.fromkeys([*(flag for v in values for flag in v["flags"]), *reduced, *stopped])),
        late=sum(v.get("late", 0) for v in values),
        parts=sum((Counter(v.get("parts", {})) for v in values), Counter()),
        follows={name: round(value, 3) for v in values for name, value in v.get("follows", {}).items()},
        told=_told(found, keys, part) if part.against else np.zeros((0, 0)),
        questions=_questions(found, keys) if part.against else np.zeros((2, 0)),
        questions_reason=next((r for v in values if (r := v.get("questions", ""))), ""),
        canary=max((v["canary"][0] for v in values if v.get("canary")), default=None),
        rounded=[
            _rounded(found, model_plan, part.label, how) for how in ROUNDINGS if (part.label, how) in model_plan.rounded
        ],
    )


def _told(found: Finished, keys: tuple[str, ...], part: PerturbationPart) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The true scores of its final images that an attack was told: in its loop, if it says so, and at its end."""
    keys = tuple(key for key in keys if found.store.values(key)["rows"])
    if not keys:
        return np.zeros((0, 0))
    judged = torch.cat([found.store.tensor(key, "judged") for key in keys], dim=1)
    told = [found.store.tensor(key, "told") for key in keys]
    drawn = found.plan.facts.detectors[part.against].randomised
    # The lowest of many draws is not comparable to the others.
    if drawn or any(len(t) != found.store.values(key)["rows"] for t, key in zip(told, keys, strict=True)):
        return judged.double().numpy()
    return torch.cat([torch.cat(told)[None], judged]).double().numpy()


def _questions(found: Finished, keys: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what an attack was told on its way, and what the detector says of the same images elsewhere, (2, k)."""
    held = [t for key in keys if "asked:told" in (t := found.store.load(key))]
    names = ("asked:told", "asked:scored")
    rows = [torch.cat([torch.empty(0, dtype=torch.float64), *(t[name] for t in held)]) for name in names]
    return torch.stack(rows).double().numpy()


def _rounded(found: Finished, model_plan: ModelPlan, label: str, how: Rounding) -> RoundedResult:
    """Return one attack's images rounded to the levels of image files."""
    keys = model_plan.rounded[label, how]
    reason = found.reason(*keys)
    if reason:
        return RoundedResult(how, reason=reason)
    return RoundedResult(
        how,
        prediction=cat_column(found.store, keys, "prediction").long().numpy(),
        success=cat_column(found.store, keys, "success").bool().numpy(),
        norms={name: cat_column(found.store, keys, f"norm:{name}").double().numpy() for name in NORMS},
    )
