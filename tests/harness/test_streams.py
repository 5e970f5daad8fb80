"""What a command does where its output cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def command(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., tuple[int, str]]:
    """Runs a shell line in which $A is the command; gives its status and what was said on standard error."""
    program = tmp_path / "a"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m aftershock.harness.cli.main "$@"\n')
    program.chmod(0o755)

    def run(line: str) -> tuple[int, str]:
        environment = {
            **os.environ,
            "A": str(program),
            "AFTERSHOCK_CACHE": str(tmp_path / "cache"),
            "PYTHONUNBUFFERED": request.param,
        }
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("$A list suites --json > /dev/full", "No space left on device"),
        ("$A list suites >&-", "closed"),
        ("$A list suites --json | (exec 0<&-; sleep 2); exit ${PIPESTATUS[0]}", "cut off"),
    ],
)
def test_output_that_cannot_be_written_is_a_sentence(
    line: str, says: str, command: Callable[..., tuple[int, str]]
) -> None:
    status, errors = command(line)
    assert status == 1
    assert says in errors and len(errors.splitlines()) == 1


def test_a_mistake_keeps_its_status_without_standard_error(command: Callable[..., tuple[int, str]]) -> None:
    assert command("$A list nothing > /dev/full 2> /dev/full") == (2, "")
    assert command("$A list suites 2>&-") == (0, "")
