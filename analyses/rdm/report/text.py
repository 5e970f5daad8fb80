"""What :mod:`~aftershock.analyses.rdm` found, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..attacked import ATTACKED
from ..graph import class_interval
from ..study import Study, Value, Variant, count_of, number

HIGH = 0.95


def sentences(study: Study, variants: Sequence[Variant], placed: Sequence[Sequence[Value]]) -> Iterator[str]:
    """The most important first; ``placed`` are rows of the table of attacked images."""
    main, last, first = variants[0], study.taps[-1], study.taps[0]
    here, there = study.mean(main, last), study.mean(main, first)
    null = study.null[main.name, last]
    fewest = min(study.counts)
    yield (
        f"At the last tap ({last}) the Fiedler partition of the Hamming similarities ({main.laplacian} Laplacian, no "
        f"labels used) puts {_share(here)} of the images on their class's side, on average over {len(study.pairs)} "
        f"pairs of classes with {count_of(study.counts)} images a class; at the first tap ({first}) {_share(there)}. "
        f"Permuted labels give {null.mean():.3f}."
    )
    means = [study.mean(main, tap)[0] for tap in study.taps]
    if len(study.taps) > 2 and len(set(means)) > 1:
        from scipy.stats import spearmanr

        correlation = float(spearmanr(range(len(means)), means).statistic)
        steady = [i for i in range(len(means)) if min(means[i:]) >= HIGH]
        reach = (
            f"from {study.taps[steady[0]]} (tap {study.depth[study.taps[steady[0]]]} of {len(study.depth)}) on it "
            f"stays at {HIGH:.0%} or above"
            if steady
            else f"it does not reach {HIGH:.0%} at the last tap"
        )
        course = "rises" if correlation > 0.5 else "falls" if correlation < -0.5 else "does not change steadily"
        pairs = study.accuracy[main.name, last]
        hardest = int(pairs.argmin())
        yield (
            f"The accuracy {course} with depth (Spearman {correlation:.2f} with the tap's number); {reach}. The "
            f"hardest pair at the last tap is {study.pair(hardest)} ({pairs[hardest]:.3f})."
        )
    for other in variants[1:]:
        if other.network == "untrained":
            untrained = study.mean(other, last)
            gap, start = _gap(study, main, other, last), _gap(study, main, other, first)
            verdict = "the training makes the difference" if _above(gap) else "no clear difference from the trained one"
            yield (
                f"The untrained network of the same architecture reaches {_share(untrained)} at the last tap: "
                f"{verdict} (trained minus untrained {_difference(gap)}; at the first tap {_difference(start)})."
            )
    if study.no_twin:
        yield f"There is no untrained network to compare with: {study.no_twin}"
    for other in variants[1:]:
        if other.graph == "hamming":
            raw, loose = study.mean(other, last), _unstable(study, other)
            consequence = ": it follows outliers there" if loose > _unstable(study, main) else ""
            yield (
                f"The raw Laplacian separates {_share(raw)} at the last tap; at {loose} of the {len(study.taps)} taps "
                "it cuts fewer than one image in ten off in at least half of the pairs (normalised: at "
                f"{_unstable(study, main)}){consequence}."
            )
    compared = [v for v in variants[1:] if v.graph in ("jaccard", "cosine")]
    if compared:
        parts = "; ".join(
            f"{v.name}: {_share(study.mean(v, last))}, and over all taps bits by Hamming minus this "
            f"{_difference(_gap(study, main, v))}"
            for v in compared
        )
        yield f"Other similarities at the last tap: {parts}."
    at_last = [row for row in placed if row[0] == last]
    attacked = [row for row in at_last if row[3] == ATTACKED and row[2] != "all"]
    if attacked:
        told = "; ".join(f"{row[2]} {_percent(row)} of {row[4]}" for row in attacked)
        rest = ", ".join(f"{row[3]} {_percent(row)}" for row in at_last if row[2] == "all" and row[3] != ATTACKED)
        yield f"At the last tap successful attacks lie on the reached class's side of clean images: {told} ({rest})."
    tied = sum(int((~found).sum()) for found in study.unique.values())
    if tied:
        total = sum(len(found) for found in study.unique.values())
        yield f"{tied} of {total} graphs have no Fiedler vector of their own; all their images count as half right."
    if fewest < study.asked or study.left_out:
        left = f"; {study.left_out} of the model's classes are not studied" if study.left_out else ""
        yield (
            f"There are {fewest} correctly classified images of the rarest class, where {study.asked} were asked "
            f"for{left}."
        )


def _gap(
    study: Study, variant: Variant, other: Variant, tap: str | None = None
) -> tuple[float, float | None, float | None]:
    """Differences in accuracy, pair by pair, at one tap or on average over all, with their interval."""
    taps = study.taps if tap is None else [tap]
    gaps = np.mean([study.accuracy[variant.name, t] - study.accuracy[other.name, t] for t in taps], axis=0)
    return class_interval(gaps, study.pairs, bounds=(-1.0, 1.0))


def _unstable(study: Study, variant: Variant) -> int:
    return sum(float(np.median(study.smaller[variant.name, tap])) < 0.1 for tap in study.taps)


def _above(gap: tuple[float, float | None, float | None]) -> bool:
    return gap[1] is not None and gap[1] > 0


def _share(found: tuple[float, float | None, float | None]) -> str:
    mean, low, high = found
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} (95 % interval {low:.3f} to {high:.3f})"


def _difference(found: tuple[float, float | None, float | None]) -> str:
    mean, low, high = found
    return f"{mean:+.3f}" if low is None or high is None else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _percent(row: Sequence[Value]) -> str:
    return f"{number(row[5]):.1%}"
