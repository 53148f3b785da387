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
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from demo.postgresql import choose
from demo.shard import ShardFailed
from manatee import log
from manatee.config import Log
from tests.chaos.broken import BROKEN
from tests.chaos.faults import FAULTS
from tests.chaos.history import Journal
from tests.chaos.lab import FAKETIME, Lab, complete
from tests.chaos.report import write_report
from tests.chaos.rounds import Result, at_random, run, summary
from tests.chaos.schedule import ROUND
from tests.chaos.slot import Impossible, claimed

OUTPUT = Path("build/chaos")
DEFAULTS = {"peers": 3, "postgresql": 15, "broken": None}


@click.command(help=__doc__)
@click.option("--rounds", default=3, show_default=True)
@click.option("--seed", type=int, default=None, help="Drawn unless given.")
@click.option("--faults", default="all", show_default=True, help="Which, separated by commas; -NAME for all but that.")
@click.option("--peers", default=3, show_default=True)
@click.option("--postgresql", type=int, default=15, show_default=True, metavar="MAJOR")
@click.option("--seconds", default=ROUND, show_default=True, help="For the faults of one round.")
@click.option("--broken", default=None, type=click.Choice(list(BROKEN)), help="Run sitters broken on purpose.")
@click.option(
    "--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="A setting of all peers, as in TOML."
)
def main(**given: Any) -> None:
    seed = given["seed"] if given["seed"] is not None else secrets.randbelow(1_000_000)
    log.set_up(Log(level="error"))
    output = OUTPUT / f"seed-{seed}"
    try:
        result = asyncio.run(play(output, seed, given))
    except (Impossible, ShardFailed) as error:
        sys.exit(f"chaos, seed {seed}: {error}; see {output}")
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(f"chaos, seed {seed}: interrupted")
    click.echo(f"\nseed {seed}: {summary(result)}")
    for finding in result.findings:
        click.echo(f"BROKEN  {finding}")
    click.echo(f"{output}/timeline.txt, {output}/picture.svg; the same schedule again: {again(seed, given)}")
    sys.exit(1 if result.findings else 0)


def again(seed: int, given: Mapping[str, Any]) -> str:
    """The command that plays the same schedule."""
    faults = "" if given["faults"] == "all" else f" FAULTS={given['faults']}"
    more = [f"--{name} {given[name]}" for name in ("peers", "postgresql", "broken") if given[name] != DEFAULTS[name]]
    more += [f"--set {setting}" for setting in given["settings"]]
    more += [f"--seconds {given['seconds']:g}"] if given["seconds"] != ROUND else []
    return f"make chaos ROUNDS={given['rounds']} SEED={seed}{faults}" + (f' ARGS="{" ".join(more)}"' if more else "")


def overrides(words: Iterable[str]) -> dict[str, dict[str, object]]:
    """Raises click.UsageError for what is no setting in TOML."""
    found: dict[str, dict[str, object]] = {}
    for word in words:
        try:
            ((section, values),) = _setting(word).items()
            if not isinstance(values, dict):
                raise ValueError(word)
            found.setdefault(section, {}).update(values)
        except (tomllib.TOMLDecodeError, ValueError, AttributeError, TypeError):
            raise click.UsageError(f"not SECTION.KEY=VALUE in TOML: {word}") from None
    return found


def _setting(word: str) -> dict[str, Any]:
    """A string may come without its quotes: on the way through make a shell has taken them."""
    try:
        return tomllib.loads(word)
    except tomllib.TOMLDecodeError:
        name, _, value = word.partition("=")
        return tomllib.loads(f'{name} = "{value}"')


def choose_faults(words: str) -> list[str]:
    """Raises click.UsageError for a name that is none."""
    named = [] if words in ("", "all") else words.split(",")
    for name in named:
        if name.removeprefix("-") not in FAULTS:
            raise click.UsageError(f"no fault is called {name}: there are {', '.join(FAULTS)}")
    without = {name[1:] for name in named if name.startswith("-")}
    wanted = [name for name in named if not name.startswith("-")] or list(FAULTS)
    return [name for name in wanted if name not in without]


async def play(output: Path, seed: int, given: Mapping[str, Any]) -> Result:
    """Everything between the command line and what it says."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    faults = choose_faults(given["faults"])
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    journal, result = Journal(output / "events.jsonl", echo=True), Result(seed)
    click.echo(f"seed {seed}: {given['rounds']} rounds of {len(faults)} kinds of faults; in {output}")
    with claimed() as slot:
        lab = Lab(
            slot,
            journal,
            peers=given["peers"],
            postgresql=choose(given["postgresql"]),
            broken=given["broken"],
            clocks="clock-jump" in faults and FAKETIME.exists(),
            overrides=overrides(given["settings"]),
        )
        try:
            async with complete(lab):
                await run(lab, result, at_random(seed, faults, given["seconds"]), rounds=given["rounds"])
        finally:
            if lab.peers:
                write_report(output, lab, result)
    return result


if __name__ == "__main__":
    main()
