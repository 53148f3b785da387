"""A restore killed at any step, on both ends at once, and begun again: a complete database, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage.conftest import NewPeer
from tests.storage.stage import IDENTITY, Peer, nothing_is_left, restore

_REPOSITORY = Path(__file__).parents[2]


def _attempt(source: Peer, target: Peer, step: int) -> bool:
    """Whether the restore came through before that step."""
    command = [sys.executable, "-m", "tests.storage.killed", str(source.path), str(target.path), str(step)]
    done = subprocess.run(command, cwd=_REPOSITORY, timeout=600, check=False, capture_output=True, text=True)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == 0


# Under emulation (`make test-zfs`) each attempt takes long: it goes several steps further than the one before.
LONGER = 8 if "MANATEE_SLOWNESS" in os.environ else 1


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("form", "stride"), [("full", 5), ("increment", 1)])
async def test_killed_after_any_step_it_can_be_begun_again(form: str, stride: int, new_peer: NewPeer) -> None:
    """Each attempt goes a step further than the one before and dies; nobody tidies up in between.

    (Of a full restore, whose steps are nearly the same, some do.)
    """
    source, target = await new_peer().fill(400_000), new_peer()
    await target.storage.open()
    if form == "increment":
        await restore(source, target)
    step = 1
    while True:
        source.write("new", 400_000)
        await source.storage.release_stale()
        if _attempt(source, target, step):
            break
        await _is_sound(target, had_data=form == "increment")
        if form == "full" and await target.storage.has_data():
            await target.storage.isolate("again", base=False)
            await target.storage.drop_isolated(0)
        step += stride * LONGER
    assert step > 15
    async with nothing_is_left(source, target):
        await source.storage.release_stale()
        await restore(source, target)
        await target.storage.clear_leftovers(resumable=True)
        await target.storage.drop_isolated(0)
    assert target.content() == source.content()


async def _is_sound(target: Peer, *, had_data: bool) -> None:
    """What is live is whole; and it is never gone for good."""
    await target.storage.open()
    if await target.storage.has_data():
        assert await target.storage.identity() == IDENTITY
        assert (target.data / "base" / "bulk").stat().st_size == 400_000
    elif had_data:
        assert any(name.startswith("isolated/") for name in target.datasets())
