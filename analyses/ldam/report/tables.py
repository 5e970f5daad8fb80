"""Every number of :mod:`~aftershock.analyses.ldam`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ....harness.statistics.intervals import Estimate
from ...common.text import ends, known, methods
from ...findings import Table, Value
from ..averaging import COMPARED
from ..measured import MEASURES, Averaging, Group, Sampled, shown


def tables(measured: Sampled) -> list[Table]:
    """In the order in which they are shown."""
    found = [_summary(measured), _by_target(measured), _kernel(measured), _trace(measured)]
    if measured.learning is not None:
        rows = [
            [i + 1, r, f] for i, (r, f) in enumerate(zip(measured.learning.real, measured.learning.fake, strict=True))
        ]
        found.append(
            Table("ldam-discriminator", "Mean logits of the discriminator while it learnt, by round.",
                  ["round", "data", "chain_samples"], rows)
        )  # fmt: skip
    if measured.averaging is not None:
        found += _averaging_tables(measured.averaging)
    if measured.attacks:
        rows_ = [
            [r.label, r.score, r.against, *ends(r.area), r.successes, r.others, r.reason] for r in measured.attacks
        ]  # fmt: skip
        found.append(
            Table("ldam-attacks", "How well a score separates a perturbation's successes from other images, by AUROC, "
                  f"with {methods(r.area for r in measured.attacks)}.",
                  ["perturbation", "score", "against", "auroc", "low", "high", "successes", "others", "reason"], rows_)
        )  # fmt: skip
    found.append(
        Table("ldam-measures", "What each measure is.", ["measure", "meaning"], [[k, v] for k, v in MEASURES.items()])
    )
    return found


def _infinite(value: float) -> Value:
    return "infinite" if value == math.inf else known(value)


def _weight(group: Group) -> float | None:
    return known(group.weight)


def _summary(measured: Sampled) -> Table:
    rows: list[Sequence[Value]] = []
    seen: list[Estimate] = []
    for setting in measured.settings:
        group = measured.groups[measured.targets[0].name, setting]
        known_ones = {m: found for m in MEASURES if math.isfinite((found := measured.over(setting, m)).value)}
        rows += [[setting, group.kind, _weight(group), m, *ends(found)] for m, found in known_ones.items()]
        seen += known_ones.values()
    return Table(
        "ldam-settings", f"Means over targets of one measure under one setting, with {methods(seen)} over chains.",
        ["setting", "kind", "weight", "measure", "mean", "low", "high"], rows,
    )  # fmt: skip


def _by_target(measured: Sampled) -> Table:
    rows: list[Sequence[Value]] = []
    for (name, setting), group in measured.groups.items():
        rows += [
            [name, setting, group.kind, _weight(group), measure, *ends(shown(measure, found))]
            for measure, found in group.measures.items()
        ]
    seen = [found for group in measured.groups.values() for found in group.measures.values()]
    return Table(
        "ldam-targets", f"One measure of one target under one setting: mean over chains, with {methods(seen)}.",
        ["target", "setting", "kind", "weight", "measure", "mean", "low", "high"], rows,
    )  # fmt: skip


def _kernel(measured: Sampled) -> Table:
    rows: list[Sequence[Value]] = []
    for target in measured.targets:
        for setting in measured.of("langevin"):
            g = measured.groups[target.name, setting]
            numbers = (g.rhat, g.size, g.acceptance, g.virial, g.step)
            rows.append([target.name, setting, g.weight, *(_infinite(v) for v in numbers)])
    return Table(
        "ldam-chains",
        "The worst R-hat and the smallest effective sample size over activation, discriminator, total variation and "
        "potential; the acceptance of a Metropolis test; the measured temperature in units of the nominal one, where "
        "coordinates are unbounded. Chains that stand still have an infinite R-hat.",
        ["target", "setting", "weight", "rhat", "effective_size", "acceptance", "temperature_ratio", "step"], rows,
    )  # fmt: skip


def _trace(measured: Sampled) -> Table:
    first = measured.targets[0].name
    rows: list[Sequence[Value]] = []
    for setting in measured.of("langevin"):
        seen = measured.groups[first, setting].trace
        ends = (seen.mean(1), seen.min(1).values, seen.max(1).values) if len(seen) else ()
        rows += [[first, setting, i, *v] for i, v in enumerate(zip(*(e.tolist() for e in ends), strict=True))]
    return Table(
        "ldam-trace", "The activation after the burn-in, by step: mean, lowest and highest chain.",
        ["target", "setting", "step", "mean", "lowest", "highest"], rows,
    )  # fmt: skip


def _averaging_tables(case: Averaging) -> list[Table]:
    rows: list[Sequence[Value]] = [
        [network, "", None, "accuracy", *ends(found), None] for network, found in case.accuracy.items()
    ]
    rows.append(["average - last", "", None, "accuracy", *ends(case.accuracy_difference), None])
    for (network, target, weight), group in case.groups.items():
        rows += [
            [network, target, weight, m, *ends(shown(m, found)), None]
            for m, found in group.measures.items()
            if m in COMPARED or m.startswith("diversity")
        ]
        rows.append([network, target, weight, "rhat", _infinite(group.rhat), None, None, None])
    for (weight, measure), found in case.differences.items():
        rows.append(["average - last", "", weight, measure, *ends(found), case.p_values.get((weight, measure))])
    seen = [*case.accuracy.values(), *case.differences.values()]
    seen += [found for group in case.groups.values() for found in group.measures.values()]
    caption = (
        f"Last against averaged weights: means over chains (of accuracies: over images) with {methods(seen)}; "
        "differences are paired by chain, and mean over targets, those named in the text with p-values of Student's t "
        "after Holm's correction. Diversity is an absolute distance here."
    )
    columns = ["network", "target", "weight", "measure", "mean", "low", "high", "p_holm"]
    return [Table("ldam-averaging", caption, columns, rows)]
