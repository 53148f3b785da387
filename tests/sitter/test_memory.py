"""Promises 2 to 4 rest on what a peer remembers: it comes back as it was, or is an error, but is never forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manatee.lsn import Lsn
from sitter.memory import MemoryFile, MemoryLost
from sitter.view import Memory, Seal

seals = st.builds(Seal, st.integers(0, 10**6), st.integers(0, 2**64 - 1).map(Lsn))
memories = st.builds(
    Memory,
    identifier=st.none() | st.from_regex(r"[0-9]{19}", fullmatch=True),
    generation=st.integers(0, 10**6),
    proof=st.integers(0, 10**6),
    seal=st.none() | seals,
)


@given(first=memories, second=memories)
def test_what_was_remembered_last_comes_back(
    first: Memory, second: Memory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("state")
    file = MemoryFile(directory)
    for memory in (first, second):
        file.remember(memory)
        assert MemoryFile(directory).memory == memory


def test_a_peer_that_never_remembered_anything_has_an_empty_memory(tmp_path: Path) -> None:
    assert MemoryFile(tmp_path).memory == Memory()


def test_only_news_are_written(tmp_path: Path) -> None:
    file = MemoryFile(tmp_path)
    assert file.remember(Memory(generation=3))
    written = (tmp_path / "memory.json").stat().st_ino
    assert not file.remember(Memory(generation=3))
    assert (tmp_path / "memory.json").stat().st_ino == written


@pytest.mark.parametrize("content", ["", "{}", '{"generation": "seven"}', "garbage", '{"identifier": null}'])
def test_a_file_that_cannot_be_understood_is_an_error_and_stays(tmp_path: Path, content: str) -> None:
    path = tmp_path / "memory.json"
    path.write_text(content)
    with pytest.raises(MemoryLost, match="rebuild this peer"):
        MemoryFile(tmp_path)
    assert path.read_text() == content


def test_a_write_that_fails_leaves_the_memory_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MemoryFile(tmp_path)
    file.remember(Memory(generation=1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sitter.memory.write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        file.remember(Memory(generation=2))
    assert file.memory == Memory(generation=1)
    assert MemoryFile(tmp_path).memory == Memory(generation=1)
