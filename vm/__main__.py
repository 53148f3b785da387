"""`make test-zfs`: the tests of storage with a real OpenZFS, in a virtual machine that has one.

Builds what is missing of the machine first, then runs pytest in it, with ARGS if there are any. Exits as pytest does.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence

import click

from demo.options import run
from demo.screen import Screen
from vm.artifacts import KERNEL, PYTHON, ROOT, BuildFailed, cache, obtain
from vm.machine import MachineFailed, Parts, run_tests

WHOLE_SHARD = "tests/storage/test_whole_shard.py"
BESIDE = tuple(f"tests/storage/test_{name}.py" for name in ("delegation", "holds", "killed"))
"""What runs in the machine of the whole shard: so both take about as long."""
# zfs(8) alone is tried by `make test` with zfs-fuse; here by what differs most between the one and the other.
LIBRARY = "not [zfs"
COMMAND = "without_data_gets or only_the_difference or cut_stream_is_gone_on or how_it_is_reached"
OURS = (
    "rewind_tears or holds_up_nothing or told_with_the_reason or without_a_database_are_not or may_not_be_set"
    " or cancelled_ends or no_wal_can_be_kept or one_is_kept_for_each_peer"
)
"""What is the same on every ZFS, and is tried with zfs-fuse alone: our own book-keeping."""
TESTS = {
    "shard": ("-v", "--durations=15", WHOLE_SHARD, *BESIDE, "-k", LIBRARY),
    "storage": (
        *("-v", "--durations=15", "tests/storage", *(f"--ignore={path}" for path in (WHOLE_SHARD, *BESIDE))),
        *("-k", f"({LIBRARY} or {COMMAND}) and not ({OURS})"),
    ),
}
"""For each of two machines, which run at the same time: an emulated one uses one core."""
FASTER = "storage"
"""The group whose machine goes by our clock: the deadlines of its tests are long enough."""


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.option("--deadline", default=3600.0, show_default=True, help="Seconds that the tests may take, all in all.")
@click.option("--silence", default=600.0, show_default=True, help="Seconds without a word after which it has hung.")
@click.argument("tests", nargs=-1)
def main(tests: tuple[str, ...], deadline: float, silence: float) -> None:
    if os.geteuid() != 0:
        raise click.ClickException("needs root, to make the machine's file systems with files of several users in them")
    screen = Screen()
    status = 1

    async def work() -> None:
        nonlocal status
        began = time.monotonic()
        parts = Parts(await obtain(KERNEL, screen), await obtain(ROOT, screen), await obtain(PYTHON, screen))
        screen.say(f"building took {time.monotonic() - began:.0f} s; what was built is kept in {cache()}")
        groups = {"": tests} if tests else TESTS
        screen.step("Starting a virtual machine with OpenZFS for each group of tests: emulated, hence slow")
        runs = (_run(screen, parts, name, words, deadline, silence) for name, words in groups.items())
        status = max(await asyncio.gather(*runs))

    run(work, BuildFailed)
    sys.exit(status)


async def _run(screen: Screen, parts: Parts, name: str, words: Sequence[str], deadline: float, silence: float) -> int:
    """Run tests in a machine of their own, and say what came of it; an exit status."""
    began = time.monotonic()
    try:
        status = await run_tests(parts, words, name=name, counting=name != FASTER, deadline=deadline, silence=silence)
        outcome = "passed" if status == 0 else "FAILED"
    except MachineFailed as error:
        status, outcome = 1, f"FAILED: {error}"
    screen.step(f"{name or 'tests'}: {outcome}, after {time.monotonic() - began:.0f} s")
    return status


if __name__ == "__main__":
    main()
