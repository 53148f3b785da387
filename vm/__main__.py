"""`make test-zfs`: the tests of storage with a real OpenZFS, in a virtual machine that has one.

Builds what is missing of the machine first, then runs pytest in it, with ARGS if there are any. Exits as pytest does.
"""

from __future__ import annotations

import os
import sys
import time

import click

from demo.options import run
from demo.screen import Screen
from vm.artifacts import KERNEL, PYTHON, ROOT, BuildFailed, cache, obtain
from vm.machine import MachineFailed, Parts, run_tests

TESTS = ("tests/storage",)


@click.command(help=__doc__, context_settings={"ignore_unknown_options": True})
@click.option("--deadline", default=1200.0, show_default=True, help="Seconds that the tests may take, all in all.")
@click.option("--silence", default=420.0, show_default=True, help="Seconds without a word after which it has hung.")
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
        built = time.monotonic()
        screen.step("Starting a virtual machine with OpenZFS: emulated, hence slow")
        status = await run_tests(parts, tests or TESTS, deadline=deadline, silence=silence)
        took = f"{built - began:.0f} s to build, {time.monotonic() - built:.0f} s in the machine"
        screen.step(f"{'Passed' if status == 0 else 'FAILED'}: {took}; what was built is kept in {cache()}")

    run(work, BuildFailed, MachineFailed)
    sys.exit(status)


if __name__ == "__main__":
    main()
