"""The pages say what the code does: tables made from it are current, commands parse, examples run, links lead on."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from aftershock.analyses.propagation.measures import METRICS
from aftershock.harness.cli import main as cli
from aftershock.harness.core.registry import DETECTORS, PERTURBATIONS
from aftershock.harness.evaluation import rankability
from aftershock.harness.evaluation.consistency import DEPENDS
from aftershock.harness.evaluation.csv_files import COLUMNS
from aftershock.harness.suite.resolve import load_suite
from aftershock.harness.suite.schema import SuiteFile

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("the pages are in the repository, not in the source distribution", allow_module_level=True)
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = [page.relative_to(DOCS).as_posix() for page in PAGES]
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in zip(NAMES, PAGES, strict=True)}


def blocks(language: str, texts: dict[str, str] = TEXTS) -> Iterator[tuple[str, str]]:
    """Page and content of the code blocks in a language."""
    for name, text in texts.items():
        for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield name, found[1]


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(found: Iterable[tuple[str, str]]) -> list[str]:
    """The ``aftershock …`` lines among others."""
    return sorted({line for _, text in found for line in text.splitlines() if re.match(r"aftershock [a-z]+", line)})


README = (ROOT / "README.md").read_text(encoding="utf-8")
TYPED = commands(blocks("sh", {**TEXTS, "README.md": README}))
MENTIONED = commands((n, c) for n, text in TEXTS.items() for c in re.findall(r"`([^`\n]+)`", without_blocks(text)))


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tools" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        # Its parts lie beside it.
        patch.syspath_prepend(DOCS / "tools")
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_from_the_code_is_current(name: str, tables: ModuleType) -> None:
    assert tables.remade(TEXTS[name]) == TEXTS[name], "run: python docs/tools/tables.py"


def test_what_the_readme_shows_is_current(tables: ModuleType) -> None:
    assert tables.remade(README) == README, "run: python docs/tools/tables.py"


def test_no_figure_of_a_run_begins_a_line() -> None:
    # A comment at the beginning of a line would end the paragraph.
    assert not [name for name, text in TEXTS.items() if re.search(r"^ {0,3}<!-- figure", text, re.MULTILINE)]


def test_every_detector_has_its_section_and_every_parameter_a_meaning(tables: ModuleType) -> None:
    page = TEXTS["detectors.md"]
    for name in DETECTORS.builtins:
        assert f"### `{name}` {{ #{name} }}" in page
        assert f"<!-- made: detector:{name} -->" in page
        rows = tables.parameters(DETECTORS.get(name)).splitlines()[2:]
        assert not [row for row in rows if row.endswith("|  |")], f"a parameter of {name} has no description"
    assert set(re.findall(r"<!-- made: detector:(\S+) -->", page)) == set(DETECTORS.builtins)


def test_every_perturbation_and_family_is_there() -> None:
    page = TEXTS["perturbations.md"]
    rows = re.findall(r"^\| `([\w.-]+)` \|.*\| ([\w.-]+) \|$", page, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(PERTURBATIONS.builtins)
    assert {family for _, family in rows} == {PERTURBATIONS.get(n).info.family for n in PERTURBATIONS.builtins}


def test_the_columns_of_the_leaderboard_are_explained() -> None:
    missing = [column for column in COLUMNS["leaderboard"] if f"`{column}`" not in TEXTS["leaderboard.md"]]
    assert not missing
    tabled = re.findall(r"^\| `([\w.]+\.csv(?:\.gz)?)` \|", TEXTS["leaderboard.md"], re.MULTILINE)
    assert {name.split(".")[0] for name in tabled} == set(COLUMNS) - {"leaderboard"}


def test_every_column_of_every_table_is_in_the_dictionary_in_its_order() -> None:
    sections = dict(re.findall(r"^## \S+ \{ #(\w+) \}\n(.*?)(?=^## )", TEXTS["tables.md"], re.MULTILINE | re.DOTALL))
    assert set(sections) == set(COLUMNS)
    for name, text in sections.items():
        _, _, table = text.partition("| column | meaning | empty |\n| --- | --- | --- |\n")
        rows = [row.split(" | ") for row in table.partition("\n\n")[0].splitlines()]
        assert tuple(row[0].strip("| `") for row in rows) == COLUMNS[name], name
        assert all(row[1].strip() for row in rows), name
        # "See above" leads to the columns that all tables share.
        shared = TEXTS["tables.md"].partition("## leaderboard")[0]
        for row in rows:
            if row[1].startswith("see above"):
                assert f"`{row[0].strip('| `')}`" in shared, f"{name}: {row[0]}"


def test_the_dictionary_has_the_measures_of_propagation() -> None:
    section = (
        TEXTS["tables.md"].partition("## propagation.csv")[2].partition("| `metric` | what")[2].partition("\n\n")[0]
    )
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*METRICS, "cka"]


def test_the_pages_have_commands() -> None:
    # What is looked for below must be found at all.
    assert {line.split()[1] for line in TYPED} == {
        "run",
        "entry",
        "submit",
        "board",
        "verify",
        "challenge",
        "plan",
        "report",
        "show",
        "compare",
        "export",
        "list",
        "validate",
        "check",
        "new",
        "guard",
        "cache",
    }
    assert len(MENTIONED) >= 5


def command_of(line: str) -> tuple[Any, list[str]]:
    """The command that a line means, and its arguments."""
    command: Any = typer.main.get_command(cli.app)
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{line}: there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", TYPED)
def test_commands_parse(line: str) -> None:
    command, words = command_of(line)
    # Raises for an unknown option, a wrong choice, or an argument too few or too many.
    command.make_context(command.name, words)


@pytest.mark.parametrize("line", sorted({*TYPED, *MENTIONED}))
def test_options_are_known(line: str) -> None:
    # The text may name a command and an option and leave out the rest.
    command, words = command_of(line)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "line", ["aftershock run --no-such", "aftershock export RUN --to cats", "aftershock guard export"]
)
def test_a_wrong_command_would_be_noticed(line: str) -> None:
    command, words = command_of(line)
    with pytest.raises(Exception, match=r"(?i)no such|cats|missing"):
        command.make_context(command.name, words)


def test_python_examples_are_made() -> None:
    # From docs/examples, which tests/test_examples.py executes, or from what `aftershock new` writes.
    texts = {**TEXTS, "README.md": README}
    outside = {name: re.sub(r"<!-- made: .*?<!-- /made -->", "", text, flags=re.DOTALL) for name, text in texts.items()}
    assert not list(blocks("python", outside))
    shown = {name for text in texts.values() for name in re.findall(r"<!-- made: example:(\w+) -->", text)}
    assert shown == {path.stem for path in (DOCS / "examples").glob("*.py")}


def test_toml_examples_are_toml_and_whole_suites_are_valid(tmp_path: Path) -> None:
    whole = 0
    for name, text in blocks("toml"):
        suite = tomllib.loads(text)
        if "data" not in suite:
            continue
        whole += 1
        # The detector of the tutorial is the one that the reader has just installed.
        path = tmp_path / f"{name}.toml"
        for plugin in suite.get("plugins", ()):
            shutil.copy(DOCS / "examples" / plugin, tmp_path / plugin)
        path.write_text(text.replace('"my-detector"', '"nap"'), encoding="utf-8")
        assert load_suite(path).name == suite["name"]
    assert whole


def test_every_key_of_a_suite_is_explained_and_in_the_example() -> None:
    schema = SuiteFile.model_json_schema()
    page = TEXTS["suite.md"]
    ((_, example),) = [found for found in blocks("toml", {"suite.md": page}) if "[data]" in found[1]]
    shown = tomllib.loads(example)
    for name, key in schema["properties"].items():
        reference = key.get("$ref") or key.get("items", {}).get("$ref")
        assert name in shown
        if reference is None:
            assert key["description"], name
            continue
        assert f"<!-- made: suite:{name} -->" in page
        for inner, about in schema["$defs"][reference.rpartition("/")[2]]["properties"].items():
            assert about["description"], f"{name}.{inner}"
            assert re.search(rf"(?m)\b{inner} = ", example), f"{name}.{inner}"


def test_every_option_of_a_command_says_what_it_does(tables: ModuleType) -> None:
    made = tables.remade("<!-- made: commands -->\n<!-- /made -->")
    rows = [row for row in made.splitlines() if row.startswith("| `")]
    assert len(rows) > 80
    assert not [row for row in rows if row.endswith("|  |")]


def literals() -> Iterator[list[str]]:
    """The fixed pieces of every text in the code."""
    for path in (ROOT / "harness", ROOT / "attacks"):
        for module in sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield [str(v.value) for v in node.values if isinstance(v, ast.Constant)]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield [node.value]


def test_the_messages_that_are_explained_are_those_of_the_code() -> None:
    tables = TEXTS["troubleshooting.md"].partition("## Not ranked")[0]
    messages = [found[1] for found in re.finditer(r"^\| `([^`]+)`[^|]*\|", tables, re.MULTILINE)]
    texts = list(literals())
    # This one is torch's.
    messages.remove("operator torchvision::nms does not exist")
    assert len(messages) > 12
    for message in messages:
        pieces = [piece for piece in message.split("...") if len(piece) > 12]
        found = any(
            any(len(fixed) > 12 and fixed.strip() in message for fixed in text)
            or any(p in "".join(text) for p in pieces)
            for text in texts
        )
        assert found, message


def test_every_reason_for_no_rank_says_what_to_do() -> None:
    section = TEXTS["troubleshooting.md"].partition("## Not ranked")[2].partition("\n## ")[0]
    listed = {
        flag for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for flag in re.findall("`([^`]+)`", row)
    }
    depends = {f"{DEPENDS}{what}" for what in ("caller", "order", "batch", "process")}
    assert listed >= {*rankability._NOT_RANKED, *depends}


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Markdown's table of contents makes them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE):
        own = re.search(r"\{ #([\w-]+) \}$", title)
        plain = re.sub(r"[^\w\s-]", "", title.encode("ascii", "ignore").decode()).strip().lower()
        found.add(own[1] if own else re.sub(r"[-\s]+", "-", plain))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_internal_links_have_targets(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(TEXTS[name])):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        page = (DOCS / name).parent.joinpath(path).resolve() if path else DOCS / name
        assert page in PAGES or page.is_file(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(page.read_text(encoding="utf-8")), f"{name}: {target}"


def test_every_page_is_in_the_contents_and_the_other_way_round() -> None:
    listed = re.findall(r":\s+(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(NAMES)


def test_formulas_and_pages_need_nothing_from_elsewhere() -> None:
    # The build itself looks at the finished pages; this looks at what would make them ask.
    for name, text in TEXTS.items():
        assert not re.search(r"<(?:script|img|iframe|link)\b|!\[[^\]]*\]\(https?:", without_blocks(text)), name
    assert re.search(r"^  font: false$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_files_that_the_architecture_names_exist() -> None:
    text = TEXTS["architecture.md"]
    named = set(re.findall(r"`((?:harness|attacks|detectors|analyses|reports)/[\w/.]+)`", text))
    assert len(named) > 40
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_architecture_has_the_layers_that_are_enforced() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = [c["layers"] for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    enforced = [
        {name.strip().removeprefix("aftershock.").replace(".", "/") for name in row.split("|")} for row in layers
    ]
    table = TEXTS["architecture.md"].partition("| layer |")[2].partition("\n\n")[0]
    shown = [set(re.findall(r"`([\w/]+)`", row.split("|")[1])) for row in table.splitlines()[2:]]
    assert shown == enforced


def test_every_picture_is_small_described_and_shown_by_a_page() -> None:
    shown = {}
    for name, text in {**TEXTS, "README.md": README}.items():
        for words, path in re.findall(r"!\[([^\]]*)\]\(([^)]+\.png)\)", text):
            file = (ROOT if name == "README.md" else ROOT / "docs") / path
            assert file.is_file() and len(words) > 20, f"{name}: {path}"
            shown[file.name] = file.stat().st_size
    assert shown.keys() == {file.name for file in (ROOT / "docs/figures").glob("*.png")}
    assert max(shown.values()) < 200_000
