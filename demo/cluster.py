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
    """What to type in another terminal, as it stands."""
    bin_dir = Path(sys.executable).parent
    first = shard.peers[0]
    url = libpq_url([Address(peer.ip, peer.settings.peer.postgres_port) for peer in shard.peers])
    supervisor = f"python -m demo.supervisor {shard.socket}"
    watch = [f"zfs list -r -t all {shard.pool}        # every peer's dataset and snapshots"] if shard.pool else []
    return [
        f"export PATH={bin_dir}:$PATH ZK_IPS={shard.zookeeper.servers} SHARD={shard.name}",
        "manatee-adm show -v                         # who is what, and how far behind",
        "manatee-adm history                         # every generation so far",
        "manatee-adm promote -n NAME -r sync -y      # move the primary; NAME is the sync's PEERNAME",
        *watch,
        "",
        f"{shard.postgresql.bin_dir}/psql '{url}'",
        f"curl http://{first.ip}:{first.settings.status_port}/state        # also /metrics, /primary, /health",
        "",
        f"kill -9 $(cut -d' ' -f1 {first.log('sitter')}.child)    # it is started again",
        f"{supervisor} kill {first.programs[0]}     # it is not: the others take over",
        f"{supervisor} start {first.programs[0]}    # deposed, if it was the primary; then",
        f"manatee-adm rebuild -y -c {first.settings_file}",
        "",
        ", ".join(f"peer{peer.number} is {peer.label} ({peer.ip})" for peer in shard.peers),
        f"logs are in {shard.directory}/peer*/",
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
