"""The mistakes that a user can make, as exceptions that the command line reports in one sentence each."""

from __future__ import annotations

DECIDES_NO_NUMBER = True


class AftershockError(Exception):
    """A mistake that the user can correct; its text says how."""


class UsageError(AftershockError):
    """A wrong command, suite, file or parameter: exit status 2."""


class UnavailableError(AftershockError):
    """A named part exists but cannot work here (a model or a task that it does not fit); carries the reason."""


# Number of characters kept of an exception's text.
_LONGEST = 400


def text_of(error: BaseException) -> str:
    """Return an exception's text in one line that every terminal and file takes; empty where it has none."""
    try:
        text = " ".join(str(error)[: 10 * _LONGEST].split())[:_LONGEST]
    except Exception:
        # An exception of a part may have no text, either.
        return ""
    return printable(text)


def printable(text: str) -> str:
    """Return a text, such as the name of a file from anybody, as every terminal and file takes it."""
    # Control characters move the cursor, and half of a surrogate pair has no encoding.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def described(error: BaseException) -> str:
    """Return an exception in one line: our own sentences as they are, others with their type."""
    text = text_of(error)
    if isinstance(error, AftershockError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
