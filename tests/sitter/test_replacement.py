"""Data that a restore has brought are made this peer's own, even if it is given up in the moment they take their place.

Otherwise this peer would run by its source's pg_hba.conf, or restore them again because older ones had been torn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from demo.postgresql import unprivileged_user
from manatee.storage import datadir
from sitter import replacement
from sitter.bootstrap import Progress, RestoreFailed
from sitter.postgres.rewind import Unrewindable
from sitter.replacement import Replacement
from sitter.view import Restore, Rewind
from tests.core.views import A


class Restores:
    """Stands in for transfers; they end as they are told to, before or after the new data have taken their place."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.adopts = True
        self.error: BaseException | None = None
        self.progress = Progress("running", None, 0, 0, None, "now", None)

    def __call__(self, *_: object) -> Restores:
        return self

    async def run(self, *_: object, before_adopt: Callable[[], Awaitable[None]], **__: object) -> None:
        await before_adopt()
        if self.adopts:
            if self.data_dir.exists():
                self.data_dir.rename(self.data_dir.with_name("isolated"))
            make(self.data_dir)
            datadir.mark_restored(self.data_dir)
        if self.error:
            raise self.error


class Storage:
    """Where the data are; `ready` is what opening it brings about."""

    def __init__(self, ready: Callable[[], None] = lambda: None) -> None:
        self._ready = ready

    async def open(self) -> None:
        self._ready()


def make(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "PG_VERSION").touch()
    (data_dir / "pg_hba.conf").write_text("another peer's")


@pytest.fixture
def restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Restores:
    found = Restores(tmp_path / "data")

    async def version(*_: object, **__: object) -> int:
        return 18

    monkeypatch.setattr(replacement, "Transfer", found)
    monkeypatch.setattr(replacement, "open_storage", lambda _: Storage())
    monkeypatch.setattr("sitter.postgres.versions.of_programs", version)
    (tmp_path / "hba").write_text("ours")
    (tmp_path / "mark").touch()
    return found


def replacing(restores: Restores) -> Replacement:
    here = restores.data_dir.parent
    postgres = SimpleNamespace(
        query_timeout=60.0, manage_hba=True, hba_file=here / "hba", ident_file=None, user=unprivileged_user()
    )
    settings = SimpleNamespace(
        postgres=postgres,
        storage=SimpleNamespace(data_dir=restores.data_dir),
        sitter=SimpleNamespace(rewind_mark=here / "mark"),
    )
    watch = cast(Any, SimpleNamespace(forget_identity=lambda: None))
    return Replacement(cast(Any, settings), watch, structlog.get_logger(), lambda: None)


async def restored(restores: Restores) -> None:
    """What runs when that restore ends."""
    await replacing(restores).run(Restore((A,)), None)


def is_ours(restores: Restores) -> bool:
    hba = (restores.data_dir / "pg_hba.conf").read_text() == "ours"
    assert hba is not (restores.data_dir.parent / "mark").exists(), "both or none"
    return hba


@pytest.mark.parametrize("old", [True, False], ids=["over old data", "where none were"])
@pytest.mark.parametrize("error", [None, asyncio.CancelledError(), RestoreFailed("")])
async def test_what_was_adopted_is_made_ours(restores: Restores, old: bool, error: BaseException | None) -> None:
    if old:
        make(restores.data_dir)
    restores.error = error
    if error is None:
        await restored(restores)
    else:
        with pytest.raises(type(error)):
            await restored(restores)
    assert is_ours(restores)
    assert not (restores.data_dir / datadir.RESTORED).exists()
    assert (restores.data_dir / "standby.signal").exists(), "whoever is to lead on a copy does so on a new timeline"


async def test_what_took_its_place_when_the_sitter_died_is_made_ours_at_its_start(restores: Restores) -> None:
    def take_place() -> None:
        make(restores.data_dir)
        datadir.mark_restored(restores.data_dir)

    under_test = replacing(restores)
    under_test.storage = cast(Any, Storage(take_place))
    await under_test.open()
    assert is_ours(restores)
    assert not under_test.torn


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RestoreFailed("the source is gone")])
async def test_old_data_that_stay_are_as_torn_as_they_were(restores: Restores, error: BaseException) -> None:
    make(restores.data_dir)
    restores.adopts, restores.error = False, error
    with pytest.raises(type(error)):
        await restored(restores)
    assert not is_ours(restores)


async def test_a_restore_that_is_given_up_and_leaves_nothing(restores: Restores) -> None:
    restores.adopts, restores.error = False, asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await restored(restores)
    assert not restores.data_dir.exists()
    assert (restores.data_dir.parent / "mark").exists()


async def test_what_could_not_be_made_ours_is_before_anything_is_done_with_it(
    restores: Restores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not leave a mark that makes data which lead by then, or are torn, look as just received."""
    here = restores.data_dir.parent
    (here / "hba").rename(here / "elsewhere")
    under_test = replacing(restores)
    with pytest.raises(FileNotFoundError):
        await under_test.run(Restore((A,)), None)
    (here / "elsewhere").rename(here / "hba")

    async def rewind(*_: object) -> None:
        assert is_ours(restores)
        raise Unrewindable("this is about what was before")

    monkeypatch.setattr("sitter.postgres.rewind.rewind", rewind)
    await under_test.run(Rewind(A), None)
    assert not (restores.data_dir / datadir.RESTORED).exists()
    assert under_test.unrewindable == "this is about what was before"


async def test_what_was_brought_and_was_kept_from_its_place_is_not_brought_again(restores: Restores) -> None:
    """Files in the way of the mount, which the operator has moved away meanwhile."""

    def take_place() -> None:
        make(restores.data_dir)
        datadir.mark_restored(restores.data_dir)

    under_test = replacing(restores)
    under_test.storage = cast(Any, Storage(take_place))
    restores.error = AssertionError("there is nothing to bring")
    await under_test.run(Restore((A,)), None)
    assert is_ours(restores)
    assert under_test.progress is not None
    assert under_test.progress.state == "done"
