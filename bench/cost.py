"""What the sitters cost the database: pgbench on a shard, and on the same servers and configuration without sitters.

`python -m bench.cost [--rounds N] [--seconds N]`. Both run all the time and take turns: they meet the same load.
"""

from __future__ import annotations

import asyncio
import re

import click

from bench import byhand
from bench.machine import machine, programs
from bench.outage.manatee import Manatee
from bench.page import table
from bench.results import OURS, Row, Section

PART = 6
CLIENTS = 4
SECONDS = 10
SCALE = 10
"""pgbench's: a million rows."""
PATIENCE = 120.0

NOTES = tuple(
    f"""\
pgbench, its own transaction, scale {SCALE}, {CLIENTS} clients, {SECONDS} s; commits wait for the synchronous standby.
By hand: three servers with the configuration that the sitter renders for them, and nobody who looks after them. Both \
clusters run all the time and take turns; what three idle sitters cost meanwhile is in both.
""".splitlines()
)


async def measure(rounds: int, seconds: int = SECONDS) -> Section:
    on = machine()
    found: dict[str, list[float]] = {OURS: [], "by-hand": []}
    async with Manatee("Manatee").cluster() as shard, byhand.chain(PART) as servers:
        primary, _ = await shard.whole()
        addresses = {OURS: primary, "by-hand": servers[0].ip}
        for address in addresses.values():
            await _pgbench(address, "-i", "-q", "-s", str(SCALE))
        for number in range(rounds):
            # Who comes first finds the machine as the other left it.
            for name in sorted(addresses, reverse=bool(number % 2)):
                said = await _pgbench(addresses[name], "-n", "-c", str(CLIENTS), "-T", str(seconds))
                found[name].append(_tps(said))
                click.echo(f"{name}, {number + 1}: {found[name][-1]:.0f} transactions a second", err=True)
    share = [ours / theirs for ours, theirs in zip(found[OURS], found["by-hand"], strict=True)]
    return Section(
        columns={OURS: "Manatee", "by-hand": "the same servers by hand"},
        rows={
            "tps": Row(what="pgbench", unit="transactions a second", digits=0, values=found),
            "share": Row(what="of what it is by hand, round by round", unit="share", values={OURS: share}),
        },
        notes=NOTES,
        machine=on,
    )


async def _pgbench(address: str, *words: str) -> str:
    """Its standard output. Raises RuntimeError if it fails."""
    process = await asyncio.create_subprocess_exec(
        programs().bin_dir / "pgbench",
        *(*words, "-h", address, "-U", "postgres", "postgres"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"pgbench {' '.join(words)}: {complaint.decode()}")
    return output.decode()


def _tps(said: str) -> float:
    found = re.search(r"tps = ([\d.]+) \(without", said)
    if found is None:
        raise RuntimeError(f"pgbench does not say how fast it was: {said}")
    return float(found[1])


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=SECONDS, show_default=True, help="Of one run.")
def main(rounds: int, seconds: int) -> None:
    click.echo("\n".join(table(asyncio.run(measure(rounds, seconds)))))


if __name__ == "__main__":
    main()
