"""Where the keys of a TOML file are: lines by path, for messages. :mod:`tomllib` has read the text before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""
    (?P<comment>\#[^\n]*)
    | (?P<text>\"\"\"(?:\\.|[^\\])*?\"{3,5} | '''.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
    | (?P<sign>\[\[ | \]\] | [\[\]{}=,.])
    | (?P<line>\n)
    | (?P<word>[^\s\[\]{}=,."'\#]+)
    """,
    re.VERBOSE | re.DOTALL,
)


def lines_of(text: str) -> dict[Path, int]:
    """Return the line (from 1) of every table, key and element of an array in TOML text, by path."""
    try:
        return _Reader(text).read()
    except (IndexError, ValueError):
        # Positions serve messages only: without them a message names the key and no line.
        return {}


def locate(text: str, location: Sequence[str | int]) -> int:
    """Return the line of a key, e.g. of ``("detectors", 1, "layers")``; of its table where it is not there, else 0."""
    known = lines_of(text)
    place = tuple(location)
    while place and place not in known:
        place = place[:-1]
    return known.get(place, 0)


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text.replace("\r\n", "\n")))
        self._at = 0
        self._found: dict[Path, int] = {}
        self._sizes: dict[Path, int] = {}

    def read(self) -> dict[Path, int]:
        table: Path = ()
        while (token := self._next()) is not None:
            kind, text, line = token
            if kind == "line":
                continue
            if text in ("[", "[["):
                table = self._resolved(self._key(), text == "[[")
                for place in (table[:-1], table) if text == "[[" else (table,):
                    self._found.setdefault(place, line)
                self._next()
            else:
                self._at -= 1
                self._pair(table)
        return self._found

    def _resolved(self, names: Path, element: bool) -> Path:
        """Return the path of a header: names of arrays of tables stand for their last element."""
        place: Path = ()
        for number, name in enumerate(names):
            place = (*place, name)
            if number == len(names) - 1 and element:
                self._sizes[place] = self._sizes.get(place, 0) + 1
            if place in self._sizes:
                place = (*place, self._sizes[place] - 1)
        return place

    def _pair(self, table: Path) -> None:
        line = self._tokens[self._at][2]
        names = self._key()
        for size in range(1, len(names) + 1):
            self._found.setdefault((*table, *names[:size]), line)
        self._next()  # the sign =
        self._value((*table, *names))

    def _key(self) -> Path:
        names: list[str] = []
        while True:
            kind, text, _ = self._tokens[self._at]
            if text in ("=", "]", "]]") and kind == "sign":
                return tuple(names)
            if text != "." or kind != "sign":
                names.append(_plain(kind, text))
            self._at += 1

    def _value(self, place: Path) -> None:
        kind, text, _ = self._tokens[self._at]
        if kind == "sign" and text in ("[", "[["):
            self._array(place)
        elif kind == "sign" and text == "{":
            self._inline(place)
        else:
            # Numbers and dates are words with points between them.
            while self._at < len(self._tokens) and not self._ends_value():
                self._at += 1

    def _ends_value(self) -> bool:
        kind, text, _ = self._tokens[self._at]
        return kind == "line" or (kind == "sign" and text != ".")

    def _array(self, place: Path) -> None:
        # Within a value, [[ opens two arrays and ]] closes them.
        self._split()
        self._at += 1
        index = 0
        while True:
            self._skip_lines()
            self._split()
            kind, text, line = self._tokens[self._at]
            if (kind, text) == ("sign", "]"):
                self._at += 1
                return
            if (kind, text) == ("sign", ","):
                self._at += 1
                continue
            self._found.setdefault((*place, index), line)
            self._value((*place, index))
            index += 1

    def _inline(self, place: Path) -> None:
        self._at += 1
        while True:
            self._skip_lines()
            kind, text, _ = self._tokens[self._at]
            if (kind, text) == ("sign", "}"):
                self._at += 1
                return
            if (kind, text) == ("sign", ","):
                self._at += 1
                continue
            self._pair(place)

    def _split(self) -> None:
        kind, text, line = self._tokens[self._at]
        if kind == "sign" and text in ("[[", "]]"):
            self._tokens[self._at : self._at + 1] = [(kind, text[0], line)] * 2

    def _skip_lines(self) -> None:
        while self._tokens[self._at][0] == "line":
            self._at += 1

    def _next(self) -> tuple[str, str, int] | None:
        if self._at >= len(self._tokens):
            return None
        self._at += 1
        return self._tokens[self._at - 1]


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        if kind != "comment":
            yield kind, match[0], line
        line += match[0].count("\n")


def _plain(kind: str, text: str) -> str:
    """Return a key without its quotes and escapes."""
    if kind != "text":
        return text
    import tomllib

    return str(tomllib.loads(f"key = {text}")["key"])
