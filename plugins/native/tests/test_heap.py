"""What glibc is told, of every age."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from graftwork_native import memory
from graftwork_native.memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory, lasting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")


@pytest.mark.parametrize(("largest", "kept"), [(1 << 40, 1 << 30), (32 << 20, 32 << 20)], ids=["new", "old"])
def test_the_threshold_is_the_largest_that_is_taken(largest: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[int, int] = {}

    def mallopt(option: int, value: int) -> int:
        if option == M_MMAP_THRESHOLD and value > largest:
            return 0
        options[option] = value
        return 1

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert options == {M_MMAP_THRESHOLD: kept, M_TRIM_THRESHOLD: (1 << 31) - 1}
    with lasting():
        assert options[M_MMAP_THRESHOLD] == 1 << 20
    assert options[M_MMAP_THRESHOLD] == kept
