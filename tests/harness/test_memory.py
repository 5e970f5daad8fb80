"""The peak memory of a block against allocations of known size."""

import sys
from pathlib import Path

import pytest
import torch
from aftershock.harness.core import memory
from aftershock.harness.core.memory import peak_memory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of resident memory")
def test_the_peak_is_what_the_block_took_even_if_it_gave_it_back() -> None:
    with peak_memory() as peak:
        torch.ones(100 * MIB, dtype=torch.uint8)
        torch.ones(40 * MIB, dtype=torch.uint8)
    assert peak.rise is not None
    # The two were not alive together; a few MiB belong to the interpreter and to what runs beside the test.
    assert 95 * MIB <= peak.rise <= 135 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of resident memory")
def test_an_earlier_peak_does_not_count() -> None:
    torch.ones(100 * MIB, dtype=torch.uint8)
    with peak_memory() as peak:
        torch.ones(10 * MIB, dtype=torch.uint8)
    assert peak.rise is not None
    assert peak.rise <= 45 * MIB


def test_where_the_system_does_not_tell_there_is_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_RESET", tmp_path / "missing" / "clear_refs")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    with peak_memory() as peak:
        pass
    assert peak.rise is None
