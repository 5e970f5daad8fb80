"""A plain function as a perturbation: what it is given, what is known of it, and that a plugin file may hold one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from aftershock import Draws, UsageError, register_perturbation
from aftershock.attacks.base.from_function import from_function
from aftershock.harness.core.parameters import bind
from aftershock.harness.core.registry import PERTURBATIONS
from support.commands import Forks
from support.suites import Tiny
from support.tables import read_table

IMAGES, LABELS = torch.full((4, 1, 2, 2), 0.5), torch.arange(4)
FILE = """
import torch
from aftershock import register_perturbation

@register_perturbation("stripes", eps=0.3, kind="attack")
def stripes(model, images, labels):
    "Every other row becomes darker."
    changed = images.clone()
    changed[:, :, ::2] -= 0.3
    return changed

@register_perturbation("grain", kind="noise", norm="l2")
def grain(model, images, labels, draws, eps: float = 1.0):
    noise = draws.normal(images)
    return images + eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
"""


@pytest.fixture
def forgotten() -> Iterator[None]:
    kept = dict(PERTURBATIONS._entries)
    yield
    PERTURBATIONS._entries.clear()
    PERTURBATIONS._entries.update(kept)


def perturbed(made: Any) -> torch.Tensor:
    found: torch.Tensor = made.perturb("model", IMAGES, LABELS, Draws(0, range(4)))
    return found


@pytest.mark.usefixtures("forgotten")
def test_a_decorated_function_is_registered_and_can_still_be_called() -> None:
    @register_perturbation("shift", eps=0.25)
    def shift(model: object, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Adds a quarter."""
        return images + 0.25

    assert torch.equal(shift(None, IMAGES, LABELS), IMAGES + 0.25)
    part = PERTURBATIONS.get("shift")
    assert (part.info.kind, part.info.family, part.info.norm, part.info.library) == ("attack", "shift", "linf", "")
    assert part.info.summary == "Adds a quarter." and PERTURBATIONS.entry("shift").origin.library == "session"
    assert (part().eps, part(eps=0.1).eps) == (0.25, 0.1)
    assert torch.equal(perturbed(part()), IMAGES + 0.25)


def test_parameters_of_the_function_are_those_of_a_suite() -> None:
    def shift(model: object, images: torch.Tensor, labels: torch.Tensor, *, eps: float, steps: int = 2) -> torch.Tensor:
        return images + eps * steps

    part: Any = from_function(shift, "shift")
    assert bind(part, {"eps": "1/4"}) == ({"eps": 0.25}, {})
    assert list(bind(part, {})[1]) == ["eps"] and list(bind(part, {"eps": 1, "step": 3})[1]) == ["step"]
    assert list(bind(part, {"eps": 0.1, "steps": 1.5})[1]) == ["steps"]
    made = part(eps=0.25, steps=1)
    assert made.eps == 0.25 and made.norm == "linf"
    assert torch.equal(perturbed(made), IMAGES + 0.25)


def test_without_a_budget_there_is_no_norm_and_noise_does_not_look_at_the_model() -> None:
    about = from_function(lambda model, images, labels: images, "blur", kind="corruption").info
    assert (about.norm, about.gradients, about.box, about.stochastic) == (None, False, "", False)


def test_a_function_that_wants_draws_gets_a_generator_for_each_image() -> None:
    part = from_function(lambda model, images, labels, draws: images + draws.uniform(images), "grain")
    assert part.info.stochastic
    assert torch.equal(perturbed(part()), IMAGES + Draws(0, range(4)).uniform(IMAGES))


@pytest.mark.usefixtures("forgotten")
def test_what_cannot_be_a_perturbation_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="takes 2 arguments by position"):
        register_perturbation("two")(lambda model, images: images)
    with pytest.raises(UsageError, match="colour"):
        register_perturbation("red", colour="red")(lambda model, images, labels: images)
    with pytest.raises(UsageError, match="describe a function"):
        register_perturbation("class", eps=0.1)(PERTURBATIONS.get("fgsm"))
    with pytest.raises(UsageError, match=r"decorate it with @aftershock\.register_perturbation"):
        PERTURBATIONS.register("plain")(lambda model, images, labels: images)


def test_a_plugin_file_may_hold_functions(forks: Forks, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    suite = tiny(tmp_path / "s.toml", [{"name": "stripes"}, {"name": "grain", "eps": 0.5}], plugins=["mine.py"])
    done = forks("run", suite, "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    rows = {row["perturbation"]: row for row in read_table(tmp_path / "run", "perturbations.csv")}
    kinds = {name: (r["kind"], r["norm"], float(r["eps"]), r["library"]) for name, r in rows.items()}
    assert kinds == {"stripes": ("attack", "linf", 0.3, "mine.py"), "grain": ("noise", "l2", 0.5, "mine.py")}
    assert float(rows["stripes"]["max_linf"]) == pytest.approx(0.3) and float(rows["grain"]["mean_l2"]) > 0.3
    listed = forks("list", "perturbations", "--plugin", "mine.py", "--json", cwd=tmp_path)
    (stripes,) = [item for item in json.loads(listed.output) if item["name"] == "stripes"]
    assert (stripes["library"], stripes["summary"]) == ("mine.py", "Every other row becomes darker.")


def test_an_edit_of_the_function_changes_its_content_key(tmp_path: Path) -> None:
    from aftershock.harness.core.code_digests import part_digest
    from aftershock.harness.core.registry import Entry, Origin

    def digest(text: str) -> str:
        # As in a notebook: no file, and no lines that Python finds.
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(text, space)
        part = from_function(space["f"], "f")
        return part_digest(Entry("f", part, Origin("session")), "attacks.base.perturbation")

    first = "def f(model, images, labels):\n    return images + 0.1\n"
    assert digest(first) == digest(first) != digest(first.replace("0.1", "0.2"))
