"""What the virtual machine is made of is built once, again when its recipe changes, and never half."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from demo.screen import Screen
from vm.artifacts import Artifact, BuildFailed, cache, obtain

GOOD = """#!/bin/sh
echo built >> "$(dirname "$0")/log"
cp "$(dirname "$0")/recipe" "$2/product"
"""
BAD = """#!/bin/sh
echo half > "$2/product"
echo the mirror is down
exit 3
"""
LONG = """#!/bin/sh
sleep 1000 &
echo $! > "$(dirname "$0")/started"
sleep 1000
"""


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(needs_root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def artifact(directory: Path, script: str = GOOD, recipe: str = "one") -> Artifact:
    (directory / "recipe").write_text(recipe)
    path = directory / "build.sh"
    path.write_text(script)
    path.chmod(0o755)
    return Artifact("thing", "a thing", path, (directory / "recipe",))


def kept() -> list[str]:
    return sorted(path.name for path in cache().iterdir() if path.suffix != ".lock")


async def test_it_is_built_once_and_again_when_its_recipe_changes(tmp_path: Path) -> None:
    first = await obtain(artifact(tmp_path), Screen())
    assert await obtain(artifact(tmp_path), Screen()) == first
    assert (tmp_path / "log").read_text() == "built\n"
    second = await obtain(artifact(tmp_path, recipe="two"), Screen())
    assert (second / "product").read_text() == "two"
    assert kept() == [second.name], "what it replaces is removed"


async def test_two_who_ask_at_the_same_time_build_it_once(tmp_path: Path) -> None:
    thing = artifact(tmp_path)
    await asyncio.gather(obtain(thing, Screen()), obtain(thing, Screen()))
    assert (tmp_path / "log").read_text() == "built\n"


async def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"(?s)build\.sh ended with status 3:.*the mirror is down"):
        await obtain(artifact(tmp_path, BAD), Screen())
    assert kept() == []


async def test_a_build_that_is_given_up_ends_with_all_its_processes(tmp_path: Path) -> None:
    before = {process.pid for process in psutil.process_iter()}
    building = asyncio.create_task(obtain(artifact(tmp_path, LONG), Screen()))
    async with asyncio.timeout(30):
        while not (tmp_path / "started").exists():
            await asyncio.sleep(0.05)
    ours = [
        process
        for process in psutil.process_iter()
        if process.pid not in before and process.cmdline() == ["sleep", "1000"]
    ]
    building.cancel()
    await asyncio.wait([building])
    assert not any(process.is_running() for process in ours)
    assert kept() == []
