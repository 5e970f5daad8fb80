"""The parts of the pages that the code itself knows: tables of parts, parameters, columns and flags.

``python docs/tools/tables.py`` writes them anew between their marks, ``<!-- made: … -->`` and ``<!-- /made -->``; a
test fails where a page says something else than the code. It needs Aftershock installed; building the pages does not.

Python examples are the files in ``docs/examples``, which ``tests/test_examples.py`` executes. Figures of runs come from
records of them (``figures.py``), and so does what commands print (``transcripts.py``): tables and transcripts between
the same marks, single figures between ``<!-- figure: RECORD/ROW/COLUMN -->`` and ``<!-- /figure -->``.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import reference
from markdown_table import table

if TYPE_CHECKING:
    from aftershock.harness.core.registry import PartKind

DOCS = Path(__file__).parents[1]
README = DOCS.parent / "README.md"
EXAMPLES = DOCS / "examples"
FIGURES = DOCS / "figures"
FIGURE = re.compile(r"(<!-- figure: (\S+) -->)[^<]*(<!-- /figure -->)")
MADE = re.compile(r"(<!-- made: (\S+) -->\n).*?(<!-- /made -->)", re.DOTALL)
# The sections of the page of perturbations, by what a name begins with; own attacks have no prefix.
PREFIXES = ("torchattacks", "foolbox", "corruption", "noise", "spatial")
_UNDETECTED = "undetected_success_at_fpr_5"
_SURROGATES = ("exact", "relaxed", "straight-through", "none")


def linked(paper: str) -> str:
    """A source whose arXiv or doi identifiers are links."""
    paper = re.sub(r"arXiv[ :](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paper)
    return re.sub(r"doi (10\.\S+?/[\w./()-]*[\w)])", r"[doi \1](https://doi.org/\1)", paper)


def parameters(part: type) -> str:
    """The parameters that a suite may set on a part, from its signature and docstring."""
    from aftershock.harness.cli.part_facts import parameter_rows

    rows = parameter_rows(part)
    return table(("parameter", "type or choices", "default", "meaning"), rows) if rows else "It has no parameters.\n"


def all_detectors() -> str:
    """One line for each registered detector."""
    from aftershock.harness.cli.part_facts import fits_nothing, reads, variants
    from aftershock.harness.core.registry import DETECTORS

    rows = []
    for name in DETECTORS.builtins:
        part = DETECTORS.get(name)
        supervised = {one.supervised for _, one in variants(part)}
        from_ = {(False,): "clean", (True,): "perturbed too"}.get(tuple(supervised), "clean, or perturbed too")
        if fits_nothing(part):
            from_ = "nothing"
        rows.append((f"[`{name}`](#{name})", part.info.summary, reads(part()), from_, part.info.surrogate))
    return table(("name", "what it scores", "reads, by default", "learns from", "surrogate"), rows)


def detector(name: str) -> str:
    """Source, inputs, surrogate and parameters of a detector."""
    from aftershock.harness.cli.part_facts import learns, reads, surrogates
    from aftershock.harness.core.registry import DETECTORS

    part = DETECTORS.get(name)
    return (
        f"**Source**: {linked(part.info.paper)}.<br>\n**Reads**: {reads(part())}.<br>\n"
        f"**Learns from**: {learns(part)}.<br>\n**Surrogate**: {surrogates(part)}.\n\n{parameters(part)}"
    )


def analysis(name: str) -> str:
    """Source and parameters of an analysis."""
    from aftershock.harness.core.registry import ANALYSES

    part = ANALYSES.get(name)
    source = f"**Source**: {linked(part.info.paper)}.\n\n" if part.info.paper else ""
    return f"{source}{parameters(part)}"


def perturbations(group: str) -> str:
    """The perturbations of a library or room; ``own`` attacks and ``adaptive`` ones have no prefix."""
    from aftershock.harness.core.registry import PERTURBATIONS

    rows = []
    for name in PERTURBATIONS.builtins:
        info = PERTURBATIONS.get(name).info
        prefix = name.partition(".")[0] if "." in name else ""
        own = {"noise": "noise", "adaptive": "adaptive", "attack": "own"}.get(info.kind, info.kind)
        if (prefix or own) == group:
            rows.append((f"`{name}`", info.summary, info.norm or "", info.box, info.cost, info.family))
    return table(("name", "what it does", "norm", "box", "cost", "family"), rows)


def perturbation(name: str) -> str:
    """Source and parameters of a perturbation."""
    from aftershock.harness.core.registry import PERTURBATIONS

    part = PERTURBATIONS.get(name)
    source = f"**Source**: {linked(part.info.paper)}.\n\n" if part.info.paper else ""
    return source + parameters(part)


def columns() -> str:
    """The leaderboard's columns as the report explains them."""
    from aftershock.reports.site.leaderboard import BOARD

    rows = [(f"{c.title}{f' ({c.note})' if c.note else ''}", f"`{c.key}`", c.help) for c in BOARD]
    return table(("report", "leaderboard.csv", "meaning"), rows)


def flags() -> str:
    """Every sanity flag as the report explains it."""
    from aftershock.reports.site.flags import FLAGS

    return table(("flag", "meaning"), [(f"`{key}`", meaning) for key, (_, meaning) in FLAGS.items()])


def kinds() -> str:
    """The kinds of surrogates as the report explains them."""
    from aftershock.reports.site.leaderboard import SURROGATES

    return table(("surrogate", "what an adaptive attack does"), [(k, SURROGATES[k]) for k in _SURROGATES])


def checks(kind: str) -> str:
    """The rules and recommendations of a conformance kit."""
    from aftershock.harness.cli.part_facts import markdown
    from aftershock.harness.conformance import KITS

    rows = [
        (f"`{c.name}`", "must" if c.level == "rule" else "should", markdown(c.rule), markdown(c.fix))
        for c in KITS[kind].checks.values()
    ]
    return table(("check", "", "what holds", "what to do"), rows)


def example(name: str) -> str:
    """A file of ``docs/examples``."""
    return f"```python\n{(EXAMPLES / f'{name}.py').read_text(encoding='utf-8')}```\n"


def contract(kind: PartKind) -> str:
    """The test that ``aftershock new`` writes for a part."""
    from aftershock.harness.cli.scaffold import new_package

    name = f"my-{'data' if kind == 'dataset' else kind}"
    with tempfile.TemporaryDirectory() as folder:
        package, _ = new_package(kind, name, Path(folder) / name)
        (test,) = package.glob("test_*.py")
        return f"```python\n{test.read_text(encoding='utf-8')}```\n"


def transcript(name: str) -> str:
    """What a command prints (``transcripts.py``)."""
    return f"```text\n{(FIGURES / f'{name}.txt').read_text(encoding='utf-8')}```\n"


def tests_of_two() -> str:
    """How the tests of two instances of the tutorial's detector end: a test for each line of its examination."""
    lines = (FIGURES / "check-detector.txt").read_text(encoding="utf-8").splitlines()
    counts = {status: 2 * sum(f" {status} " in line for line in lines) for status in ("passed", "skipped")}
    return "```text\n" + ", ".join(f"{n} {status}" for status, n in counts.items()) + "\n```\n"


def _recorded(name: str) -> list[dict[str, str]]:
    with (FIGURES / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def leaderboard(run: str) -> str:
    """The leaderboard of a recorded run as a terminal of 80 columns shows it."""
    from aftershock.harness.cli.board import terminal_board

    lines = [line.text for line in terminal_board(_recorded(f"{run}-leaderboard"), 80)]
    return "```text\n" + "\n".join([*lines, "", f"Report: runs/{run}/site/index.html"]) + "\n```\n"


def notebook() -> str:
    """The leaderboard of the tutorial's notebook as pandas shows it."""
    import pandas as pd

    columns = ["detector", "robust_accuracy_at_fpr_5", "worst_auroc", "flags"]
    return f"```text\n{pd.read_csv(FIGURES / 'notebook-leaderboard.csv')[columns].to_string()}\n```\n"


def attacks(run: str) -> str:
    """What the adaptive attack on each detector of a recorded run achieved, and which of its parts."""
    rows = []
    for row in _recorded(f"{run}-attacks"):
        parts = sorted(json.loads(row["parts"]).items(), key=lambda part: -part[1])
        shares = [_shown(c, row[c]) for c in ("success_rate", _UNDETECTED, f"{_UNDETECTED}_8bit")]
        rows.append((f"`{row['perturbation']}`", row["n"], ", ".join(f"{p} {n}" for p, n in parts), *shares))
    return table(("attack", "images", "parts", "fooled", "undetected", "undetected, 8 bits"), rows)


def guard(run: str) -> str:
    """What the guard of a recorded run says of eight digits and of their negatives."""
    found = json.loads((FIGURES / f"{run}-guard.json").read_text(encoding="utf-8"))

    def tensor(values: Iterable[float]) -> str:
        return "tensor([" + ", ".join(f"{v:7.4f}" for v in values) + "], dtype=torch.float64)"

    return (
        f"```text\n>>> guard(images).score\n{tensor(found['scores'])}\n>>> guard(1 - images).score\n"
        f"{tensor(found['scores_of_negatives'])}\n>>> guard.threshold\n{found['threshold']:.4f}\n```\n"
    )


def figure(where: str) -> str:
    """One figure of a record: ``RUN-leaderboard/DETECTOR/COLUMN``, ``RUN-attacks/ATTACK/COLUMN``, ``RUN-guard/KEY``."""
    name, *keys = where.split("/")
    if name.endswith("-guard"):
        return _shown(keys[0], json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))[keys[0]])
    by = "perturbation" if name.endswith("-attacks") else "detector"
    (row,) = [row for row in _recorded(name) if row[by] == keys[0]]
    return _shown(keys[1], row[keys[1]])


def _shown(column: str, number: Any) -> str:
    """A figure as pages write it: sizes in kB, AUROC and thresholds with three decimals, shares in percent."""
    if column == "bytes":
        return f"{number / 1000:.0f} kB"
    if "auroc" in column or "threshold" in column:
        return f"{float(number):.3f}"
    return f"{100 * float(number):.1f} %"


_MAKERS: dict[str, Callable[..., str]] = {
    "detectors": all_detectors,
    "detector": detector,
    "analysis": analysis,
    "perturbations": perturbations,
    "perturbation": perturbation,
    "columns": columns,
    "flags": flags,
    "surrogates": kinds,
    "checks": checks,
    "example": example,
    "contract": contract,
    "transcript": transcript,
    "tests-of-two": tests_of_two,
    "leaderboard": leaderboard,
    "notebook": notebook,
    "attacks": attacks,
    "guard": guard,
    "suite": reference.suite_keys,
    "recipe": reference.recipe,
    "commands": reference.commands,
    "command-overview": reference.overview,
    "common-options": reference.options,
}


def remade(text: str) -> str:
    """Return a page with everything between marks made again; a mark is a maker and what it takes: ``detector:msp``."""

    def make(found: re.Match[str]) -> str:
        maker, _, about = found[2].partition(":")
        return f"{found[1]}\n{_MAKERS[maker](*([about] if about else []))}\n{found[3]}"

    text = FIGURE.sub(lambda found: f"{found[1]}{figure(found[2])}{found[3]}", text)
    return MADE.sub(make, text)


def main() -> None:
    """Write every page anew and say which changed."""
    warnings.simplefilter("ignore")
    for page in (README, *sorted(DOCS.rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        new = remade(text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(README.parent)}\n")


if __name__ == "__main__":
    main()
