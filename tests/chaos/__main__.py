"""`make chaos`: rounds of faults on a shard, until something is found or all have passed.

    make chaos ROUNDS=5 SEED=17 FAULTS=kill-peer,isolate

The same seed makes the same schedule. What happened is written to build/chaos/seed-N: a timeline, a picture, the
history of every operation, and the logs if something was found.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import sys
from pathlib import Path

import click

from demo.postgresql import choose
from demo.shard import ShardFailed
from manatee import log
from manatee.config import Log
from tests.chaos.faults import FAULTS
from tests.chaos.history import Journal
from tests.chaos.lab import FAKETIME, Lab, complete
from tests.chaos.report import write_report
from tests.chaos.rounds import Result, run, summary
from tests.chaos.schedule import ROUND
from tests.chaos.slot import Impossible, claimed

OUTPUT = Path("build/chaos")


@click.command(help=__doc__)
@click.option("--rounds", default=3, show_default=True)
@click.option("--seed", type=int, default=None, help="Drawn unless given.")
@click.option("--faults", default="all", show_default=True, help="Which, separated by commas; -NAME for all but that.")
@click.option("--peers", default=3, show_default=True)
@click.option("--postgresql", type=int, default=15, show_default=True, metavar="MAJOR")
@click.option("--seconds", default=ROUND, show_default=True, help="For the faults of one round.")
@click.option("--broken", default=None, help="Run a sitter that is broken on purpose; see tests/chaos/broken.py.")
def main(
    rounds: int, seed: int | None, faults: str, peers: int, postgresql: int, seconds: float, broken: str | None
) -> None:
    chosen = seed if seed is not None else secrets.randbelow(1_000_000)
    log.set_up(Log(level="error"))
    try:
        result = asyncio.run(_main(chosen, rounds, choose_faults(faults), peers, postgresql, seconds, broken))
    except (Impossible, ShardFailed) as error:
        sys.exit(f"chaos, seed {chosen}: {error}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(f"chaos, seed {chosen}: interrupted")
    click.echo(f"\nseed {chosen}: {summary(result)}")
    for finding in result.findings:
        click.echo(f"BROKEN  {finding}")
    sys.exit(1 if result.findings else 0)


def choose_faults(words: str) -> list[str]:
    """Raises click.UsageError for a name that is none."""
    named = [] if words in ("", "all") else words.split(",")
    for name in named:
        if name.removeprefix("-") not in FAULTS:
            raise click.UsageError(f"no fault is called {name}: there are {', '.join(FAULTS)}")
    without = {name[1:] for name in named if name.startswith("-")}
    wanted = [name for name in named if not name.startswith("-")] or list(FAULTS)
    return [name for name in wanted if name not in without]


async def _main(
    seed: int, rounds: int, faults: list[str], peers: int, postgresql: int, seconds: float, broken: str | None
) -> Result:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    output = OUTPUT / f"seed-{seed}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    journal = Journal(output / "events.jsonl", echo=True)
    result = Result(seed)
    click.echo(f"seed {seed}: {rounds} rounds of {len(faults)} kinds of faults; in {output}")
    with claimed() as slot:
        lab = Lab(
            slot,
            journal,
            peers=peers,
            postgresql=choose(postgresql),
            broken=broken,
            clocks="clock-jump" in faults and FAKETIME.exists(),
        )
        try:
            async with complete(lab):
                await run(lab, result, rounds=rounds, faults=faults, length=seconds)
        finally:
            if lab.peers:
                write_report(output, lab, result)
    return result


if __name__ == "__main__":
    main()
