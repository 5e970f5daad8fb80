"""The peak memory of a block against allocations of known size."""

import platform
import subprocess
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


HOLES = """
from pathlib import Path
from aftershock.harness.core.memory import return_large_blocks


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def size(mib):
    return mib << 20


return_large_blocks()
# After one of this size, the allocator would keep such blocks by itself.
large = b"x" * size(30)
del large
start = resident()
large = b"x" * size(12)
# It lies behind the block, whose place cannot be given back from the end of the heap then.
kept = b"x" * (size(1) // 2)
del large
assert resident() - start < size(4), resident() - start
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to")
def test_large_blocks_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
