"""The one small file that outlives the sitter: `<state_dir>/memory.json`.

It is written durably before anything is done that relies on it, and lies outside the data and their dataset, so that no
snapshot carries it to another peer. A file that cannot be read is an error, never an empty memory: forgetting is what
it is there to prevent.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from manatee.lsn import Lsn
from sitter.postgres.account import write_durably
from sitter.view import Memory, Seal


class MemoryLost(Exception):
    """The memory file is there but cannot be used; the message says what to do."""


class _Seal(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)
    generation: int
    position: Lsn


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", from_attributes=True)
    identifier: str | None
    generation: int
    proof: int
    seal: _Seal | None


class MemoryFile:
    """Reads the memory once, then only writes it when it changes."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "memory.json"
        self.memory = self._read()

    def _read(self) -> Memory:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return Memory()
        try:
            held = _File.model_validate_json(content)
        except ValidationError as error:
            raise MemoryLost(
                f"{self._path} cannot be understood; without it nothing is known of what this peer's data are worth: "
                "remove it and rebuild this peer from another"
            ) from error
        seal = Seal(held.seal.generation, held.seal.position) if held.seal else None
        return Memory(held.identifier, held.generation, held.proof, seal)

    def remember(self, memory: Memory) -> bool:
        """Make `memory` durable; returns whether it was news. Blocks for the two fsyncs."""
        if memory == self.memory:
            return False
        write_durably(self._path, _File.model_validate(memory).model_dump_json(indent=1), None)
        self.memory = memory
        return True
