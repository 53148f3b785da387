"""`make cluster`: a shard of three in the foreground, to connect to and to try things on, until Ctrl-C."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import click

from demo.options import local_shard, run, shard_options
from demo.screen import Screen
from demo.shard import LocalShard, Seen
from manatee.client import Address, libpq_url

SETTLE = 120.0


@click.command(help=__doc__)
@shard_options
def main(**options: Any) -> None:
    run(lambda: serve(local_shard(**options)))


async def serve(shard: LocalShard) -> None:
    screen = Screen()
    began = time.monotonic()
    screen.step(f"Starting ZooKeeper and three peers on {', '.join(shard.addresses)}: {shard.postgresql}")
    async with shard:
        with screen.waiting("waiting until the shard is complete") as show:
            await shard.wait_for(
                lambda seen: seen.complete(len(shard.peers)), timeout=SETTLE, what="a complete shard", progress=show
            )
        screen.say(f"complete after {time.monotonic() - began:.1f} s")
        screen.step("In another terminal")
        for line in suggestions(shard):
            screen.say(line)
        screen.step("Running until Ctrl-C")
        await _tell_changes(screen, shard)


def suggestions(shard: LocalShard) -> list[str]:
    bin_dir = Path(sys.executable).parent
    port = shard.peers[0].settings.peer.postgres_port
    url = libpq_url([Address(peer.ip, port) for peer in shard.peers])
    first = shard.peers[0]
    status = f"http://{first.ip}:{first.settings.status_port}"
    return [
        f"export PATH={bin_dir}:$PATH ZK_IPS={shard.zookeeper.servers} SHARD={shard.name}",
        "manatee-adm show -v             # who is what, and how far behind",
        "manatee-adm history             # every generation so far",
        "manatee-adm promote -n NAME -r sync -y   # move the primary; NAME is a PEERNAME",
        "",
        f"{shard.postgresql.bin_dir}/psql '{url}'",
        f"curl {status}/state             # what a sitter knows and wants, and why; also /metrics, /primary",
        "",
        "What happens if a sitter and its PostgreSQL die (the supervisor starts it again):",
        f"kill -9 $(cut -d' ' -f1 {first.log('sitter')}.child)",
        "A peer that the shard has deposed is rebuilt by:",
        f"manatee-adm rebuild -y -c {first.settings_file}    # peer2, peer3 likewise",
        "",
        f"Logs: {shard.directory}/peer*/*.log",
    ]


async def _tell_changes(screen: Screen, shard: LocalShard) -> None:
    """A line for each change of the cluster state, for ever."""
    from manatee.coordination import CoordinationError

    last: Seen | None = None
    while True:
        try:
            seen = await shard.look()
        except CoordinationError as error:
            screen.say(str(error))
        else:
            if str(seen) != str(last):
                screen.say(f"{time.strftime('%H:%M:%S')}  {seen}")
                last = seen
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    main()
