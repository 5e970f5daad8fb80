"""What a reader should take away from :mod:`~aftershock.analyses.ldam`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...common.text import percent, with_interval
from ...findings import Claim, Quoted
from ..attacked import CLEAN, DISCRIMINATOR, NOISE
from ..averaging import AVERAGE, BEFORE, LAST, TESTED
from ..measured import PLAIN, RANDOM, REFERENCE, Averaging, Reading, Sampled, langevin_name
from ..measures import MIXED, UNMIXED

# Of a family of tests, after correction.
_LEVEL = 0.05
# A wider interval of an AUROC that holds 0.5 shows nothing.
_WIDE = 0.2


def claims(measured: Sampled) -> list[Claim]:
    """The most important first."""
    found = [_lead(measured), _weights(measured), _distance(measured), _chains(measured)]
    if measured.averaging is not None:
        found.append(averaging_claim(measured.averaging))
    return [*found, *attack_claims(measured)]


def _weights(measured: Sampled) -> Claim:
    parts = []
    estimates: dict[str, Quoted] = {}
    for weight in measured.weights:
        name = langevin_name(weight)
        seen = {m: measured.over(name, m) for m in ("activation_percentile", "diversity_features", "realism")}
        estimates |= {f"{m} at weight {weight:g}": found.ends for m, found in seen.items()}
        parts.append(
            f"at weight {weight:g}, activation above {with_interval(seen['activation_percentile'], 0, ' %', 100)} of "
            f"data images, diversity {with_interval(seen['diversity_features'])} of random data images', realism "
            f"{with_interval(seen['realism'])}"
        )
    text = (
        f"Langevin samples, means over {len(measured.targets)} targets: {'; '.join(parts)}. Realism is the share of "
        "held-out images that lie at least as far from the others: 0.5 for a typical one, 0 for what lies further out "
        f"than all, near 1 for images closer to the data than typical held-out ones; random ones of the targets' "
        f"classes have {with_interval(measured.over(RANDOM, 'realism'))}."
    )
    return Claim("samples", "", estimates, sentence=text)


def _lead(measured: Sampled) -> Claim:
    """What the discriminator's weight does."""
    first, last = measured.weights[0], measured.weights[-1]
    if first == last:
        text = (
            f"What excites {len(measured.targets)} targets of the network, by {langevin_name(first)}, beside the "
            "baselines."
        )
        return Claim("weight", "", {}, "one weight", text)
    nearer, cost = _verdicts(measured)
    text = (
        f"Raising the discriminator's weight from {first:g} to {last:g} brings samples {nearer}; their activations "
        f"are {cost}."
    )
    return Claim("weight", "", _changes(measured), f"{nearer}, {cost}", text)


def _changes(measured: Sampled) -> dict[str, Quoted]:
    """What changes from the first weight to the last."""
    low, high = langevin_name(measured.weights[0]), langevin_name(measured.weights[-1])
    return {m: measured.change(low, high, m).ends for m in ("distance_ratio", "activation_sd")}


def _verdicts(measured: Sampled) -> tuple[str, str]:
    """Whether the last weight's samples are nearer to data than the first one's, and what that costs in activation."""
    low, high = langevin_name(measured.weights[0]), langevin_name(measured.weights[-1])
    change, lost = measured.change(low, high, "distance_ratio"), measured.change(low, high, "activation_sd")
    nearer = (
        "nearer to data"
        if change.high < 0
        else "further away from data"
        if change.low > 0
        else "not measurably nearer to data"
    )
    return nearer, "weaker" if lost.high < 0 else "stronger" if lost.low > 0 else "not measurably different"


def _distance(measured: Sampled) -> Claim:
    """How far from data samples and baselines lie."""
    low, high = langevin_name(measured.weights[0]), langevin_name(measured.weights[-1])
    found = {s: measured.over(s, "distance_ratio") for s in dict.fromkeys((PLAIN, REFERENCE, RANDOM, low, high))}
    text = (
        "Distance to data in the features of an independent classifier (held-out accuracy "
        f"{100 * measured.judge_accuracy:.0f} %; 1: a median held-out image): plain activation "
        f"maximisation {with_interval(found[PLAIN])}, the reference measure alone "
        f"{with_interval(found[REFERENCE])}, random data images {with_interval(found[RANDOM])}"
    )
    estimates: dict[str, Quoted] = {s: e.ends for s, e in found.items()}
    estimates["judge_accuracy"] = measured.judge_accuracy
    if low == high:
        return Claim("distance", "", estimates, sentence=f"{text}, {low} {with_interval(found[low])}.")
    change, lost = (measured.change(low, high, m) for m in ("distance_ratio", "activation_sd"))
    nearer, cost = _verdicts(measured)
    text = (
        f"{text}; {low} {with_interval(found[low])}, {high} {with_interval(found[high])}. From weight "
        f"{measured.weights[0]:g} to {measured.weights[-1]:g} samples come {nearer} ({with_interval(change)}) and "
        f"activations are {cost} ({with_interval(lost)} standard deviations)."
    )
    return Claim("distance", "", estimates, nearer, text)


def _chains(measured: Sampled) -> Claim:
    """Return whether the chains sampled their density."""
    groups = [measured.groups[t.name, s] for t in measured.targets for s in measured.of("langevin")]
    rhats = [g.rhat for g in groups if not math.isnan(g.rhat)]
    if not rhats:
        text = "The chains are too short to tell whether they have mixed."
        return Claim("mixing", "", {}, "unknown", text)
    worst, mixed = max(rhats), sum(r < MIXED for r in rhats)
    smallest = min((g.size for g in groups if math.isfinite(g.size)), default=math.nan)
    facts = measured.facts
    kernel = "Metropolis-adjusted" if facts["method"] == "mala" else "unadjusted"
    accepts = "accepts" if facts["method"] == "mala" else "would have accepted"
    acceptance = sum(g.acceptance for g in groups) / len(groups)
    known = [g.virial for g in groups if math.isfinite(g.virial)]
    temperature = (
        f"; the measured temperature is {min(known):.2f} to {max(known):.2f} times the nominal {facts['temperature']:g}"
        if known and facts["coordinates"] == "gaussian"
        else f"; the nominal temperature is {facts['temperature']:g}"
    )
    if worst >= UNMIXED:
        reached = f"reaches {worst:.2f}" if math.isfinite(worst) else "is infinite for chains that stand still"
        verdict, words = (
            "not mixed",
            f"R-hat {reached}, so the chains have not mixed: this is noisy gradient ascent from their "
            "starts, not a sample of the stationary density",
        )
    elif mixed == len(rhats):
        verdict, words = (
            "mixed",
            f"R-hat is below {MIXED} everywhere: the monitored quantities of the chains have mixed",
        )
    else:
        sets = f"{mixed} of {len(rhats)} sets of chains"
        verdict = "nearly mixed"
        words = f"R-hat is at most {worst:.2f}, and below {MIXED} for {sets}: nearly mixed"
    text = (
        f"{measured.chains} {kernel} chains of {facts['steps']} steps ({facts['burn_in']} of them burn-in) for each "
        f"target and weight: {words}; the smallest effective sample size is {smallest:.0f}, a Metropolis test "
        f"{accepts} {100 * acceptance:.0f} % of the steps{temperature}."
    )
    estimates: dict[str, Quoted] = {
        "worst R-hat": worst, "smallest effective size": smallest, "acceptance": acceptance
    }  # fmt: skip
    return Claim("mixing", "", estimates, verdict, text)


def averaging_claim(case: Averaging) -> Claim:
    """What averaging weights does to samples, after correction for all tests."""
    differing: list[str] = []
    same: dict[float, list[str]] = {}
    estimates: dict[str, Quoted] = {name: found.ends for name, found in case.accuracy.items()}
    estimates["average - last"] = case.accuracy_difference.ends
    for (weight, measure), p in case.p_values.items():
        if p is not None and p < _LEVEL:
            change = case.differences[weight, measure]
            estimates[f"{TESTED[measure]} at weight {weight:g}"] = change.ends
            differing.append(f"{TESTED[measure]} at weight {weight:g} by {with_interval(change, 3)} (p = {p:.2g})")
        else:
            same.setdefault(weight, []).append(TESTED[measure])
    alike = "; ".join(f"{', '.join(words)} at weight {weight:g}" for weight, words in same.items())
    what = f"they differ in {', '.join(differing)}" if differing else "no measured difference between their samples"
    rest = f"; no difference shown in {alike}" if differing and alike else ""
    text = (
        f"Parameter averaging after {case.steps} SGD steps: the averaged weights have a held-out accuracy of "
        f"{percent(case.accuracy[AVERAGE])}, the last ones {percent(case.accuracy[LAST])} (before: "
        f"{percent(case.accuracy[BEFORE])}; difference {percent(case.accuracy_difference)}); from the same starts and "
        f"noise, average minus last (Student's t, {len(case.p_values)} tests with Holm's correction at {_LEVEL:g}), "
        f"{what}{rest}."
    )
    return Claim("averaging", "", estimates, "different" if differing else "no difference", text)


def attack_claims(measured: Sampled) -> Iterator[Claim]:
    """What both scores make of attacks; of the first three perturbations."""
    silent = ""
    if measured.asked_attacks is None:
        silent, text = "not asked", "Perturbed images were not scored with the discriminator, because attacked = 0."
    elif not measured.asked_attacks:
        silent, text = "no perturbation", "There was no perturbed image to score with the discriminator."
    elif not any(r.successes for r in measured.attacks):
        silent = "no success"
        text = "No perturbation succeeded, so there were no successes to score with the discriminator."
    if silent:
        yield Claim("attack", "", {}, silent, text)
        return
    for label in list(dict.fromkeys(r.label for r in measured.attacks))[:3]:
        parts = []
        estimates: dict[str, Quoted] = {}
        mine = [r for r in measured.attacks if r.label == label]
        for score in dict.fromkeys(r.score for r in measured.attacks):
            given = [r for r in mine if r.score == score]
            estimates |= {f"{score} against {r.against}": r.area.ends for r in given if not r.reason}
            told = [f"{with_interval(r.area)} against {r.against}" for r in given if not r.reason]
            why = dict.fromkeys(f"no number ({r.reason})" for r in given if r.reason)
            parts.append(f"the {score} " + ", ".join([*told, *why]))
        verdict = _noticed([r for r in mine if r.score == DISCRIMINATOR])
        text = f"{label}, AUROC of “looks less real” for successes: {'; '.join(parts)}"
        yield Claim("attack", label, estimates, verdict, f"{text}{f': {verdict}' if verdict else ''}.")


def _noticed(readings: list[Reading]) -> str:
    clean, noise = (next((r.area for r in readings if r.against == a and not r.reason), None) for a in (CLEAN, NOISE))
    if clean is None:
        return ""
    if clean.high < 0.5:
        return "the discriminator rates the successes as more real than clean images"
    if clean.low <= 0.5:
        unsure = "the data do not tell whether the discriminator detects the attack"
        return unsure if clean.high - clean.low > _WIDE else "the discriminator does not detect the attack"
    if noise is None or (noise.low <= 0.5 <= noise.high and noise.high - noise.low > _WIDE):
        return "the discriminator detects a change, and the data do not tell whether more than noise of the same size"
    if noise.low > 0.5:
        return "the discriminator detects the attack beyond its size"
    return "the discriminator detects the attack no better than noise of the same size"
