"""The reference pages: the keys of a suite from its schema, and the command line from the program itself."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markdown_table import table

_BOUNDS = {"exclusiveMinimum": "above", "minimum": "of at least", "maximum": "of at most"}
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}


def suite_keys(where: str = "") -> str:
    """Return the keys of a suite, or of one of its tables: ``data``, ``models``, ..."""
    from aftershock.harness.suite.schema import SuiteFile

    schema = SuiteFile.model_json_schema()
    part = _resolved(schema["properties"][where], schema["$defs"]) if where else schema
    rows = []
    for name, key in part["properties"].items():
        is_table = "$ref" in key or "$ref" in key.get("items", {})
        if is_table:
            continue
        default = "required" if name in part["required"] else _default(key.get("default"))
        rows.append((f"`{name}`", _type(key), default, key.get("description", "")))
    return table(("key", "value", "default", "meaning"), rows)


def _resolved(key: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definition of a table or of the tables of an array."""
    reference = key["items"]["$ref"] if "items" in key else key["$ref"]
    return {"required": (), **definitions[reference.rpartition("/")[2]]}


def _type(key: Mapping[str, Any]) -> str:
    if "enum" in key:
        return ", ".join(f'`"{value}"`' for value in key["enum"])
    if "anyOf" in key:
        return " or ".join(_type(one) for one in key["anyOf"] if one["type"] != "null")
    if key["type"] == "array":
        return "list of " + re.sub("^whole number|^number", r"\g<0>s", _type(key["items"]))
    if "minimum" in key and "maximum" in key:
        bounds = f" from {key['minimum']} to {key['maximum']}"
    else:
        bounds = "".join(f" {words} {key[bound]}" for bound, words in _BOUNDS.items() if bound in key)
    return _TYPES[key["type"]] + bounds


def _default(value: object) -> str:
    if value is None:
        return "not set"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def recipe() -> str:
    """Return the keys of a model that is trained."""
    from aftershock.harness.cli.part_facts import default_text, markdown, type_text
    from aftershock.harness.core.parameters import parameters
    from aftershock.harness.models.training import Recipe

    said = dict(re.findall(r"^    (\w+): ((?:.*)(?:\n {8}.*)*)", inspect.getdoc(Recipe) or "", re.MULTILINE))
    rows = [
        (f"`{name}`", type_text(p.annotation), default_text(p.default), markdown(said.get(name, "")))
        for name, p in parameters(Recipe).items()
    ]
    return table(("key", "value", "default", "meaning"), rows)


def commands() -> str:
    """Return a section for each command: its usage, what it does, its arguments and options."""
    return "\n".join(_section(name, command) for name, command in _commands())


def overview() -> str:
    """Return a line for each command."""
    return table(
        ("command", "what it does"),
        [(f"[`{name}`](#{_anchor(name)})", command.get_short_help_str(200)) for name, command in _commands()],
    )


def options() -> str:
    """Return the options that stand before the command, without those of typer itself."""
    from aftershock.harness.cli.main import app
    from typer.main import get_command

    command = get_command(app)
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    return table(("option", "default", "meaning"), [_row(p, hints) for p in command.params if p.name in hints])


def _commands() -> Iterator[tuple[str, Any]]:
    from aftershock.harness.cli.main import app
    from typer.main import get_command

    waiting = [("aftershock", get_command(app))]
    while waiting:
        name, command = waiting.pop(0)
        if hasattr(command, "commands"):
            waiting[:0] = [(f"{name} {below}", one) for below, one in command.commands.items()]
        else:
            yield name, command


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _section(name: str, command: Any) -> str:
    text = _plain(inspect.cleandoc(command.help or ""))
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    usage = " ".join([name, "[OPTIONS]", *(_argument(p) for p in command.params if p.param_type_name == "argument")])
    rows = [_row(parameter, hints) for parameter in command.params]
    return (
        f"### {name} {{ #{_anchor(name)} }}\n\n{text}\n\n```text\n{usage}\n```\n\n"
        f"{table(('argument or option', 'default', 'meaning'), rows)}"
    )


def _argument(parameter: Any) -> str:
    """Return an argument as a usage line shows it."""
    name = parameter.metavar or parameter.name.upper()
    if "[" not in name and "..." not in name:
        name = name if parameter.required else f"[{name}]"
        name += "..." if parameter.nargs == -1 and "|" not in name else ""
    return str(name)


def _row(parameter: Any, hints: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return how a parameter is written, its default and its meaning."""
    text = parameter.help or ""
    # What the help says in brackets has a column of its own.
    noted = re.search(r" ?\[default: ([^\]]*)\]", text)
    meaning = _plain(re.sub(r"\[env: (\w+)\]", r"(`\1`)", re.sub(r" ?\[default: [^\]]*\]", "", text)))
    if parameter.param_type_name == "argument":
        written = f"`{_argument(parameter).replace(' | ', ' or ')}`"
    else:
        value = "" if parameter.is_flag else f" {parameter.metavar or _value(hints[parameter.name])}"
        written = ", ".join(f"`{option}{value}`" for option in parameter.opts)
    if noted:
        default = _plain(noted[1])
    elif parameter.required:
        default = "required"
    else:
        default = f"`{parameter.default}`" if parameter.default and not parameter.is_eager else ""
    if parameter.multiple and "repeat" not in meaning:
        meaning = f"{meaning.rstrip('.')}; may be repeated."
    return written, default, meaning


def _value(annotation: Any) -> str:
    """Return what stands for the value of an option: its choices, or its type."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) is list:
        (annotation,) = typing.get_args(annotation)
    if choices := typing.get_args(annotation):
        return "{" + ",".join(choices) + "}"
    return {Path: "PATH", int: "N"}.get(annotation, "TEXT")


def _plain(text: str) -> str:
    """Return the text of a help as Markdown, in which angle brackets would be HTML."""
    return text.replace("<", "&lt;")
