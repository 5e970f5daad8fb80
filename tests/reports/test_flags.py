"""Every flag that the harness can set has words and a meaning on the page."""

from __future__ import annotations

import ast
import inspect
import re
from types import ModuleType

import pytest
from aftershock.harness.evaluation import consistency, rankability, sanity
from aftershock.reports.site.flags import FLAGS, flags

# Names of constants that hold no flag.
NO_FLAGS = {"ABLATION"}
FLAG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+|unconverged|limit|randomised")


def constants(module: ModuleType) -> set[str]:
    """The flags among a module's own constants; one that ends with a hyphen begins others."""
    found = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            value = getattr(module, name)
            for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
                if name not in NO_FLAGS and isinstance(text, str) and FLAG.fullmatch(text):
                    found.add(text)
    return found


def literals(module: ModuleType) -> set[str]:
    """The flags among a module's strings; of a string with values, what stands before the first."""
    tree = ast.parse(inspect.getsource(module))
    texts = {n.value.rstrip(":") for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {t for t in texts if FLAG.fullmatch(t)}


def test_the_sources_are_searched_as_they_are_written() -> None:
    """A change of how flags are written must not leave the tests below without any."""
    assert {"no-attack", "below-floor", "zero-gradient", "unconverged", "limit"} <= constants(rankability)
    assert {"randomised", "unchecked-in-another-process"} <= constants(consistency)
    assert literals(sanity) == {
        "unconverged", "below-100-at-largest-budget", "weaker-than-smaller-budget", "weaker-than-one-step",
        "weaker-than-black-box", "adaptive-weaker-than",
    }  # fmt: skip


DEPENDS = {consistency.DEPENDS + about for about in consistency._ABOUT.values()}
ALL = sorted(constants(rankability) | constants(consistency) | literals(sanity) | DEPENDS)


@pytest.mark.parametrize("key", ALL)
def test_a_flag_has_words_and_a_meaning(key: str) -> None:
    text, meaning = FLAGS[key]
    assert text
    assert text != key or key in ("randomised",)
    assert meaning.endswith(".")
    (alone,) = flags(key)
    assert (alone.key, alone.text, alone.help) == (key, text, meaning)
    (named,) = flags(f"{key}:pgd[eps=0.1]@msp")
    assert (named.key, named.about) == (key, "pgd[eps=0.1]@msp")
    assert named.anchor == alone.anchor


@pytest.mark.parametrize(
    "text", ["pgd is missing: no gradient", "pgd is not scored: a score is NaN", "pgd attacked 5 of 9 images"]
)
def test_a_reason_in_words_has_a_meaning_too(text: str) -> None:
    (found,) = flags(text)
    assert found.text == text
    assert found.help
