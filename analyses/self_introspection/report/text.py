"""What a reader should take away from :mod:`~aftershock.analyses.self_introspection`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ....harness.statistics.intervals import Estimate
from ...common.text import no_untrained, side, with_interval
from ...findings import Claim, Quoted
from ..measured import ATTACK, NOISE, Crossing, Introspection
from ..strips import ORDERS
from .figures import FEWEST, shown_paths
from .tables import mean_within


def claims(measured: Introspection, shown: int) -> list[Claim]:
    """Return the claims, the most important first, for at most ``shown`` perturbations."""
    found = [_errors(measured), _purity(measured), *_tracks(measured, shown), *_reconstruction(measured, shown)]
    return [*found, _agreement(measured), _layers(measured), *no_untrained(measured.no_untrained)]


def _text(found: Estimate, digits: int = 3) -> str:
    return with_interval(found, digits)


def _ends(found: Mapping[str, Estimate]) -> dict[str, Quoted]:
    return {name: one.ends for name, one in found.items()}


def _errors(measured: Introspection) -> Claim:
    errors = measured.errors
    estimates: dict[str, Quoted] = {"wrong": errors.wrong, "images": errors.images}
    if not errors.merits:
        text = (
            f"The model is wrong about {errors.wrong} of {errors.images} held-out images, too few (or too many) to "
            "tell whether errors lie in the fringe of the map."
        )
        return Claim("errors-in-fringe", "", estimates, "too few errors", text)
    merits = {m.name: m for m in errors.merits}
    fringe, linear = merits["fringe, autoencoder"], merits["fringe, pca"]
    where = {"above": "higher", "below": "lower", "either": "no different within its interval"}[side(fringe.difference)]
    text = (
        f"The fringe score finds the {errors.wrong} wrong predictions among {errors.images} held-out images with AUROC "
        f"{_text(fringe.auroc)}; max-softmax, which needs no code, has {_text(merits['max-softmax'].auroc)} and the "
        f"entropy {_text(merits['entropy'].auroc)}. The difference to max-softmax, {_text(fringe.difference)}, is "
        f"{where}; with principal components of the same size the fringe has {_text(linear.auroc)}."
    )
    estimates |= {
        "fringe": fringe.auroc.ends, "fringe minus max-softmax": fringe.difference.ends,
        "fringe, pca": linear.auroc.ends,
    }  # fmt: skip
    estimates |= {name: merits[name].auroc.ends for name in ("max-softmax", "entropy")}
    return Claim("errors-in-fringe", "", estimates, where, text)


def _purity(measured: Introspection) -> Claim:
    spaces = {p.space: p for p in measured.purities}
    names = {
        "autoencoder": "autoencoder, 3 numbers", "pca": "pca, 3 numbers",
        "untrained": "untrained network, autoencoder, 3 numbers", "pooled": "last tap of the network, pooled",
    }  # fmt: skip
    shares = {name: spaces[space].share for name, space in names.items() if space in spaces}
    chance = spaces[names["autoencoder"]].chance
    text = (
        f"In the map of three numbers {_text(shares['autoencoder'])} of an image's nearest neighbours have its class "
        f"(chance {chance:.3f}); with principal components it is {_text(shares['pca'])}"
    )
    text += f", in an untrained network {_text(shares['untrained'])}" if "untrained" in shares else ""
    text += f", in the pooled last layer, without a code, {_text(shares['pooled'])}."
    return Claim("purity", "", {**_ends(shares), "chance": chance}, sentence=text)


def _tracks(measured: Introspection, shown: int) -> Iterator[Claim]:
    if not measured.paths:
        text = "No perturbation changed a prediction and had a noise control, so there are no tracks."
        yield Claim("crossing", "", {}, "no tracks", text)
        return
    told = shown_paths(measured, shown)
    if not told:
        text = f"No perturbation changed {FEWEST} predictions or more: too few to draw tracks."
        yield Claim("crossing", "", {}, "too few images", text)
    for c in measured.crossings:
        if c.label in told and c.code == "autoencoder":
            yield _crossing(c)


def _crossing(c: Crossing) -> Claim:
    order = {"above": "later", "below": "earlier", "either": "neither earlier nor later"}[side(c.lag)]
    if not c.crossed:
        verdict, when = "no crossing", "No image's code crosses to the predicted class on the way"
    elif c.crossed < FEWEST:
        verdict = "too few crossings"
        when = f"The code of all layers crosses to the predicted class in {c.crossed} of them, too few to say when"
    else:
        verdict = order
        when = (
            f"The code of all layers crosses to the predicted class in {c.crossed} of them, at "
            f"t = {_text(c.crossing, 2)}, {order} than the prediction changes (difference {_text(c.lag, 2)})"
        )
    text = (
        f"On the way to {c.label} ({c.images} images) the prediction changes at t = {_text(c.flip, 2)}. {when}; nearer "
        f"to the predicted class lie {_text(c.start, 2)} of the images at the start, {_text(c.end[ATTACK], 2)} at the "
        f"end, and {_text(c.end[NOISE], 2)} with noise of the same size."
    )
    estimates: dict[str, Quoted] = {
        "flip": c.flip.ends, "start": c.start.ends, "end": c.end[ATTACK].ends, "noise": c.end[NOISE].ends,
        "crossed": c.crossed, "crossing": c.crossing.ends, "lag": c.lag.ends,
    }  # fmt: skip
    return Claim("crossing", c.label, estimates, verdict, text)


def _reconstruction(measured: Introspection, shown: int) -> list[Claim]:
    by_label: dict[str, dict[tuple[str, str], Estimate]] = {}
    for t in measured.told:
        if t.positives >= FEWEST:
            by_label.setdefault(t.label, {})[t.score, t.against] = t.auroc
    found: list[Claim] = []
    for label, area in by_label.items():
        if ("reconstruction, autoencoder", "noise") in area and len(found) < shown:
            estimates = {
                "clean": area["reconstruction, autoencoder", "clean"],
                "noise": area["reconstruction, autoencoder", "noise"],
                "noise, pca": area["reconstruction, pca", "noise"],
                "noise, activation norm": area["activation norm", "noise"],
            }
            text = (
                f"The reconstruction error separates {label} from its clean images with AUROC "
                f"{_text(estimates['clean'])}, and from noise of the same size with {_text(estimates['noise'])} "
                f"(principal components {_text(estimates['noise, pca'])}, plain activation norm "
                f"{_text(estimates['noise, activation norm'])})."
            )
            found.append(Claim("reconstruction", label, _ends(estimates), sentence=text))
    return found


def _agreement(measured: Introspection) -> Claim:
    trained, within = measured.orders["trained"], mean_within(measured.orders["trained"])
    text = (
        f"Units ordered by correlation with the predicted class's logit and by gradient times activation agree with "
        f"rank correlation {_text(trained.agreement, 2)} over all layers and {within:.2f} on average "
        f"inside a layer (each order with itself on other images: {trained.halves[0]:.2f} and {trained.halves[1]:.2f})"
    )
    estimates: dict[str, Quoted] = {"all layers": trained.agreement.ends, "within layers": within}
    if "untrained" in measured.orders:
        before = measured.orders["untrained"]
        estimates |= {"untrained, all layers": before.agreement.ends, "untrained, within layers": mean_within(before)}
        text += f"; in the untrained network {_text(before.agreement, 2)} and {mean_within(before):.2f}"
    return Claim("orders-agree", "", estimates, sentence=f"{text}.")


def _layers(measured: Introspection) -> Claim:
    tops = {}
    for k, name in enumerate(ORDERS):
        shares = measured.orders["trained"].shares[k]
        top = max(range(len(shares)), key=lambda i: shares[i].value)
        tops[name] = (measured.taps[top], shares[top])
    parts = "; by ".join(f"{name}: {tap} with {_text(share, 2)}" for name, (tap, share) in tops.items())
    estimates = _ends({f"{name}: {tap}": share for name, (tap, share) in tops.items()})
    text = f"The layer with the largest share of relevance is, by {parts}."
    return Claim("most-relevant-layer", "", estimates, sentence=text)
