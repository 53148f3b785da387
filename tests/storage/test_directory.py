"""The basebackup driver's directory, where a death has interrupted it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from manatee.config import Settings
from manatee.storage import open_storage


def _settings(directory: Path) -> Settings:
    return Settings.model_validate(
        {
            "shard": {"name": "test"},
            "peer": {"ip": "127.21.0.1", "zone_id": "one"},
            "zookeeper": {"servers": "127.0.0.1:2181"},
            "postgres": {"bin_dir": directory, "socket_dir": directory},
            "storage": {"directory": directory / "store"},
            "backup": {"token_file": directory / "token"},
            "sitter": {"state_dir": directory / "state"},
        }
    )


def _database(directory: Path) -> None:
    (directory / "global").mkdir(parents=True)
    (directory / "PG_VERSION").write_text("15\n")
    (directory / "global" / "pg_control").write_bytes(struct.pack("=Q", 1))


@pytest.mark.parametrize("live", [True, False])
async def test_a_restore_cut_short_between_its_renames_is_finished(tmp_path: Path, *, live: bool) -> None:
    """The old data are isolated and the new complete: nothing is copied again. While the old are live, they stay."""
    storage = open_storage(_settings(tmp_path))
    _database(tmp_path / "store" / "data.adopting-1234")
    if live:
        _database(storage.data_dir)
        (storage.data_dir / "old").touch()
    await storage.open()
    assert await storage.has_data()
    assert (storage.data_dir / "old").exists() is live
    assert await storage.clear_leftovers() == int(live)
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"data"}


async def test_what_is_complete_is_not_cleared_while_nothing_is_live(tmp_path: Path) -> None:
    """Its second rename has failed, and the peer goes on: the next restore must not begin by destroying it."""
    storage = open_storage(_settings(tmp_path))
    _database(tmp_path / "store" / "data.adopting-1234")
    assert await storage.clear_leftovers() == 0
    assert await storage.has_data()


async def test_data_that_are_set_aside_make_way_for_nothing(tmp_path: Path) -> None:
    storage = open_storage(_settings(tmp_path))
    _database(tmp_path / "store" / "data.adopting-1234")
    _database(storage.data_dir)
    await storage.isolate("rebuild")
    await storage.open()
    assert not await storage.has_data()
