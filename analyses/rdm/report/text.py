"""What a reader should take away from :mod:`~aftershock.analyses.rdm`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....harness.statistics.intervals import Estimate
from ...common.text import ends, no_untrained, number, side, span, with_interval
from ...findings import Claim, Quoted
from ..attacked import ATTACKED
from ..graph import class_interval
from ..measured import Separation, Variant
from .tables import placed_rows

HIGH = 0.95


def claims(measured: Separation) -> list[Claim]:
    """The most important first."""
    others = measured.variants[1:]
    found = [_separation(measured), *_course(measured)]
    found += [_untrained(measured, v) for v in others if v.network == "untrained"]
    found += no_untrained(measured.no_untrained)
    found += [_raw(measured, v) for v in others if v.graph == "hamming"]
    return [*found, *_similarities(measured), *_attacked(measured), *_undecided(measured), *_few(measured)]


def _separation(measured: Separation) -> Claim:
    main, last, first = measured.variants[0], measured.taps[-1], measured.taps[0]
    here, there = measured.mean(main, last), measured.mean(main, first)
    null = float(measured.split(main, last).null.mean())
    text = (
        f"At the last tap ({last}) the Fiedler partition of the Hamming similarities ({main.laplacian} Laplacian, no "
        f"labels used) puts {_share(here)} of the images on their class's side, on average over {len(measured.pairs)} "
        f"pairs of classes with {span(measured.counts)} images a class; at the first tap ({first}) {_share(there)}. "
        f"Permuted labels give {null:.3f}."
    )
    return Claim("separation", last, {"last tap": ends(here), "first tap": ends(there), "null": null}, sentence=text)


def _course(measured: Separation) -> Iterator[Claim]:
    main, last = measured.variants[0], measured.taps[-1]
    means = [measured.mean(main, tap).value for tap in measured.taps]
    if len(means) <= 2 or len(set(means)) <= 1:
        return
    from scipy.stats import spearmanr

    correlation = float(spearmanr(range(len(means)), means).statistic)
    steady = [t for i, t in enumerate(measured.taps) if min(means[i:]) >= HIGH]
    reach = f"it does not reach {HIGH:.0%} at the last tap"
    if steady:
        depth = f"tap {measured.depth[steady[0]]} of {len(measured.depth)}"
        reach = f"from {steady[0]} ({depth}) on it stays at {HIGH:.0%} or above"
    course = "rises" if correlation > 0.5 else "falls" if correlation < -0.5 else "does not change steadily"
    pairs = measured.split(main, last).accuracy
    hardest = int(pairs.argmin())
    text = (
        f"The accuracy {course} with depth (Spearman {correlation:.2f} with the tap's number); {reach}. The "
        f"hardest pair at the last tap is {measured.pair(hardest)} ({pairs[hardest]:.3f})."
    )
    estimates: dict[str, Quoted] = {"spearman": correlation, measured.pair(hardest): float(pairs[hardest])}
    yield Claim("course", steady[0] if steady else "", estimates, course, text)


def _untrained(measured: Separation, other: Variant) -> Claim:
    main, last, first = measured.variants[0], measured.taps[-1], measured.taps[0]
    untrained, gap = measured.mean(other, last), _gap(measured, main, other, last)
    start = _gap(measured, main, other, first)
    better = side(gap) == "above"
    verdict = "the training makes the difference" if better else "no clear difference from the trained one"
    text = (
        f"The untrained network of the same architecture reaches {_share(untrained)} at the last tap: "
        f"{verdict} (trained minus untrained {_difference(gap)}; at the first tap {_difference(start)})."
    )
    estimates = {"untrained": ends(untrained), "difference": ends(gap), "difference at the first tap": ends(start)}
    return Claim("untrained-network", last, estimates, verdict, text)


def _raw(measured: Separation, other: Variant) -> Claim:
    main, last = measured.variants[0], measured.taps[-1]
    raw, loose, tight = measured.mean(other, last), _unstable(measured, other), _unstable(measured, main)
    text = (
        f"The raw Laplacian separates {_share(raw)} at the last tap; at {loose} of the {len(measured.taps)} taps "
        "it cuts fewer than one image in ten off in at least half of the pairs (normalised: at "
        f"{tight}){': it follows outliers there' if loose > tight else ''}."
    )
    estimates: dict[str, Quoted] = {"accuracy": ends(raw), "uneven taps": loose, "uneven taps, normalised": tight}
    return Claim("raw-laplacian", last, estimates, "follows outliers" if loose > tight else "", text)


def _similarities(measured: Separation) -> Iterator[Claim]:
    main, last = measured.variants[0], measured.taps[-1]
    found = {
        v.name: (measured.mean(v, last), _gap(measured, main, v))
        for v in measured.variants[1:]
        if v.graph in ("jaccard", "cosine")
    }
    if found:
        parts = "; ".join(
            f"{name}: {_share(here)}, and over all taps bits by Hamming minus this {_difference(gap)}"
            for name, (here, gap) in found.items()
        )
        estimates = {name: ends(gap) for name, (_, gap) in found.items()}
        yield Claim("other-similarities", last, estimates, sentence=f"Other similarities at the last tap: {parts}.")


def _attacked(measured: Separation) -> Iterator[Claim]:
    last = measured.taps[-1]
    rows = [row for row in placed_rows(measured) if row[0] == last]
    attacked = [row for row in rows if row[3] == ATTACKED and row[2] != "all"]
    if attacked:
        others = [row for row in rows if row[2] == "all" and row[3] != ATTACKED]
        told = "; ".join(f"{row[2]} {number(row[5]):.1%} of {row[4]}" for row in attacked)
        rest = ", ".join(f"{row[3]} {number(row[5]):.1%}" for row in others)
        text = f"At the last tap successful attacks lie on the predicted class's side of clean images: {told} ({rest})."
        names = [str(row[2]) for row in attacked] + [str(row[3]) for row in others]
        intervals = [(number(r[5]), number(r[6]), number(r[7])) for r in (*attacked, *others)]
        yield Claim("attacked-side", last, dict(zip(names, intervals, strict=True)), sentence=text)


def _undecided(measured: Separation) -> Iterator[Claim]:
    tied = sum(int((~split.unique).sum()) for split in measured.splits.values())
    if tied:
        total = sum(len(split.unique) for split in measured.splits.values())
        text = f"{tied} of {total} graphs have no Fiedler vector of their own; all their images count as half right."
        yield Claim("undecided-graphs", "", {"undecided": tied, "graphs": total}, sentence=text)


def _few(measured: Separation) -> Iterator[Claim]:
    fewest = min(measured.counts)
    if fewest < measured.asked or measured.left_out:
        left = f"; {measured.left_out} of the model's classes are not studied" if measured.left_out else ""
        text = (
            f"There are {fewest} correctly classified images of the rarest class, where {measured.asked} were asked "
            f"for{left}."
        )
        yield Claim("few-images", "", {"images": fewest, "classes left out": measured.left_out}, sentence=text)


def _gap(measured: Separation, variant: Variant, other: Variant, tap: str | None = None) -> Estimate:
    """Differences in accuracy, pair by pair, at one tap or on average over all, with their interval."""
    taps = measured.taps if tap is None else [tap]
    gaps = np.mean([measured.split(variant, t).accuracy - measured.split(other, t).accuracy for t in taps], axis=0)
    return class_interval(gaps, measured.pairs, bounds=(-1.0, 1.0))


def _unstable(measured: Separation, variant: Variant) -> int:
    return sum(float(np.median(measured.split(variant, tap).smaller)) < 0.1 for tap in measured.taps)


def _share(found: Estimate) -> str:
    return with_interval(found, 3)


def _difference(found: Estimate) -> str:
    return with_interval(found, 3, sign="+")
