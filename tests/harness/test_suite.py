"""Suites: every mistake at once, with its line, in a sentence that says what to do."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.data.sets import SIZES
from aftershock.harness.suite.builtin import builtin_suites
from aftershock.harness.suite.problems import SuiteError
from aftershock.harness.suite.resolve import load_suite
from aftershock.harness.suite.resolved import Suite
from aftershock.harness.suite.schema import SuiteFile
from aftershock.harness.suite.toml_lines import locate
from hypothesis import given, settings
from hypothesis import strategies as st
from support.suites import Tiny

GOOD = """\
name = "good"
seeds = [0, 1]

[data]
name = "digits"
fit = 100
calibrate = 100
evaluate = 50

[threat]
norm = "linf"
eps = "8/255"

[[models]]
name = "mlp"

[[perturbations]]
name = "gaussian"
std = 0.1

[[perturbations]]
name = "pgd"
eps = ["8/255", 0.1, "0.2"]
steps = 3

[[detectors]]
name = "msp"

[[detectors]]
name = "bitvector"
label = "bits"
method = "logistic"
fit_on = ["pgd"]
fit_negatives = ["gaussian"]
"""


def check(tmp_path: Path, text: str) -> Suite:
    path = tmp_path / "suite.toml"
    path.write_text(text, encoding="utf-8")
    return load_suite(path)


def problems(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    """The mistakes of a suite as (the line that each points at, what it says)."""
    with pytest.raises(SuiteError) as caught:
        check(tmp_path, text)
    lines = text.splitlines()
    for problem in caught.value.problems:
        # The message begins with file and line, as editors read it.
        where = f"suite.toml:{problem.line}: " if problem.line else "suite.toml: "
        assert where + problem.text in str(caught.value)
    return [(lines[p.line - 1] if p.line else "", p.text) for p in caught.value.problems]


def edited(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_a_good_suite(tmp_path: Path) -> None:
    suite = check(tmp_path, GOOD)
    assert suite.seeds == (0, 1)
    assert (suite.threat.norm, suite.threat.eps) == ("linf", 8 / 255)
    labels = ["gaussian", "pgd[eps=8/255]", "pgd[eps=0.1]", "pgd[eps=0.2]"]
    assert [p.label for p in suite.perturbations] == labels
    assert [p.params.get("eps") for p in suite.perturbations] == [None, 8 / 255, 0.1, 0.2]
    assert [p.params["steps"] for p in suite.perturbations[1:]] == [3, 3, 3]
    # The label before the budgets were expanded means all of them.
    assert suite.detectors[1].fit_on == tuple(labels[1:])
    assert suite.detectors[1].fit_negatives == ("gaussian",)
    assert suite.folder == tmp_path
    assert suite.raw == tomllib.loads(GOOD)


def test_one_budget_of_a_list_can_be_learned_from(tmp_path: Path) -> None:
    suite = check(tmp_path, edited('fit_on = ["pgd"]', 'fit_on = ["pgd[eps=0.1]"]'))
    assert suite.detectors[1].fit_on == ("pgd[eps=0.1]",)


@pytest.mark.parametrize("name", builtin_suites())
def test_built_in_suites_are_valid(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert len(suite.perturbations) >= 2
    assert len(suite.detectors) >= 2


# (what to replace, with what, the line that is pointed at, what is said)
MISTAKES = {
    "unknown-key": ("seeds = [0, 1]", "sedes = [0]", "sedes = [0]", "did you mean 'seeds'"),
    "unknown-threat-key": ("[threat]", "[threat]\nepss = 1", "epss = 1", "did you mean 'eps'"),
    "missing-key": ("fit = 100\n", "", "[data]", "'data.fit' is missing"),
    "zero-images": ("fit = 100", "fit = 0", "fit = 0", "above 0"),
    "half-images": ("fit = 100", "fit = 1.5", "fit = 1.5", "whole number"),
    "no-seed": ("seeds = [0, 1]", "seeds = []", "seeds = []", "at least 1"),
    "negative-seed": ("seeds = [0, 1]", "seeds = [-1]", "seeds = [-1]", "at least 0"),
    "unknown-norm": ('norm = "linf"', 'norm = "l3"', 'norm = "l3"', "'linf', 'l2', 'l1' or 'l0'"),
    "threat-nan": ('eps = "8/255"', "eps = nan", "eps = nan", "not a finite number"),
    "threat-negative": ('eps = "8/255"', "eps = -0.1", "eps = -0.1", "above 0"),
    "threat-zero": ('eps = "8/255"', "eps = 0", "eps = 0", "above 0"),
    "threat-in-bytes": ('eps = "8/255"', "eps = 8", "eps = 8", "is it 8/255?"),
    "threat-text": ('eps = "8/255"', 'eps = "eight"', 'eps = "eight"', "8/255"),
    "misspelt-key": ('["pgd"]', '["pgd"]\nlable = "x"', 'lable = "x"', "did you mean 'label'"),
    "unknown-data": ('name = "digits"', 'name = "digit"', 'name = "digit"', "did you mean 'digits'"),
    "unknown-data-parameter": ("fit = 100", "fit = 100\nsplit = 3", "split = 3", "no parameter 'split'"),
    "misspelt-data-key": ("fit = 100", "fits = 100", "fits = 100", "did you mean 'fit'"),
    "unknown-model": ('name = "mlp"', 'name = "mpl"', 'name = "mpl"', "did you mean 'mlp'"),
    "model-twice-named": ('name = "mlp"', 'name = "mlp"\nfactory = "a:b"', "[[models]]", "either `name` or `factory`"),
    "model-unnamed": ('name = "mlp"', "width = 3", "[[models]]", "needs `name` or `factory`"),
    "model-name-misspelt": ('name = "mlp"', 'nmae = "mlp"', "[[models]]", "is 'nmae' meant"),
    "unknown-model-parameter": ('name = "mlp"', 'name = "mlp"\nwitdh = 3', "witdh = 3", "did you mean 'width'"),
    "missing-factory": ('name = "mlp"', 'factory = "no.py:f"', 'factory = "no.py:f"', "no.py"),
    "unknown-perturbation": (
        'name = "gaussian"', 'name = "gausian"\nlabel = "gaussian"', 'name = "gausian"', "'gaussian'?",
    ),
    "unknown-attack": (
        'name = "gaussian"', 'name = "CW"\nlabel = "gaussian"', 'name = "CW"', "did you mean 'torchattacks.CW'",
    ),
    "unknown-parameter": ("steps = 3", "step = 3", "step = 3", "did you mean 'steps'"),
    "eps-nan": ('eps = ["8/255", 0.1, "0.2"]', "eps = nan", "eps = nan", "not a finite number"),
    "eps-negative": ('eps = ["8/255", 0.1, "0.2"]', "eps = -0.1", "eps = -0.1", "not negative"),
    "eps-in-bytes": ('eps = ["8/255", 0.1, "0.2"]', "eps = 8", "eps = 8", "is it 8/255?"),
    "eps-no-fraction": ('eps = ["8/255", 0.1, "0.2"]', 'eps = "8/"', 'eps = "8/"', "fraction"),
    "eps-empty-list": ('eps = ["8/255", 0.1, "0.2"]', "eps = []", "eps = []", "the list of eps is empty"),
    "eps-true": ('eps = ["8/255", 0.1, "0.2"]', "eps = true", "eps = true", "truth value"),
    "eps-twice": ('eps = ["8/255", 0.1, "0.2"]', "eps = [0.1, 0.1]", "[[perturbations]]", "label 'pgd[eps=0.1]'"),
    "one-of-many-eps": ('eps = ["8/255", 0.1, "0.2"]', "eps = [0.1, inf]", "eps = [0.1, inf]", "not a finite number"),
    "steps-text": ("steps = 3", 'steps = "many"', 'steps = "many"', "whole number"),
    "steps-none": ("steps = 3", "steps = 0", "steps = 0", "at least 1"),
    "unknown-detector": ('name = "msp"', 'name = "mps"', 'name = "mps"', "did you mean 'msp'"),
    "unknown-method": ('method = "logistic"', 'method = "logistik"', 'method = "logistik"', "give logistic or"),
    "fit-on-unknown": ('fit_on = ["pgd"]', 'fit_on = ["pdg"]', 'fit_on = ["pdg"]', "did you mean 'pgd"),
    "fit-on-of-unsupervised": ('name = "msp"', 'name = "msp"\nfit_on = ["pgd"]', 'fit_on = ["pgd"]', "unsupervised"),
    "supervised-without": ('fit_on = ["pgd"]\n', "", "[[detectors]]", "fit_on = [...]"),
    "negatives-of-attacks": (
        'fit_negatives = ["gaussian"]', 'fit_negatives = ["pgd"]', 'fit_negatives = ["pgd"]',
        "noise and corruptions only",
    ),
    "hostile-label": ('label = "bits"', 'label = "../../bits"', 'label = "../../bits"', "must start with a letter"),
    "empty-label": ('label = "bits"', 'label = ""', 'label = ""', "must start with a letter"),
    "label-with-line-end": ('label = "bits"', 'label = "a\\n"', 'label = "a\\n"', "must start with a letter"),
    "hostile-name": ('name = "good"', 'name = "../good"', 'name = "../good"', "must start with a letter"),
    "label-none": ('label = "bits"', 'label = "none"', 'label = "none"', "'none' is kept"),
    "label-of-clean-images": (
        "[threat]", '[[perturbations]]\nname = "fgsm"\neps = 0.1\nlabel = "fit"\n[threat]', 'label = "fit"',
        "'fit' is kept",
    ),
    "two-equal-labels": ('label = "bits"', 'label = "msp"', 'label = "msp"', "two detectors have the label 'msp'"),
    "missing-plugin": ('name = "good"', 'name = "good"\nplugins = ["no.py"]', 'plugins = ["no.py"]', "does not exist"),
    "analysis": ("[threat]", '[[analyses]]\nname = "tea-leaves"\n[threat]', 'name = "tea-leaves"', "tea-leaves"),
    "standing-analysis": (
        "[threat]", '[[analyses]]\nname = "propagation"\n[threat]', 'name = "propagation"', "part of every run"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_problem_at_its_line(mistake: str, tmp_path: Path) -> None:
    old, new, line, said = MISTAKES[mistake]
    found = problems(tmp_path, edited(old, new))
    assert len(found) == 1, found
    assert found[0][0] == line
    assert said in found[0][1]


def test_every_mistake_at_once(tmp_path: Path) -> None:
    several = (
        "unknown-data", "unknown-model-parameter", "unknown-parameter", "unknown-detector", "supervised-without",
        "missing-plugin",
    )  # fmt: skip
    text = GOOD
    for mistake in several:
        old, new, *_ = MISTAKES[mistake]
        text = text.replace(old, new)
    found = problems(tmp_path, text)
    assert len(found) == len(several)
    for mistake in several:
        *_, line, said = MISTAKES[mistake]
        assert any(said in message and place == line for place, message in found), mistake
    # In the order of the file.
    named = [next(m for m in several if MISTAKES[m][3] in message) for _, message in found]
    assert named == [
        "missing-plugin", "unknown-data", "unknown-model-parameter", "unknown-parameter", "unknown-detector",
        "supervised-without",
    ]  # fmt: skip


def test_every_mistake_of_shape_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("fit = 100", "fit = 0").replace("seeds = [0, 1]", 'seeds = ["x"]').replace('norm = "linf"', "")
    assert [line for line, _ in problems(tmp_path, text)] == ['seeds = ["x"]', "fit = 0", "[threat]"]


# What must be said at once, whatever else is wrong: (old, new), the lines that are pointed at.
TOGETHER = {
    "shape-and-names": (
        [('norm = "linf"', 'norm = "l3"'), ('name = "mlp"', 'name = "mpl"'), ("steps = 3", "step = 3")],
        ['norm = "l3"', 'name = "mpl"', "step = 3"],
    ),
    "no-threat": (
        [("[threat]", "[threats]"), ("fit = 100", "fit = 0"), ('name = "pgd"', 'name = "pdg"')],
        ["[threats]", "fit = 0", 'name = "pdg"'],
    ),
    "plugin-and-shape": (
        [
            ('name = "good"', 'name = "good"\nplugins = ["no.py"]'),
            ("fit = 100", "fit = true"),
            ("steps = 3", "steps = true"),
        ],
        ['plugins = ["no.py"]', "fit = true", "steps = true"],
    ),
    # fit_on = ["pgd"] follows from the misspelt name, and is not said besides.
    "misspelt-perturbation": ([('name = "pgd"', 'name = "pdg"')], ['name = "pdg"']),
    "wrong-label": (
        [('name = "pgd"', 'name = "pgd"\nlabel = "my pgd"'), ('["pgd"]', '["my pgd"]')],
        ['label = "my pgd"'],
    ),
    "entry-and-its-parameters": (
        [('label = "bits"', 'label = "no label"\nlayer = 3')],
        ['label = "no label"', "layer = 3"],
    ),
    "fit-on-of-another-type": ([('fit_on = ["pgd"]', "fit_on = [1]")], ["fit_on = [1]"]),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_no_mistake_hides_another_or_makes_a_second(case: str, tmp_path: Path) -> None:
    replaced, lines = TOGETHER[case]
    text = GOOD
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    found = problems(tmp_path, text)
    assert sorted(line for line, _ in found) == sorted(lines), found
    with pytest.raises(SuiteError) as caught:
        check(tmp_path, text)
    numbers = [p.line for p in caught.value.problems]
    assert numbers == sorted(numbers)


NUMBERS = {
    "fit = 100": "fit = {}",
    "seeds = [0, 1]": "seeds = [{}]",
    "steps = 3": "steps = {}",
    'name = "mlp"': 'name = "mlp"\nbits_per_tap = {}',
    "[threat]": "[limits]\nforwards = {}\n[threat]",
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key in NUMBERS for value in ("true", '"10"', "nan", "inf", "[1]")]
)
def test_a_number_is_written_as_one(key: str, value: str, tmp_path: Path) -> None:
    ((line, _),) = problems(tmp_path, edited(key, NUMBERS[key].format(value)))
    assert value in line


@pytest.mark.parametrize("key", list(NUMBERS)[:4])
def test_a_whole_number_has_no_point(key: str, tmp_path: Path) -> None:
    ((line, said),) = problems(tmp_path, edited(key, NUMBERS[key].format("1.0")))
    assert "1.0" in line
    assert "whole number" in said


def test_a_suite_of_tables_in_place_of_arrays(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("[[detectors]]")] + '[detectors]\nname = "msp"\n'
    ((line, said),) = problems(tmp_path, text)
    assert line == "[detectors]"
    assert "[[detectors]]" in said


def test_a_detector_that_learns_from_a_misspelt_perturbation(tmp_path: Path) -> None:
    # The label is known, the part behind it is not: that is one mistake, not a crash.
    found = problems(tmp_path, edited('name = "pgd"', 'name = "pdg"\nlabel = "pgd"'))
    assert [line for line, _ in found] == ['name = "pdg"']


def test_equal_labels_point_at_the_second(tmp_path: Path) -> None:
    text = GOOD + '\n[[detectors]]\nname = "msp"\n\n[[detectors]]\nname = "energy"\n'
    with pytest.raises(SuiteError) as caught:
        check(tmp_path, text)
    (problem,) = caught.value.problems
    assert (
        problem.line
        == text.splitlines().index("[[detectors]]", text[: text.index('label = "bits"')].count("\n") + 1) + 1
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (edited('name = "digits"', "name = digits"), 5),
        (edited("[threat]", "[threat"), 10),
        (edited("seeds = [0, 1]", 'name = "again"'), 2),
    ],
)
def test_a_mistake_of_toml_has_its_line(text: str, line: int, tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        check(tmp_path, text)
    assert caught.value.problems[0].line == line
    assert "not TOML" in str(caught.value)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\x00" * 100, b"a = " + b"[" * 50_000])
def test_what_is_no_suite_at_all(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_bytes(data)
    with pytest.raises(SuiteError, match="not TOML"):
        load_suite(tmp_path / "suite.toml")


def test_an_empty_suite_lacks_everything(tmp_path: Path) -> None:
    said = " ".join(text for _, text in problems(tmp_path, ""))
    for key in ("name", "data", "threat", "models", "perturbations", "detectors"):
        assert f"'{key}' is missing" in said


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_suite(tmp_path / "suite.toml").name == "good"


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["name", "seeds", "plugins", "data", "threat", "models", "perturbations", "detectors", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        ),
    )
)
def test_any_mapping_is_a_suite_or_a_list_of_mistakes(raw: dict[str, object]) -> None:
    try:
        load_suite(raw)
    except UsageError as error:
        assert str(error)


def test_no_such_suite_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        load_suite("quik")


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return path.name


PART = """
from aftershock.detectors.base.detector import Detector, DetectorInfo, register
@register({name!r})
class Mine(Detector):
    info = DetectorInfo(title="mine", needs=())
    def fit(self, clean, perturbed=None):
        return self
    def score(self, traces):
        return traces.logits[:, 0]
"""


def with_plugin(text: str, name: str) -> str:
    return (text + f'\n[[detectors]]\nname = "{name}"\n').replace('"good"', '"good"\nplugins = ["plugin.py"]')


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def broken(:\n", "SyntaxError"),
        ("import no_such_module_anywhere\n", "No module named 'no_such_module_anywhere'"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("raise SystemExit(0)\n", "SystemExit"),
        (PART.format(name="msp"), "has that name: choose another"),
        ("\x00", "plugin.py"),
    ],
)
def test_a_broken_plugin_is_one_problem_beside_the_others(content: str, said: str, tmp_path: Path) -> None:
    write(tmp_path / "plugin.py", content)
    found = problems(tmp_path, with_plugin(GOOD.replace("steps = 3", "step = 3"), "energy"))
    assert [line for line, _ in found] == ['plugins = ["plugin.py"]', "step = 3"]
    assert said in found[0][1]


def test_a_plugin_beside_the_suite(tmp_path: Path) -> None:
    write(tmp_path / "plugin.py", PART.format(name="mine-of-suite"))
    assert check(tmp_path, with_plugin(GOOD, "mine-of-suite")).detectors[-1].name == "mine-of-suite"


def test_a_registered_name_that_is_no_label_needs_one(tmp_path: Path) -> None:
    write(tmp_path / "plugin.py", PART.format(name="../evil"))
    found = problems(tmp_path, with_plugin(GOOD, "../evil"))
    assert len(found) == 1
    assert "`label`" in found[0][1]
    assert check(tmp_path, with_plugin(GOOD, "../evil") + 'label = "fine"\n').detectors[-1].label == "fine"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    def __init__(self):\n        raise KeyError('weights')\n", "KeyError: 'weights'"),
        ("    @property\n    def needs(self):\n        return 1 / 0\n", "ZeroDivisionError"),
        ("    info = None\n", "AttributeError"),
    ],
)
def test_a_plugin_that_cannot_be_made_is_a_problem(body: str, said: str, tmp_path: Path) -> None:
    # Of its own for each case: the registry lives as long as the process.
    name = f"unmade-{said.partition(':')[0]}"
    write(tmp_path / "plugin.py", PART.format(name=name) + body)
    found = problems(tmp_path, with_plugin(GOOD, name))
    assert len(found) == 1
    assert said in found[0][1]


def test_what_is_no_detector_is_a_problem(tmp_path: Path) -> None:
    write(
        tmp_path / "plugin.py",
        "from aftershock.detectors.base.detector import register\n@register('a-function')\ndef f():\n    return 3\n",
    )
    assert "'a-function'" in problems(tmp_path, with_plugin(GOOD, "a-function"))[0][1]


def test_paths_start_beside_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "plugin.py", PART.format(name="mine-beside"))
    write(
        tmp_path / "net.py",
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())\n",
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = with_plugin(GOOD.replace('name = "mlp"', 'factory = "net.py:make"'), "mine-beside")
    suite = check(tmp_path, text)
    assert suite.models[0].label == "make"
    assert suite.plugins == (tmp_path / "plugin.py",)


def test_a_suite_made_in_python() -> None:
    suite = load_suite(tomllib.loads(GOOD))
    assert suite.source is None
    with pytest.raises(SuiteError, match=r"^suite: .*did you mean 'pgd'"):
        load_suite(tomllib.loads(edited('name = "pgd"', 'name = "pdg"')))


def test_lines_of_keys() -> None:
    lines = GOOD.splitlines()

    def at(*location: str | int) -> str:
        return lines[locate(GOOD, location) - 1]

    assert at("name") == 'name = "good"'
    assert at("data", "name") == 'name = "digits"'
    assert at("perturbations", 1, "steps") == "steps = 3"
    assert locate(GOOD, ("perturbations", 0)) < locate(GOOD, ("perturbations", 1)) < locate(GOOD, ("detectors", 0))
    assert at("detectors", 1, "label") == 'label = "bits"'
    # A key that is not there is looked for at its table; nothing at all is line 0.
    assert at("detectors", 1, "no-such-key") == "[[detectors]]"
    assert locate("", ("data", "name")) == 0


LAID_OUT = '''
name = "x" # [[detectors]]
a.b."c d" = 1.5
"q" = [1, 2,
  [3, 4], # c
  {x = 1, y = [[5]]}]
text = """
[[detectors]]
k = 1
"""
date = 1979-05-27T07:32:00.5Z
[data]
name = 'it = [is]'
models = [{name = "mlp", width = 3},
  {name = "cnn"}]
[[detectors]]
a = 1
 [[ "detectors" ]]
a = [
  "8/255", 0.1,
  0.2 ]
[detectors.sub]
z = 3
[[detectors.subs]]
z = 4
'''


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (("name",), 'name = "x" # [[detectors]]'),
        (("a", "b", "c d"), 'a.b."c d" = 1.5'),
        (("q", 2, 1), "  [3, 4], # c"),
        (("q", 3, "y", 0, 0), "  {x = 1, y = [[5]]}]"),
        (("data", "models", 1, "name"), '  {name = "cnn"}]'),
        (("data", "models", 0, "width"), 'models = [{name = "mlp", width = 3},'),
        (("detectors", 0, "a"), "a = 1"),
        (("detectors", 0, "b"), "[[detectors]]"),
        (("detectors", 1), ' [[ "detectors" ]]'),
        (("detectors", 1, "a", 2), "  0.2 ]"),
        (("detectors", 1, "sub", "z"), "z = 3"),
        (("detectors", 1, "subs", 0, "z"), "z = 4"),
        (("date",), "date = 1979-05-27T07:32:00.5Z"),
    ],
)
def test_lines_of_keys_however_they_are_written(location: tuple[str | int, ...], line: str) -> None:
    tomllib.loads(LAID_OUT)
    number = locate(LAID_OUT, location)
    assert LAID_OUT.splitlines()[number - 1] == line


def test_the_schema_accepts_what_is_accepted() -> None:
    schema = SuiteFile.model_json_schema()
    assert set(schema["required"]) == {"name", "data", "threat", "models", "perturbations", "detectors"}
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    for path in builtin_suites().values():
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        assert not [error.message for error in validator(schema).iter_errors(raw)]
    assert list(validator(schema).iter_errors({"name": 3}))


def test_the_schema_refers_only_to_what_it_defines() -> None:
    text = str(SuiteFile.model_json_schema())
    defined = set(SuiteFile.model_json_schema()["$defs"])
    assert set(re.findall(r"#/\$defs/(\w+)", text)) <= defined


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"fit": 50_000}, "fit = 50000, but the train split of digits has 997 images"),
        (
            {"calibrate": 600, "evaluate": 300},
            "calibrate + evaluate = 900, but the test split",
        ),
    ],
)
def test_sets_that_the_data_cannot_fill_are_found_without_loading_them(
    data: dict[str, int], said: str, tmp_path: Path, tiny: Tiny
) -> None:
    with pytest.raises(SuiteError, match=re.escape(said)):
        load_suite(tiny(tmp_path / "a.toml", data=data))


def test_published_sizes_are_those_of_the_data() -> None:
    found = DATASETS.get("digits")(Path()).load()
    assert SIZES["digits"] == (len(found.train), len(found.test))
    assert SIZES.keys() == set(DATASETS.names()) - {"image-folder", "npz"}


def test_what_is_odd_but_no_mistake_is_said(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text("class Detector:\n    pass\n")
    text = 'plugins = ["nothing.py"]\n' + GOOD.replace("seeds = [0, 1]", "seeds = [0, 1, 0]")
    (tmp_path / "suite.toml").write_text(text)
    found = load_suite(tmp_path / "suite.toml")
    assert found.seeds == (0, 1)
    assert ["nothing.py registers nothing" in note for note in found.notes] == [True, False]
    assert found.notes[1].startswith("seeds names 0 more than once")
