"""One score from several detectors, calibrated on clean images that none of them was fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.parameters import bind
from ...harness.core.ranges import Share
from ...harness.core.registry import DETECTORS
from ...harness.tracing.extra_passes import InputGradient, View
from ...harness.tracing.traces import LiveTrace, Need, Traces
from ..base.classes import class_groups
from ..base.detector import Detector, DetectorInfo, Surrogate
from ..base.parameters import check_fitted, check_images, check_perturbed
from ..base.splits import exclude_training_sources, split_rows
from .columns import fit_columns, join_columns
from .p_values import fit_tail, surprise

Method = Literal["fisher", "mean", "max", "mahalanobis", "logistic"]
_BATCH = 1024
# What is added to the correlations of scores, so that two equal members do no harm.
_RIDGE = 1e-2

Seen = TypeVar("Seen", Traces, LiveTrace)


class CombinedScore(Detector):
    """Scores of several detectors as one.

    The clean fit set is cut in two: members are fitted on one part, and the other, held out, says what their scores
    mean.

    - ``fisher``: minus two times the sum of the logarithms of the members' p-values (Fisher 1925), which are empirical
      with an exponential tail beyond the held-out scores (module ``tails``). The order is that of Fisher's test;
      members that agree with each other count as often as they are there.
    - ``mean``, ``max``: of scores in standard deviations of held-out clean images.
    - ``mahalanobis``: the squared Mahalanobis distance of the vector of scores from the held-out ones; it takes
      correlations into account, and unusually low scores are suspicious too.
    - ``logistic``: a logistic regression on perturbed images, supervised. Supervised members learn from one half of
      them, the regression from the other.

    Cost: that of the members, and O(members²) per image.

    Args:
        of: the members: names of detectors, or tables with ``name`` and parameters.
        method: see above.
        held_out: the share of the clean fit images that calibrates.

    Raises:
        UsageError: for a parameter out of range, an unknown member or a parameter that it does not take.
    """

    info = DetectorInfo(
        title="Combination of detectors",
        paper="Fisher 1925, Statistical Methods for Research Workers (section 21.1: combination of probabilities); "
        "for detectors: Raghuram et al. 2021, A General Framework For Detecting Anomalous Inputs to DNN Classifiers, "
        "arXiv 2007.15147",
        needs=(Need("pooled", "last:1"),),
        surrogate="exact",
        summary="Several detectors' scores as one, calibrated on held-out clean images.",
    )

    def __init__(
        self,
        of: Sequence[str | dict[str, Any]] = ("mahalanobis", "energy"),
        method: Method = "fisher",
        held_out: Share = 0.3,
    ) -> None:
        if isinstance(of, str | dict) or not of:
            raise UsageError(f"of = {of!r}: list at least one detector, by name or as a table with name.")
        self._members = [_member(entry) for entry in of]
        self.of = [entry if isinstance(entry, str) else dict(entry) for entry in of]
        self.method: Method = method
        self.held_out = held_out
        self.tails: list[dict[str, Tensor]] = []
        self.joined: dict[str, Any] = {}

    @property
    def members(self) -> tuple[Detector, ...]:
        """The detectors that are combined, in the order of ``of``."""
        return tuple(self._members)

    @property
    def made_of(self) -> tuple[str, ...]:
        """The members' names, and what these are made of."""
        own = [entry if isinstance(entry, str) else str(entry["name"]) for entry in self.of]
        return tuple(dict.fromkeys([*own, *(name for member in self._members for name in member.made_of)]))

    @property
    def needs(self) -> tuple[Need, ...]:
        """What any member reads, each need once."""
        return tuple(dict.fromkeys(need for member in self._members for need in member.needs))

    @property
    def supervised(self) -> bool:
        """Whether the method or any member learns from perturbed images."""
        return self.method == "logistic" or any(member.supervised for member in self._members)

    @property
    def surrogate_kind(self) -> Surrogate:
        """Exact if all members' are, none if one has none, otherwise relaxed."""
        kinds = {member.surrogate_kind for member in self._members}
        if "none" in kinds:
            return "none"
        return "exact" if kinds == {"exact"} else "relaxed"

    @property
    def views(self) -> tuple[View, ...]:
        """Every member's, under names of their own."""
        return tuple(
            replace(view, name=_own(i, view.name)) for i, member in enumerate(self._members) for view in member.views
        )

    @property
    def gradients(self) -> tuple[InputGradient, ...]:
        """Every member's, under names of their own."""
        return tuple(
            replace(g, name=_own(i, g.name)) for i, member in enumerate(self._members) for g in member.gradients
        )

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Fit the members, then the combination on held-out images that the model classifies correctly.

        Raises:
            UsageError: for fewer than two clean images, or without perturbed ones where they are needed.
        """
        check_images("combination", clean)
        if self.supervised:
            perturbed = check_perturbed("combination with a supervised part", perturbed)
        everything = torch.arange(len(clean))
        kept = max(2, round((1 - self.held_out) * len(clean)))
        rows, fresh = split_rows(everything, kept, clean.generator, clean.sources)
        right = (class_groups(clean) >= 0)[fresh]
        fresh = fresh[right] if bool(right.any()) else fresh
        taught = judged = perturbed
        if perturbed is not None and self.method == "logistic" and any(m.supervised for m in self._members):
            half, everyone = (len(perturbed) + 1) // 2, torch.arange(len(perturbed))
            halves = split_rows(everyone, half, clean.generator, perturbed.sources)
            taught, judged = (perturbed.pick(half) for half in halves)
        seen = clean.pick(rows)
        for i, member in enumerate(self._members):
            lesson = self._for_member(taught, i) if taught is not None and member.supervised else None
            member.fit(self._for_member(seen, i), lesson)
        columns = self._columns(_without_answers(clean.pick(fresh)))
        self.tails = [fit_tail(column) for column in columns.T]
        if self.method == "mahalanobis":
            self.joined = _fit_joint(columns)
        elif self.method != "fisher":
            other = None
            if self.method == "logistic" and judged is not None:
                other = self._columns(_without_answers(exclude_training_sources(judged, seen)))
            self.joined = fit_columns(self.method, columns, other)
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,); see the class."""
        check_fitted("combination", self.tails)
        return self._join(self._columns(traces))

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the members' surrogates, combined like their scores, (n,).

        Raises:
            UsageError: if a member offers none.
        """
        check_fitted("combination", self.tails)
        columns = [member.surrogate(self._for_member(live, i)) for i, member in enumerate(self._members)]
        return self._join(torch.stack([column.double() for column in columns], 1))

    def state(self) -> dict[str, Any]:
        """Its own state, and the members' in order."""
        return {**super().state(), "members": [member.state() for member in self._members]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` gave."""
        super().load_state({name: value for name, value in state.items() if name != "members"})
        for member, own in zip(self._members, state["members"], strict=True):
            member.load_state(own)

    def _columns(self, traces: Traces) -> Tensor:
        parts = [traces.logits.new_empty(0, len(self._members), dtype=torch.float64)]
        for part in traces.batches(_BATCH):
            scores = [member.score(self._for_member(part, i)).double() for i, member in enumerate(self._members)]
            parts.append(torch.stack(scores, 1))
        return torch.cat(parts)

    def _join(self, columns: Tensor) -> Tensor:
        if self.method == "fisher":
            parts = [surprise(tail, column) for tail, column in zip(self.tails, columns.unbind(1), strict=True)]
            return 2 * torch.stack(parts).sum(0)
        if self.method == "mahalanobis":
            return _joint_distance(self.joined, columns)
        return join_columns(self.joined, columns)

    def _for_member(self, seen: Seen, index: int) -> Seen:
        """Return what the member asked for, as it asked: its own needs first decide what an accessor returns.

        The harness may have capped a need's units; needs keep their positions.
        """
        member = self._members[index]
        held = dict(zip(self.needs, seen.needs, strict=True))
        own = tuple(held[need] for need in member.needs)
        if isinstance(seen, LiveTrace):
            return replace(seen, needs=own, view_of=lambda name: replace(seen.view(_own(index, name)), needs=own))
        views = {v.name: replace(seen.view_traces[_own(index, v.name)], needs=own) for v in member.views}
        gradients = {g.name: seen.gradient_rows[_own(index, g.name)] for g in member.gradients}
        return replace(seen, needs=own, view_traces=views, gradient_rows=gradients)


def _member(entry: object) -> Detector:
    """Return a detector from its name or table."""
    table = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise UsageError(f"of: {entry!r} is neither a detector's name nor a table with name.")
    name = table["name"]
    factory: Callable[..., Detector] = DETECTORS.get(name)
    bound, problems = bind(factory, {key: value for key, value in table.items() if key != "name"})
    if problems:
        raise UsageError(f"of: detector {name!r}: {'; '.join(problems.values())}.")
    return factory(**bound)


def _own(index: int, name: str) -> str:
    return f"{index}-{name}"


def _without_answers(traces: Traces) -> Traces:
    """As a detector sees images that it scores."""
    return replace(traces, label_rows=None, source_rows=None, random=None)


def _fit_joint(columns: Tensor) -> dict[str, Any]:
    scaled = fit_columns("mean", columns)
    values = (columns - scaled["centre"]) / scaled["scale"]
    covariance = values.T @ values / len(values) + _RIDGE * torch.eye(columns.shape[1], dtype=torch.float64)
    root = torch.linalg.inv(torch.linalg.cholesky(covariance))
    return {**scaled, "root": root.contiguous()}


def _joint_distance(fitted: Mapping[str, Any], columns: Tensor) -> Tensor:
    device = columns.device
    values = (columns - fitted["centre"].to(device)) / fitted["scale"].to(device)
    # From products of rows, whose rounding does not depend on their number.
    found: Tensor = (values.unsqueeze(1) * fitted["root"].to(device)).sum(2).square().sum(1)
    return found
