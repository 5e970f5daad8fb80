"""Words and tables of :mod:`~aftershock.analyses.ldam`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ... import Findings, Table
from ...findings import in_words
from ..attacked import CLEAN, DISCRIMINATOR, NOISE
from ..averaging import AVERAGE, BEFORE, COMPARED, LAST, TESTED, share
from ..measures import MIXED, UNMIXED, Estimate
from ..study import MEASURES, PLAIN, RANDOM, REFERENCE, Averaging, Group, Study, langevin_name, shown
from .figures import figures

Value = str | int | float | None
# Of a family of tests, after correction.
_LEVEL = 0.05
# An AUROC's interval that is wider tells nothing by holding 0.5.
_WIDE = 0.2


def report(study: Study, columns: int) -> Findings:
    """Findings of a study; ``columns`` of the galleries, at most."""
    arrays = {
        f"{target.name}/{setting}": study.groups[target.name, setting].images
        for target in study.targets
        for setting in study.settings
        if study.groups[target.name, setting].kind in ("langevin", "ascent")
    }
    if study.averaging is not None:
        for (network, name, weight), group in study.averaging.groups.items():
            arrays[f"averaging/{network} weights/{name}/{langevin_name(weight)}"] = group.images
    return Findings(in_words(_sentences(study)), figures(study, columns), _tables(study), arrays)


def _sentences(study: Study) -> list[str]:
    found = [_lead(study), _dial(study), _price(study), _chains(study)]
    if study.averaging is not None:
        found.append(_averaging(study.averaging))
    found += _attacks(study)
    return found


def _dial(study: Study) -> str:
    parts = []
    for weight in study.weights:
        name = langevin_name(weight)
        seen = {m: study.over(name, m) for m in ("activation_percentile", "diversity_features", "realism")}
        parts.append(
            f"at weight {weight:g}, activation above {seen['activation_percentile'].text(0, 100, '%')} of data images, "
            f"diversity {seen['diversity_features'].text()} of random data images', realism "
            f"{seen['realism'].text()}"
        )
    return (
        f"Langevin samples, means over {len(study.targets)} targets: {'; '.join(parts)}. Realism is the share of "
        "held-out images that lie at least as far from the others: 0.5 for a typical one, 0 for what lies further out "
        f"than all, near 1 for the middle of the crowd; random ones of the targets' classes have "
        f"{study.over(RANDOM, 'realism').text()}."
    )


def _lead(study: Study) -> str:
    """What turning the dial did, in words."""
    low, high = langevin_name(study.weights[0]), langevin_name(study.weights[-1])
    if low == high:
        return f"What excites {len(study.targets)} targets of the network, by {low}, beside the baselines."
    nearer, price = _verdicts(study, low, high)
    return (
        f"Turning the discriminator's weight from {study.weights[0]:g} to {study.weights[-1]:g} brings samples "
        f"{nearer}; the activations that they reach are {price}."
    )


def _verdicts(study: Study, low: str, high: str) -> tuple[str, str]:
    """Whether the last weight's samples are nearer to data than the first one's, and what that costs in activation."""
    change, lost = study.change(low, high, "distance_ratio"), study.change(low, high, "activation_sd")
    nearer = (
        "nearer to data"
        if change.high < 0
        else "further away from data"
        if change.low > 0
        else "no measurably nearer to data"
    )
    return nearer, "weaker" if lost.high < 0 else "stronger" if lost.low > 0 else "not measurably different"


def _price(study: Study) -> str:
    """What the dial buys: the ends of it, and the plain baselines."""
    low, high = langevin_name(study.weights[0]), langevin_name(study.weights[-1])
    text = (
        "Distance to data in the features of an independent classifier (held-out accuracy "
        f"{100 * study.judge_accuracy:.0f} %; 1: a median held-out image): plain activation "
        f"maximisation {study.over(PLAIN, 'distance_ratio').text()}, the reference measure alone "
        f"{study.over(REFERENCE, 'distance_ratio').text()}, random data images "
        f"{study.over(RANDOM, 'distance_ratio').text()}"
    )
    if low == high:
        return f"{text}, {low} {study.over(low, 'distance_ratio').text()}."
    change = study.change(low, high, "distance_ratio")
    lost = study.change(low, high, "activation_sd")
    verdict, price = _verdicts(study, low, high)
    return (
        f"{text}; {low} {study.over(low, 'distance_ratio').text()}, {high} "
        f"{study.over(high, 'distance_ratio').text()}. From weight {study.weights[0]:g} to {study.weights[-1]:g} "
        f"samples come {verdict} ({change.text()}) and activations are {price} ({lost.text()} standard deviations)."
    )


def _chains(study: Study) -> str:
    """How much of a sampler this was."""
    names = study.of("langevin")
    groups = [study.groups[t.name, s] for t in study.targets for s in names]
    rhats = [g.rhat for g in groups if not math.isnan(g.rhat)]
    if not rhats:
        return "The chains are too short to tell whether they have mixed."
    worst, mixed = max(rhats), sum(r < MIXED for r in rhats)
    sizes = [g.size for g in groups if math.isfinite(g.size)]
    steps = (study.facts["steps"], study.facts["burn_in"])
    kernel = "Metropolis-adjusted" if study.facts["method"] == "mala" else "unadjusted"
    accepts = "accepts" if study.facts["method"] == "mala" else "would have accepted"
    acceptance = sum(g.acceptance for g in groups) / len(groups)
    known = [g.virial for g in groups if math.isfinite(g.virial)]
    measured = (
        f"; the measured temperature is {min(known):.2f} to {max(known):.2f} times the nominal "
        f"{study.facts['temperature']:g}"
        if known and study.facts["coordinates"] == "gaussian"
        else f"; the nominal temperature is {study.facts['temperature']:g}"
    )
    if worst >= UNMIXED:
        reached = f"reaches {worst:.2f}" if math.isfinite(worst) else "is infinite for chains that stand still"
        verdict = (
            f"R-hat {reached}, so the chains have not mixed: this is noisy gradient ascent from their "
            "starts, not a sample of the stationary density"
        )
    elif mixed == len(rhats):
        verdict = f"R-hat is below {MIXED} everywhere: what is watched of the chains has mixed"
    else:
        verdict = (
            f"R-hat is at most {worst:.2f}, and below {MIXED} for {mixed} of {len(rhats)} sets of chains: nearly mixed"
        )
    return (
        f"{study.chains} {kernel} chains of {steps[0]} steps ({steps[1]} of them burn-in) for each target and weight: "
        f"{verdict}; the smallest effective sample size is {min(sizes, default=math.nan):.0f}, a Metropolis test "
        f"{accepts} {100 * acceptance:.0f} % of the steps{measured}."
    )


def _averaging(case: Averaging) -> str:
    differing: list[str] = []
    same: dict[float, list[str]] = {}
    for (weight, measure), p in case.p_values.items():
        if p is not None and p < _LEVEL:
            change = case.differences[weight, measure].text(3)
            differing.append(f"{TESTED[measure]} at weight {weight:g} by {change} (p = {p:.2g})")
        else:
            same.setdefault(weight, []).append(TESTED[measure])
    alike = "; ".join(f"{', '.join(words)} at weight {weight:g}" for weight, words in same.items())
    what = f"they differ in {', '.join(differing)}" if differing else "no measured difference between their samples"
    rest = f"; no difference shown in {alike}" if differing and alike else ""
    return (
        f"Parameter averaging after {case.steps} SGD steps: the averaged weights have a held-out accuracy of "
        f"{share(case.accuracy[AVERAGE])}, the last ones {share(case.accuracy[LAST])} (before: "
        f"{share(case.accuracy[BEFORE])}; difference {share(case.accuracy_difference)}); from the same starts and "
        f"noise, average minus last (Student's t, {len(case.p_values)} tests with Holm's correction at {_LEVEL:g}), "
        f"{what}{rest}."
    )


def _attacks(study: Study) -> list[str]:
    if study.asked_attacks is None:
        return ["The discriminator was not asked about perturbed images, for attacked = 0."]
    if not study.asked_attacks:
        return ["No perturbed image was there to ask the discriminator about."]
    if not any(r.successes for r in study.attacks):
        return ["No perturbation turned an image, so the discriminator could not be asked about successes."]
    scores = list(dict.fromkeys(r.score for r in study.attacks))
    found = []
    for label in list(dict.fromkeys(r.label for r in study.attacks))[:3]:
        parts = []
        for score in scores:
            mine = [r for r in study.attacks if (r.label, r.score) == (label, score)]
            told = [f"{r.area.text()} against {r.against}" for r in mine if not r.reason]
            why = dict.fromkeys(f"no number ({r.reason})" for r in mine if r.reason)
            parts.append(f"the {score} " + ", ".join([*told, *why]))
        found.append(f"{label}, AUROC of “looks less real” for successes: {'; '.join(parts)}{_verdict(study, label)}.")
    return found


def _verdict(study: Study, label: str) -> str:
    mine = [r for r in study.attacks if (r.label, r.score) == (label, DISCRIMINATOR)]
    clean, noise = (next((r.area for r in mine if r.against == a and not r.reason), None) for a in (CLEAN, NOISE))
    if clean is None:
        return ""
    if clean.high < 0.5:
        return ": the discriminator takes the successes for more real than clean images"
    if clean.low <= 0.5:
        unsure = "whether the discriminator notices the attack cannot be told"
        return f": {unsure if clean.high - clean.low > _WIDE else 'the discriminator does not notice the attack'}"
    if noise is None or (noise.low <= 0.5 <= noise.high and noise.high - noise.low > _WIDE):
        return ": the discriminator notices something, and whether more than noise of the size cannot be told"
    if noise.low > 0.5:
        return ": the discriminator notices the attack beyond its size"
    return ": what the discriminator notices is no more than noise of the size"


def _tables(study: Study) -> list[Table]:
    tables = [_summary(study), _by_target(study), _kernel(study), _trace(study)]
    if study.taught is not None:
        rows = [[i + 1, r, f] for i, (r, f) in enumerate(zip(study.taught.real, study.taught.fake, strict=True))]
        tables.append(
            Table("ldam-discriminator", "Mean logits of the discriminator while it learnt, by round.",
                  ["round", "data", "chain_samples"], rows)
        )  # fmt: skip
    if study.averaging is not None:
        tables += _averaging_tables(study.averaging)
    if study.attacks:
        rows_ = [
            [r.label, r.score, r.against, *_ends(r.area), r.successes, r.others, r.reason] for r in study.attacks
        ]  # fmt: skip
        tables.append(
            Table("ldam-attacks", "How well a score tells a perturbation's successes from other images, by AUROC.",
                  ["perturbation", "score", "against", "auroc", "low", "high", "successes", "others", "reason"], rows_)
        )  # fmt: skip
    tables.append(
        Table("ldam-measures", "What each measure is.", ["measure", "meaning"], [[k, v] for k, v in MEASURES.items()])
    )
    return tables


def _ends(estimate: Estimate) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in (estimate.mean, estimate.low, estimate.high)]


def _number(value: float) -> Value:
    return "infinite" if value == math.inf else value if math.isfinite(value) else None


def _weight(group: Group) -> float | None:
    return group.weight if math.isfinite(group.weight) else None


def _summary(study: Study) -> Table:
    rows: list[Sequence[Value]] = []
    for setting in study.settings:
        group = study.groups[study.targets[0].name, setting]
        rows += [
            [setting, group.kind, _weight(group), measure, *_ends(found)]
            for measure in MEASURES
            if math.isfinite((found := study.over(setting, measure)).mean)
        ]
    return Table(
        "ldam-settings", "Means over targets of one measure under one setting, with 95 % intervals over chains.",
        ["setting", "kind", "weight", "measure", "mean", "low", "high"], rows,
    )  # fmt: skip


def _by_target(study: Study) -> Table:
    rows: list[Sequence[Value]] = []
    for (name, setting), group in study.groups.items():
        rows += [
            [name, setting, group.kind, _weight(group), measure, *_ends(shown(measure, found))]
            for measure, found in group.measures.items()
        ]
    return Table(
        "ldam-targets", "One measure of one target under one setting: mean over chains with its 95 % interval.",
        ["target", "setting", "kind", "weight", "measure", "mean", "low", "high"], rows,
    )  # fmt: skip


def _kernel(study: Study) -> Table:
    rows: list[Sequence[Value]] = []
    for target in study.targets:
        for setting in study.of("langevin"):
            g = study.groups[target.name, setting]
            numbers = (g.rhat, g.size, g.acceptance, g.virial, g.step)
            rows.append([target.name, setting, g.weight, *(_number(v) for v in numbers)])
    return Table(
        "ldam-chains",
        "The worst R-hat and the smallest effective sample size over activation, discriminator, total variation and "
        "potential; the acceptance of a Metropolis test; the measured temperature in units of the nominal one, where "
        "coordinates are unbounded. Chains that stand still have an infinite R-hat.",
        ["target", "setting", "weight", "rhat", "effective_size", "acceptance", "temperature_ratio", "step"], rows,
    )  # fmt: skip


def _trace(study: Study) -> Table:
    first = study.targets[0].name
    rows: list[Sequence[Value]] = []
    for setting in study.of("langevin"):
        seen = study.groups[first, setting].trace
        ends = (seen.mean(1), seen.min(1).values, seen.max(1).values) if len(seen) else ()
        rows += [[first, setting, i, *v] for i, v in enumerate(zip(*(e.tolist() for e in ends), strict=True))]
    return Table(
        "ldam-trace", "The activation after the burn-in, by step: mean, lowest and highest chain.",
        ["target", "setting", "step", "mean", "lowest", "highest"], rows,
    )  # fmt: skip


def _averaging_tables(case: Averaging) -> list[Table]:
    rows: list[Sequence[Value]] = [
        [network, "", None, "accuracy", *_ends(found), None] for network, found in case.accuracy.items()
    ]
    rows.append(["average - last", "", None, "accuracy", *_ends(case.accuracy_difference), None])
    for (network, target, weight), group in case.groups.items():
        rows += [
            [network, target, weight, m, *_ends(shown(m, found)), None]
            for m, found in group.measures.items()
            if m in COMPARED or m.startswith("diversity")
        ]
        rows.append([network, target, weight, "rhat", _number(group.rhat), None, None, None])
    for (weight, measure), found in case.differences.items():
        rows.append(["average - last", "", weight, measure, *_ends(found), case.p_values.get((weight, measure))])
    caption = (
        "Last against averaged weights: means over chains with 95 % intervals; differences are paired by chain, and "
        "mean over targets, those in words with p-values of Student's t after Holm's correction. Diversity is an "
        "absolute distance here."
    )
    columns = ["network", "target", "weight", "measure", "mean", "low", "high", "p_holm"]
    return [Table("ldam-averaging", caption, columns, rows)]
