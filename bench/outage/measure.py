"""The rounds: something is done to a whole cluster while a client writes, and then all is made whole again."""

from __future__ import annotations

import asyncio
import statistics
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import click

from bench.client import Client
from bench.machine import machine
from bench.outage.contestant import Contestant, Entry
from bench.outage.deeds import EVENTS, Event
from bench.outage.floor import Floor
from bench.outage.manatee import SESSION_TIMEOUT, Manatee
from bench.outage.patroni import DEFAULTS, FASTEST, VERSION, Patroni
from bench.results import OURS, Row, Section

PATIENCE = 120.0
TRIES = 2

ENTRIES: dict[str, Entry] = {
    OURS: Manatee(f"Manatee, session timeout {SESSION_TIMEOUT:g} s"),
    "floor": Floor("by hand: the floor"),
    "patroni-fastest": Patroni(f"Patroni {VERSION}, the fastest settings it accepts", FASTEST, 3),
    "patroni": Patroni(f"Patroni {VERSION}, defaults", DEFAULTS, 4),
}
TOGETHER: dict[str, Sequence[Entry]] = {
    "patroni-fastest": (ENTRIES["patroni-fastest"],),
    "patroni": (ENTRIES["patroni"], Patroni(f"Patroni {VERSION}, defaults", DEFAULTS, 5)),
}
"""They mostly wait, so they are measured at the same time, after all others; on the clusters given, which share the
events."""

NOTES = tuple(
    """\
No write is acknowledged for this long: a client holds a connection to every server, writes one row after the other \
through the one that takes writes, and asks all of them every 10 ms while none does.
Everybody has the same ZooKeeper (the floor none), the same PostgreSQL and three servers on this one machine; commits \
wait for one synchronous standby (Patroni: `synchronous_mode_strict`).
Our sitters have the default settings but for the session timeout (10 s by default: the outage after a SIGSTOP is \
longer by the difference) and `postgres.rejoin = "rewind"`, as Patroni has `use_pg_rewind`.
The floor is a chain of servers with the same configuration and a script that knows at once what has happened and does \
at once what must be done; it proves nothing and writes nothing down.
Patroni mostly waits, so its three clusters (one with the fastest settings, two with the defaults, which share the \
events) are measured at the same time; everybody else is measured alone.
""".splitlines()
)


@dataclass
class Measured:
    """Of one contestant: by event."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    spans: dict[str, list[list[str]]] = field(default_factory=dict)
    missing: int = 0
    """Acknowledged rows that are not there."""
    failed: list[str] = field(default_factory=list)

    def add(self, more: Measured) -> None:
        self.seconds |= more.seconds
        self.spans |= more.spans
        self.missing += more.missing
        self.failed += more.failed


async def measure(rounds: int, events: Sequence[str] = (), names: Sequence[str] = ()) -> Section:
    """Of all contestants and events unless some are given."""
    on = machine(Patroni=VERSION)
    names, events = names or list(ENTRIES), events or list(EVENTS)
    measured = {name: await _contestant(ENTRIES[name], events, rounds) for name in names if name not in TOGETHER}
    jobs = [
        (name, cluster, events[first :: len(TOGETHER[name])])
        for name in names
        for first, cluster in enumerate(TOGETHER.get(name, ()))
    ]
    found = await asyncio.gather(*(_contestant(cluster, share, rounds) for _, cluster, share in jobs))
    for (name, _, _), each in zip(jobs, found, strict=True):
        measured.setdefault(name, Measured()).add(each)
    return Section(
        columns={name: ENTRIES[name].name for name in names},
        rows={
            key: Row(
                what=EVENTS[key].name,
                unit="s",
                values={name: measured[name].seconds[key] for name in names if key in measured[name].seconds},
            )
            for key in events
        },
        notes=NOTES,
        missing=sum(each.missing for each in measured.values()),
        failed=[words for each in measured.values() for words in each.failed],
        spans={key: _of_the_median(measured[OURS], key) for key in measured[OURS].seconds} if OURS in measured else {},
        machine=on,
    )


def _of_the_median(measured: Measured, key: str) -> list[str]:
    """What the sitters said of it; PostgreSQL's own words would fill pages."""
    seconds = measured.seconds[key]
    spans = measured.spans[key][seconds.index(statistics.median_low(seconds))]
    told = [line for line in spans if "  postgres  line=" not in line]
    return [f"The round of the median, {statistics.median_low(seconds):.2f} s; milliseconds since the event:", *told]


async def _contestant(entry: Entry, events: Sequence[str], rounds: int) -> Measured:
    """After what goes wrong a new cluster goes on with the rounds that are left, twice with an event at most."""
    found = Measured()
    left, tried = list(events), Counter[str]()
    while left:
        try:
            await _one_cluster(entry, left, rounds, found)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are worth measuring
            traceback.print_exc()
            what = EVENTS[left[0]].name if left else "the end"
            found.failed.append(" ".join(f"{entry.name}, {what}: {type(error).__name__} {error}".split()))
            tried.update(left[:1])
            left = [key for key in left if tried[key] < TRIES]
    return found


async def _one_cluster(entry: Entry, left: list[str], rounds: int, found: Measured) -> None:
    """The events that are left; each is taken off the list when it has been measured."""
    async with entry.cluster() as cluster:
        await cluster.whole()
        missing_before = found.missing
        async with writing(cluster.addresses) as client:
            while left:
                key = left[0]
                for number in range(len(found.seconds.get(key, ())), rounds):
                    seconds, spans = await _one(cluster, client, EVENTS[key])
                    found.seconds.setdefault(key, []).append(seconds)
                    found.spans.setdefault(key, []).append(spans)
                    click.echo(f"{entry.name}: {EVENTS[key].name}, {number + 1}: {seconds:.2f} s", err=True)
                await cluster.whole()
                found.missing = missing_before + len(await client.missing())
                left.pop(0)


@asynccontextmanager
async def writing(addresses: Sequence[str]) -> AsyncIterator[Client]:
    """A client that writes for as long as the block lasts."""
    client = Client(addresses)
    task = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _one(cluster: Contestant, client: Client, event: Event) -> tuple[float, list[str]]:
    primary, sync = await cluster.whole()
    await _steady(client)
    moment, clock = time.monotonic(), time.time()
    await event.do(cluster, primary, sync)
    await _steady(client, after=moment)
    seconds, began, ended = client.outage(moment)
    await cluster.bring_back(sync if event.harms_sync else primary)
    return seconds, cluster.spans(clock, moment, began, ended)


async def _steady(client: Client, *, after: float = 0.0) -> None:
    """Wait for a second of acknowledgements; with `after`, one that began after that moment or runs past its outage."""
    count = len(client.acknowledged)
    begun = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        while True:
            await asyncio.sleep(0.05)
            recent = client.acknowledged[count:]
            now = time.monotonic()
            if len(recent) >= 50 and recent[-1][1] > now - 0.2 and now - begun > 1.0 and recent[-1][1] > after + 1.0:
                return
