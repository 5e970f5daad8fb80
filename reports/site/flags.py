"""Sanity flags: their words, what each means in one sentence, and the place on the page where that sentence stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from ...harness.evaluation.rankability import floor_text
from ..read.run_directory import Row

NO_NUMBER = "Why there is no number."
BEYOND = "beyond-threat"
# Flag of the tables: words on the page, meaning. A flag may name another attack: `weaker-than-one-step:fgsm`.
FLAGS = {
    "no-attack": ("no attack", "No attack that counts for this row covers all its images: images that were not "
                  "attacked would count as safe."),
    "below-floor": ("attack below the floor", "The attack that knows the detector is weaker than the protocol "
                    f"requires for a rank: {floor_text()}. The number is kept, and can "
                    "only be too high."),
    "black-box-only": ("black box only", "The model has no gradient, so only black-box attacks were possible: its "
                       "numbers can only be too high."),
    "near-chance": ("accuracy near chance", "The model's clean accuracy is near chance: its normalisation, its weights "
                    "or the order of its classes are probably wrong, and robust accuracy is meaningless."),
    "no-weights": ("no weights", "No weights were given, and the network that the factory made has a clean accuracy "
                   "near chance: name its checkpoint."),
    "probabilities-for-logits": ("probabilities in place of logits", "The model's outputs look like probabilities, but "
                                 "energy, margins, gradients and losses read logits: leave out its last softmax, "
                                 "sigmoid or step."),
    "log-probabilities-for-logits": ("log-probabilities in place of logits", "The model's outputs look like "
                                     "log-probabilities, whose energy is 0 for every image: leave out its last "
                                     "log-softmax."),
    "batch-dependent": ("depends on the batch", "The model's logits for an image depend on the other images of its "
                        "batch, so what was attacked is not what is measured."),
    "weaker-than-adaptive": ("its attacks are weaker than", "An attack that also had to evade a detector fools more "
                             "images than the attacks that count here: the number is "
                             "too high."),
    "randomised": ("randomised", "The detector returns different scores for the same image and does not declare it."),
    "score-depends-on-caller": ("score depends on the caller", "Attacks received other scores than the final ones, "
                                "or the gradient mode changes them: what was attacked "
                                "is not what is measured."),
    "score-depends-on-order": ("score depends on the order", "The same images in another order get other scores."),
    "score-depends-on-batch": ("score depends on the batch", "The same images in other batches get other scores."),
    "score-depends-on-process": ("score depends on the process", "A new process returns other scores, or none."),
    "unchecked-in-another-process": ("unchecked in another process", "The detector was registered in the session, so "
                                     "no other process can load it, and it is not "
                                     "ranked: register it in a file or a package."),
    "control-flagged": ("control flagged", "More than half of the random noise of the attacks' size is flagged: the "
                        "detector responds to the size of a change, not to attacks."),
    "benign-flagged": ("benign images flagged", "More than half of the images under noise and corruptions that keep "
                       "the prediction is flagged."),
    "ties-at-threshold": ("ties at the threshold", "More than 1 % of the calibrate scores equal the threshold: the "
                          "score is coarse, and its false positive rate may be far below 5 %."),
    "knows-the-images": ("knows the images", "The evaluate images stand an attack more often than the same images "
                         "after a small secret change: the detector knows them, and is not ranked."),
    "provenance": ("provenance", "More than half of the evaluate images are flagged after a small secret change: the "
                   "detector flags what it does not know, and is not ranked."),
    "shadow-unchecked": ("unchecked on shadow images", "The detector gave no scores of the evaluate images after a "
                         "small secret change, or they were not attacked: it is not ranked."),
    "discontinuous": ("discontinuous", "Undetected success jumps from one budget to the next, by more than half of the "
                      "images at a quarter more budget, where the model alone never falls as fast: the detector may "
                      "know the budgets that are tried, and is not ranked."),
    "ladder-unchecked": ("unchecked between budgets", "The search for the smallest perturbations that pass this "
                         "detector failed, so how undetected success grows with the budget is not known: the row is "
                         "not ranked."),
    "r0-not-smallest": ("not the smallest", "The search against this detector found clearly smaller perturbations that "
                        "fool the model than the search that knows no detector: the smaller ones count, and prices "
                        "of rows without this flag may be too low."),
    "canary-stands": ("canary stands", "The attack does not get past a detector whose robust accuracy is known to be "
                      "0: it does nothing, or was disturbed. The row is not ranked."),
    "reads-files": ("reads files", "The code of this detector opened files, connections or system libraries that are "
                    "not its own while it was fitted or scored images, as a detector that knows the test images "
                    "would; what they hold is not known."),
    "starts-processes": ("starts processes", "The code of this detector started other programs, or copies of its "
                         "process, while it was fitted or scored images; which files those read is not known."),
    "limit": ("ended by a limit", "A limit under [limits] ended the attack: without it, it may be stronger."),
    "no-adaptive-attack": ("no adaptive attack", "No attack that knows this detector was tried: its robust accuracy is "
                           "only an upper bound."),
    "adaptive-incomplete": ("adaptive attack incomplete", "The attack that knows the detector did not succeed on "
                            "every image even at a large budget, so it shows nothing "
                            "about the detector: the row is not ranked."),
    "adaptive-weaker-than": ("adaptive attack is weaker than", "An attack that does not know the detector, or this "
                             "one with less budget, evades it more often: the adaptive attack is weaker than it "
                             "could be."),
    "adaptive-below-threat": ("adaptive attacks are below the threat", "No attack that knows this detector was tried "
                              "with the threat model's whole budget: its robust accuracy is only an upper bound."),
    "adaptive-unchecked": ("adaptive attack is unchecked", "The attack that knows the detector was not checked at a "
                           "large budget, so it may be broken."),
    "attached": ("attached", "The attack returned images with their gradient graph; it was cut."),
    "dtype": ("other number type", "The attack returned another number type; it was converted."),
    "shape": ("wrong shape", "The attack returned no images of the right shape: the clean images are used instead."),
    "non-finite": ("non-finite images", "The attack returned infinite or undefined pixels: the clean images are used "
                   "instead."),
    "out-of-range": ("out of range", "The attack left the range of images [0, 1]; it was clipped."),
    "over-budget": ("over budget", "The attack exceeded its own budget; it was projected back."),
    "zero-gradient": ("zero gradients", "Gradients were zero for images not yet fooled: the attack had no direction, "
                      "and its success is an underestimate."),
    "non-finite-gradient": ("non-finite gradients", "Gradients were infinite or undefined: the attack had no "
                            "direction."),
    "non-finite-logits": ("non-finite logits", "The model returned infinite or undefined logits."),
    "randomised-model": ("randomised model", "The model returns different logits for the same image, so an attack "
                         "must average over several passes; one that does not is too weak."),
    "changed-state": ("changed the process", "It changed the named state of the process (a number type, a mode, a "
                      "setting, a function). The change was undone before anything else was "
                      "computed; its own numbers may depend on it."),
    "unconverged": ("not converged", "The attack still found new successes, or brought images past the detector, "
                    "when its steps ran out: with more steps it would be stronger."),
    "weaker-than-smaller-budget": ("weaker than a smaller budget", "Success fell when the budget grew, which cannot "
                                   "happen with a sound attack."),
    "weaker-than-one-step": ("weaker than one step", "An iterative attack did worse than a single gradient step within "
                             "the same budget: its steps do not help."),
    "weaker-than-black-box": ("weaker than a black box", "An attack without gradients outperformed this gradient "
                              "attack: the gradients are probably masked."),
    "below-100-at-largest-budget": ("below 100 % at the largest budget", "The last point of the budget curve leaves "
                                    "images correctly classified: the attack is too weak, or the curve ends "
                                    "too early."),
    "reduced-ensemble": ("reduced ensemble", "The data set has too few classes for some parts of this attack, which "
                         "were left out or replaced: it is not the standard ensemble."),
    BEYOND: ("beyond the threat model", "Some images moved further than the threat model allows: they are "
             "shown here and do not enter the ranking."),
}  # fmt: skip
# The column of the leaderboard whose number a flag doubts; the others doubt robust accuracy.
DOUBTED = {
    "control-flagged": "control_flagged_at_fpr_5",
    "benign-flagged": "benign_flagged_at_fpr_5",
    "ties-at-threshold": "fpr_realised_5",
    "r0-not-smallest": "price",
    "no-adaptive-attack": "adaptive_undetected_at_fpr_5",
    "adaptive-incomplete": "adaptive_undetected_at_fpr_5",
    "adaptive-weaker-than": "adaptive_undetected_at_fpr_5",
    "adaptive-below-threat": "adaptive_undetected_at_fpr_5",
    "adaptive-unchecked": "adaptive_undetected_at_fpr_5",
}
_HELP = (
    (r"^at the large budget", FLAGS["adaptive-incomplete"][1]),
    (
        r"gradient.?free|black.?box",
        "A gradient-free attack outperformed the gradient attacks: the gradients are probably masked.",
    ),
    (r"converge", "The attack still improved when its steps ran out: with more steps it would be stronger."),
    (r"is missing|is not scored", "What cannot be measured cannot be counted: there is no robust accuracy without it."),
    (r"attacked \d+ of", "The other images count as safe from it, so robust accuracy is an upper bound."),
    (r"adaptive|large.budget", FLAGS["adaptive-incomplete"][1]),
    (r"random", FLAGS["randomised-model"][1]),
)
_SHORT = 64


@dataclass(frozen=True)
class Flag:
    """A sanity flag.

    Attributes:
        text: its words.
        help: what it means, in one sentence; empty for unknown ones.
        about: the other attack that it names, if any.
        key: its name in the tables; empty for unknown flags.
    """

    text: str
    help: str
    about: str = ""
    key: str = ""

    @property
    def full(self) -> str:
        """Words and the other attack."""
        return f"{self.text}: {self.about}" if self.about else self.text

    @property
    def short(self) -> str:
        """The words as they fit into a table: an error message may be long."""
        return self.full if len(self.full) <= _SHORT else f"{self.full[: _SHORT - 4].rstrip()}…"

    @property
    def anchor(self) -> str:
        """The ``id`` of the row that explains it: letters, digits and hyphens, whatever the flag says."""
        return f"flag-{self.key or 'x' + sha256(self.text.encode()).hexdigest()[:10]}"


def flag(key: str, about: str = "") -> Flag:
    """Return a flag of :data:`FLAGS`."""
    text, meaning = FLAGS[key]
    return Flag(text, meaning, about, key)


def flags(text: str) -> list[Flag]:
    """Return the flags of a cell: separated by ``;`` or ``|``, or by commas where none of them holds a blank."""
    parts = [p.strip() for p in re.split(r"[;|]", text) if p.strip()]
    if len(parts) == 1 and "," in parts[0] and " " not in parts[0].replace(", ", ","):
        parts = [p.strip() for p in parts[0].split(",") if p.strip()]
    return list(dict.fromkeys(_read(p) for p in parts))


def _read(text: str) -> Flag:
    key, _, about = text.partition(":")
    if key.strip() in FLAGS:
        return flag(key.strip(), about.strip())
    return Flag(text, next((h for pattern, h in _HELP if re.search(pattern, text, re.I)), ""))


def condition_flags(rows: Sequence[Row], threat: tuple[str, float | None]) -> dict[str, list[Flag]]:
    """Every flag of every perturbation of one model, over all seeds, by label; with why it has no number.

    Args:
        rows: of ``perturbations.csv``.
        threat: norm and budget that the ranking is about.
    """
    found: dict[str, dict[Flag, None]] = {}
    norm, eps = threat
    for row in rows:
        own = found.setdefault(row.text("perturbation"), {})
        own.update(dict.fromkeys(flags(row.text("flags"))))
        if row.text("reason"):
            own[Flag(row.text("reason"), NO_NUMBER)] = None
        largest = row.number("max_linf")
        attack = row.text("kind") in ("attack", "adaptive")
        if norm == "linf" and eps and largest is not None and largest > eps * 1.001 and attack:
            own[flag(BEYOND)] = None
    return {label: list(own) for label, own in found.items()}


@dataclass(frozen=True)
class Explained:
    """One flag with everything that carries it.

    Attributes:
        flag: its words and meaning, without the attack that it names.
        where: model and the names there, each with the other attacks that the flag names.
    """

    flag: Flag
    where: Sequence[tuple[str, Sequence[tuple[str, str]]]]


def explained(carried: Sequence[tuple[str, str, Flag]]) -> list[Explained]:
    """Return flags as a glossary, each once.

    Args:
        carried: model, detector or perturbation, and its flag.
    """
    kinds: dict[Flag, dict[str, dict[str, dict[str, None]]]] = {}
    for model, name, found in carried:
        kind = Flag(found.text, found.help, "", found.key)
        kinds.setdefault(kind, {}).setdefault(model, {}).setdefault(name, {})[found.about] = None
    return [Explained(kind, [(model, _names(names)) for model, names in models.items()])
            for kind, models in kinds.items()]  # fmt: skip


def _names(names: Mapping[str, Mapping[str, None]]) -> list[tuple[str, str]]:
    return [(name, ", ".join(a for a in about if a)) for name, about in names.items()]
