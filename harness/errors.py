"""The mistakes that a user can make, as exceptions that the command line turns into one sentence each."""

from __future__ import annotations


class AftershockError(Exception):
    """Something that a person can mend; its text says what to do."""


class UsageError(AftershockError):
    """A wrong command, suite, file or parameter: exit status 2."""


class UnavailableError(AftershockError):
    """A named part exists but cannot work here (a model or a task that it does not fit); carries the reason."""


def described(error: BaseException) -> str:
    """An exception in one line: our own sentences as they are, others with their type."""
    try:
        text = " ".join(str(error).split())[:400]
    except Exception:
        # An exception of a part may have no text, either.
        text = ""
    if isinstance(error, AftershockError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
