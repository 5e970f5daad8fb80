"""What an entry and its table say of each other: everything that can be computed again is, and compared.

This proves that an entry is consistent, not that it is true: who makes up scores can make up all of them. What agrees
with the files alone is ``claimed``; only a run by somebody else makes it more (``aftershock verify --rerun``).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...harness.core.content_keys import PROTOCOL_VERSION
from ...harness.core.errors import UsageError
from ...harness.core.protocol_content import positions_digest
from ...harness.evaluation.alarms import within_reach
from ...harness.evaluation.radii import DISCONTINUOUS
from ...harness.evaluation.rankability import (
    ABLATION,
    BELOW_FLOOR,
    BELOW_THREAT,
    FLOOR,
    FLOOR_IMAGES,
    NO_ADAPTIVE,
    SAME,
    TIES,
    floor,
    is_upper_bound,
    reasons,
)
from ...harness.evaluation.seed_scores import TIED
from ...harness.statistics.detection import ALPHAS, threshold
from .images import ImageTable, SeedImages, read_images
from .metrics import metrics_of
from .schema import SUFFIX, TABLE_SUFFIX, Claims, Entry, Metrics, parse_entry, read_content

DECIDES_NO_NUMBER = True

# Metrics are written with six digits; the last may differ between versions of a library.
_RELATIVE, _ABSOLUTE = 2e-5, 1e-9
# Distances are measured in single precision.
_BEYOND = 1 + 1e-4
# What a digest holds besides a protocol's content.
_DIGESTED = {"kind", "protocol", "seeds"}
# Images, or the share of them, whose distances may contradict their scores: rounded images count for these alone.
_CONTRADICTING, _CONTRADICTING_SHARE = 2, 0.1
# The attack of the package that knows a detector, and the norm that it has unless told otherwise.
_ADAPTIVE, _DEFAULT_NORM = "adaptive", "linf"


@dataclass(frozen=True)
class Disagreement:
    """One thing that does not agree.

    Attributes:
        field: of the entry, or the table's column, by its path.
        stated: what is written there.
        found: what was found instead, or what is wrong, in words.
    """

    field: str
    stated: str
    found: str

    def __str__(self) -> str:
        return f"{self.field}: {self.stated or 'nothing'} is written, {self.found}"


@dataclass(frozen=True)
class Verified:
    """An entry, its table, and what does not agree; ``table`` is ``None`` where there is none or it cannot be read.

    ``digest`` is the sha256 of the entry's file.
    """

    path: Path
    entry: Entry
    table: ImageTable | None
    disagreements: Sequence[Disagreement]
    digest: str = ""


def table_path(path: Path) -> Path:
    """Return the file of an entry's table."""
    return path.with_name(path.name.removesuffix(SUFFIX) + TABLE_SUFFIX)


def verify(path: Path, within: Path | None = None) -> Verified:
    """Read an entry and compare everything that can be.

    Args:
        path: the entry.
        within: the folder that its files belong to.

    Raises:
        UsageError: if the entry itself cannot be read.
    """
    content = read_content(path, within)
    entry = parse_entry(content, path)
    found = list(_about_itself(path, entry))
    table = None
    if entry.images is None:
        found += [] if entry.images_missing else [_wrong("images", "", "without a table there has to be a reason")]
    else:
        try:
            table, digest = read_images(table_path(path), within, entry.images.reach)
        except UsageError as error:
            found.append(_wrong("images", table_path(path).name, str(error)))
        else:
            if digest != entry.images.sha256:
                found.append(_differs("images.sha256", entry.images.sha256, digest))
            found += _about_table(entry, table)
    return Verified(path, entry, table, found, hashlib.sha256(content).hexdigest())


def _wrong(field: str, stated: object, why: str) -> Disagreement:
    return Disagreement(field, str(stated)[:80], why)


def _differs(field: str, stated: object, found: object) -> Disagreement:
    return Disagreement(field, str(stated)[:80], f"{str(found)[:80]} was found")


def _about_itself(path: Path, entry: Entry) -> Iterator[Disagreement]:
    """What an entry says of itself, without its table."""
    if path.name != entry.stem + SUFFIX:
        yield _wrong("name of the file", path.name, f"the entry is called {entry.stem}{SUFFIX}")
    yield from _about_protocol(entry)
    yield from _about_claims(entry)
    m = entry.metrics
    if m.robust_accuracy_at_fpr_5 is None and not entry.claims.not_ranked_reason:
        yield _wrong("metrics.robust_accuracy_at_fpr_5", "", "a row that may be ranked has one")


def _about_protocol(entry: Entry) -> Iterator[Disagreement]:
    p = entry.protocol
    if p.version > PROTOCOL_VERSION:
        yield _wrong("protocol.version", p.version, f"this version knows up to {PROTOCOL_VERSION}")
    try:
        whole = p.whole()
        for name, found in (("digest", whole.digest), ("series", whole.series)):
            if getattr(p, name) != found:
                yield _differs(f"protocol.{name}", getattr(p, name), found)
    except (TypeError, ValueError, RecursionError) as error:
        yield _wrong("protocol.content", "", str(error)[:200])
    if len(set(p.seeds)) < len(p.seeds):
        yield _wrong("protocol.seeds", p.seeds, "a seed stands there twice")
    content = p.content
    own = sorted(_DIGESTED & set(content))
    if own:
        # They would stand in the place of what the digest adds, and give another protocol the same one.
        yield _wrong("protocol.content", ", ".join(own), "the digest adds these itself")
    threat = content.get("threat")
    if threat != {"norm": entry.threat.norm, "eps": entry.threat.eps}:
        yield _differs("threat", f"{entry.threat.norm} {entry.threat.eps:g}", f"protocol.content.threat {threat}")
    if entry.data_digest != content.get("data"):
        yield _differs("data_digest", entry.data_digest, f"protocol.content.data {content.get('data')}")
    model = content.get("model")
    weights = model.get("weights") if isinstance(model, dict) else None
    if weights is not None and entry.weights_digest != weights:
        yield _differs("weights_digest", entry.weights_digest, f"protocol.content.model.weights {weights}")
    if p.version == PROTOCOL_VERSION and dict(p.floor) != floor():
        yield _differs("protocol.floor", dict(p.floor), floor())


def _about_claims(entry: Entry) -> Iterator[Disagreement]:
    """What flags mean for the row: those that take its rank away, and those that make its number an upper bound."""
    claims, m = entry.claims, entry.metrics
    flags = [flag for flag in claims.flags.split("; ") if flag]
    taken = reasons(flags, ())
    missing = [flag for flag in taken if flag not in claims.not_ranked_reason.split("; ")]
    if missing:
        yield _wrong("claims.not_ranked_reason", claims.not_ranked_reason, f"its flags take its rank: {missing[0]}")
    robust = m.robust_accuracy_at_fpr_5
    if robust is not None:
        bound = int(is_upper_bound(flags, 1.0 if robust > 0 else 0.0))
        if claims.robust_accuracy_is_upper_bound != bound:
            yield _differs("claims.robust_accuracy_is_upper_bound", claims.robust_accuracy_is_upper_bound, bound)
    for earlier, later in itertools.pairwise([*(c.before for c in entry.challenges), robust]):
        if earlier is not None and later is not None and later > earlier + _ABSOLUTE:
            yield _wrong("challenges", earlier, f"a challenge lowers the number, and {later:g} is written after it")
    known = {str(p[0]) for p in _perturbations(entry)}
    worst = claims.worst_perturbation
    if worst and not {worst, worst.rpartition("@")[0]} & known:
        yield _wrong("claims.worst_perturbation", worst, "the protocol has no such attack")
    if (claims.n_unseen or 0) > len(known):
        yield _wrong("claims.n_unseen", claims.n_unseen, f"the protocol has {len(known)} perturbations")
    if entry.detector == ABLATION:
        if entry.part is not None:
            yield _wrong("part", entry.part.name, "the row without a detector has none")
        return
    if not claims.not_ranked_reason:
        yield from _about_attacks(entry, flags)


def _about_attacks(entry: Entry, flags: Sequence[str]) -> Iterator[Disagreement]:
    """What the protocol's attacks mean for a row that may be ranked, by their parameters where these are stated."""
    stated, images = entry.claims.flags, entry.metrics.n_images
    adaptive = [p for p in _perturbations(entry) if str(p[0]).startswith(_ADAPTIVE) or p[1] == _ADAPTIVE]
    if not adaptive and NO_ADAPTIVE not in flags:
        yield _wrong("claims.flags", stated, f"no attack of the protocol knows a detector: {NO_ADAPTIVE}")
    if images < FLOOR_IMAGES and BELOW_FLOOR not in flags:
        yield _wrong("claims.flags", stated, f"{images} images are fewer than the floor: {BELOW_FLOOR}")
    if not adaptive or any(p[1] != _ADAPTIVE for p in adaptive):
        # What the parameters of other people's attacks mean is not known here.
        return
    params = [_params(p) for p in adaptive]
    threat = entry.threat
    of_norm = [p for p in params if p.get("norm", _DEFAULT_NORM) == threat.norm]
    full = [p for p in of_norm if _at_least(p, "eps", threat.eps * (1 - SAME))]
    if not full:
        yield _wrong("claims.flags", stated, f"no adaptive attack has the whole budget {threat.eps:g}: {BELOW_THREAT}")
        return
    for name, least in asdict(FLOOR).items():
        if not any(_at_least(p, name, least) for p in full):
            yield _wrong("claims.flags", stated, f"no adaptive attack makes {least} {name}: {BELOW_FLOOR}")
    if not all(_at_least(p, "images", images) for p in params):
        yield _wrong("metrics.n_images", images, "an adaptive attack of the protocol is about fewer")


def _params(perturbation: Sequence[Any]) -> Mapping[str, Any]:
    """Return the parameters that a protocol states of a perturbation."""
    portable = perturbation[2] if len(perturbation) > 2 else None
    params = portable[0] if isinstance(portable, list) and portable else None
    return params if isinstance(params, dict) else {}


def _at_least(params: Mapping[str, Any], name: str, least: float) -> bool:
    """Whether a parameter is no number, as one that has its default, or large enough."""
    value = params.get(name)
    return isinstance(value, bool) or not isinstance(value, int | float) or value >= least


def _perturbations(entry: Entry) -> list[list[Any]]:
    found = entry.protocol.content.get("perturbations")
    return [p for p in found if isinstance(p, list) and len(p) > 1] if isinstance(found, list) else []


def _about_table(entry: Entry, table: ImageTable) -> Iterator[Disagreement]:
    lines = sum(len(s.scores.calibrate) + len(s.scores.index) for s in table.seeds)
    if entry.images is not None and lines != entry.images.rows:
        yield _differs("images.rows", entry.images.rows, lines)
    seeds = [int(s.scores.seed) for s in table.seeds]
    if sorted(seeds) != sorted(entry.protocol.seeds):
        yield _differs("protocol.seeds", entry.protocol.seeds, f"seeds {seeds} in the table")
    problems = [d for s in table.seeds for d in _about_seed(entry, s, table.reach)]
    yield from problems
    if problems or not table.seeds:
        return
    yield from _about_metrics(entry, table)
    yield from _flags_of_table(entry, table)


def _about_seed(entry: Entry, seed: SeedImages, reach: float | None) -> Iterator[Disagreement]:
    """What one seed's rows say: which images they are, and what cannot be."""
    scores, where = seed.scores, f"seed {seed.scores.seed}"
    splits = entry.protocol.content.get("splits")
    wanted = splits[1:] if isinstance(splits, list) and len(splits) == 3 else [None, None]
    for name, index, digest in zip(
        ("calibrate", "evaluate"), (scores.calibrate_index, scores.index), wanted, strict=True
    ):
        if positions_digest("test", index) != digest:
            yield _wrong("index", f"{len(index)} {name} images of {where}", "they are not those of protocol.content")
    n = entry.metrics.n_images
    if n > len(scores.index):
        yield _wrong("metrics.n_images", n, f"{where} has {len(scores.index)} evaluate images")
    if entry.detector == ABLATION and (np.any(scores.calibrate != 0) or np.any(scores.clean != 0)):
        yield _wrong("score", where, "the row without a detector gives every image the score 0")
    if entry.detector == ABLATION and np.any(scores.lowest[np.isfinite(scores.lowest)] != 0):
        yield _wrong("lowest", where, "the row without a detector gives every image the score 0")
    yield from _about_distances(entry, seed, reach)


def _about_distances(entry: Entry, seed: SeedImages, reach: float | None) -> Iterator[Disagreement]:
    where, counted = f"seed {seed.scores.seed}", ~np.isnan(seed.r0)
    if not counted.any():
        if (reach is not None and entry.metrics.n_price is not None) or _has_price(entry, seed):
            yield _wrong("r0", where, "no image has a distance")
        return
    if reach is None:
        yield _wrong("images.reach", "", "distances need the largest one that counts")
        return
    r0, rd = seed.r0[counted], seed.rd[counted]
    finite = np.isfinite(rd)
    if np.any(rd[finite] < r0[finite] / _BEYOND):
        yield _wrong("rd", where, "an image is passed nearer than anything fools")
    if not within_reach(np.concatenate([r0[np.isfinite(r0)], rd[finite]]), reach).all():
        yield _wrong("rd", where, f"a distance lies beyond images.reach {reach:g}")
    if np.any(np.isinf(r0) & np.isfinite(rd)):
        yield _wrong("rd", where, "an image that nothing fools is passed")
    beyond = np.isfinite(seed.scores.lowest[counted]) & ~within_reach(r0, entry.threat.eps)
    if beyond.sum() > max(_CONTRADICTING, _CONTRADICTING_SHARE * counted.sum()):
        yield _wrong("r0", f"{beyond.sum()} images of {where}", "the threat's budget fools them, which is smaller")
    if entry.detector == ABLATION and not np.array_equal(r0, rd):
        yield _wrong("rd", where, "the row without a detector is passed by whatever fools")
    first = np.flatnonzero(seed.scores.right)
    priced, asked = np.flatnonzero(counted), entry.protocol.content.get("price_images")
    expected = first[: asked if isinstance(asked, int) else 0]
    if not np.array_equal(priced, expected):
        yield _wrong("censored", f"{len(priced)} images of {where}",
                     f"the price is about the first {asked} that the model gets right")  # fmt: skip


def _has_price(entry: Entry, seed: SeedImages) -> bool:
    """Whether a row's distances were searched for: where nothing was found out, the row has no rank."""
    content = entry.protocol.content
    asked = content.get("price_images")
    wanted = isinstance(asked, int) and asked > 0 and any(p[1] == _ADAPTIVE for p in _perturbations(entry))
    ranked = not entry.claims.not_ranked_reason and entry.protocol.version == PROTOCOL_VERSION
    return wanted and ranked and bool(seed.scores.right.any())


def _about_metrics(entry: Entry, table: ImageTable) -> Iterator[Disagreement]:
    found = metrics_of(table, entry.detector, entry.metrics.n_images)
    for name in Metrics.model_fields:
        stated, computed = getattr(entry.metrics, name), getattr(found, name)
        without = entry.metrics.robust_accuracy_at_fpr_5 is None or name == "adaptive_undetected_at_fpr_5"
        if stated is None and without and entry.claims.not_ranked_reason:
            # A row that is not ranked may leave its numbers out.
            continue
        if not _equal(stated, computed):
            yield _differs(f"metrics.{name}", stated, computed)


def _equal(stated: float | None, found: float | None) -> bool:
    if stated is None or found is None:
        return stated is found
    return math.isclose(stated, found, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _flags_of_table(entry: Entry, table: ImageTable) -> Iterator[Disagreement]:
    """Flags that follow from the table: the entry has to carry them."""
    flags = {flag.partition(":")[0] for flag in entry.claims.flags.split("; ")}
    if entry.detector != ABLATION:
        for seed in table.seeds:
            calibrate = seed.scores.calibrate
            tied = float((calibrate == threshold(calibrate, ALPHAS["5"])).mean())
            # Scores are published with nine digits, so that more of them may tie than did.
            if tied > 2 * TIED and TIES not in flags:
                yield _wrong("claims.flags", entry.claims.flags, f"{tied:.0%} of the calibrate scores tie: {TIES}")
                break
    distances = table.distances()
    if distances is not None and distances.jumps(entry.threat.eps) and DISCONTINUOUS not in flags:
        yield _wrong("claims.flags", entry.claims.flags, f"undetected success jumps with the budget: {DISCONTINUOUS}")


def claims_left(entry: Entry) -> Mapping[str, Any]:
    """Return what no check of the files can tell, by name: what only another run can."""
    return {name: value for name in Claims.model_fields if (value := getattr(entry.claims, name)) not in (None, "")}
