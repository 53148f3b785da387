"""What a sitter costs when nothing happens: share of a core, resident memory, and where the memory is.

`python -m bench.footprint [--seconds N]`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import click
import psutil

from bench.machine import describe
from demo.shard import LocalShard

ADDRESSES = ("127.31.1.2", "127.31.1.3", "127.31.1.4")
STEPS = (
    ("Python itself", ""),
    ("asyncio", "asyncio"),
    ("pydantic", "pydantic, pydantic_core"),
    ("structlog", "structlog"),
    ("kazoo", "kazoo.client"),
    ("psycopg", "psycopg"),
    ("aiohttp, both ends", "aiohttp, aiohttp.web"),
    ("prometheus-client", "prometheus_client"),
    ("click", "click"),
    ("the sitter", "sitter.main"),
)
"""Imported one after the other, each on top of those before."""


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="For which the idle shard is watched.")
def main(seconds: float) -> None:
    rows = asyncio.run(_measure(seconds))
    click.echo(describe())
    click.echo(f"idle for {seconds:g} s, a shard of three:")
    for row in rows:
        click.echo(f"  {row}")
    click.echo("resident memory after importing, one on top of the other:")
    before = 0.0
    for index, (name, _) in enumerate(STEPS):
        now = _resident("; ".join(f"import {modules}" for _, modules in STEPS[: index + 1] if modules) or "pass")
        click.echo(f"  {name:20} {now:6.1f} MiB  (+{now - before:.1f})")
        before = now


async def _measure(seconds: float) -> list[str]:
    shard = LocalShard(ADDRESSES, name="bench", zookeeper=("127.31.1.1", 2181), session_timeout=4.0)
    async with shard:
        await shard.wait_for(lambda seen: seen.complete(3), timeout=90, what="a complete shard")
        await asyncio.sleep(5)  # what follows the last change dies away
        watched = {
            program: psutil.Process(shard.supervisor.status(program).pid)
            for peer in shard.peers
            for program in peer.programs
        }
        begun = time.monotonic()
        before = {program: sum(process.cpu_times()[:2]) for program, process in watched.items()}
        await asyncio.sleep(seconds)
        passed = time.monotonic() - begun
        rows = []
        for program, process in sorted(watched.items()):
            share = (sum(process.cpu_times()[:2]) - before[program]) / passed
            memory = process.memory_full_info()
            rows.append(
                f"{program:15} {100 * share:5.2f} % of a core, resident {memory.rss / 2**20:5.1f} MiB"
                f" (of it its own {memory.uss / 2**20:5.1f} MiB)"
            )
        return rows


def _resident(imports: str) -> float:
    """MiB, of a fresh interpreter after these imports. Seen from outside: to ask would need one more."""
    command = [sys.executable, "-c", f"{imports}; print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        resident: int = psutil.Process(process.pid).memory_info().rss
        process.communicate("\n")
    return resident / 2**20


if __name__ == "__main__":
    main()
