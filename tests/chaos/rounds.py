"""One run: a shard, rounds of faults on it, and after each of them a look at everything.

A round injects what its schedule says while clients write, heals all of it, and then demands: writes are acknowledged
within `RECOVERY` seconds, the shard becomes complete by itself (but for peers that have diverged: those need the
operator, as promised), the promises of `checker` hold, all peers hold the same, and no log has a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg

from demo.shard import DAEMONS, LocalPeer, ShardFailed
from manatee.client import Address, NoPrimary, connect_writable, within
from tests.chaos import checker, operator
from tests.chaos.checker import Finding, Stale, Tables
from tests.chaos.chronicle import Chronicle, flapping
from tests.chaos.faults import FAULTS
from tests.chaos.history import KINDS, Operation, operations
from tests.chaos.lab import SLOWNESS, Inapplicable, Lab
from tests.chaos.schedule import ROUND, Strike, schedule
from tests.chaos.topology import NetworkFailed

RECOVERY = 60.0 * SLOWNESS
"""Seconds after the last healing within which the shard must take writes."""
ELECTION = 120.0 * SLOWNESS
"""Seconds within which ZooKeeper must have a leader again. That is its own affair: after a partition its servers may
take a minute to dial each other anew. The shard's time runs from then on."""
SETTLE = 150.0 * SLOWNESS
"""Seconds within which it must be complete after that."""
REBUILDS = 3
"""How often the operator rebuilds a peer before that is a finding."""


@dataclass
class Result:
    """What a run has come to."""

    seed: int
    rounds: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    spared: int = 0
    """Strikes that found nothing to strike."""
    findings: list[Finding] = field(default_factory=list)
    rebuilt: int = 0
    """Diverged peers that the operator rebuilt, as promised."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from healing to the first acknowledged write."""
    stale: Stale = field(default_factory=Stale)
    operations: list[Operation] = field(default_factory=list)


@contextlib.asynccontextmanager
async def under_way(lab: Lab, chronicle: Chronicle) -> AsyncIterator[None]:
    """The chronicle is written and the clients work while this lasts."""
    writing = asyncio.create_task(chronicle.run())
    try:
        while lab.last_state is None:
            await asyncio.sleep(0.05)
        await lab.start_clients()
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


Plan = Callable[[int], Sequence[Strike]]
"""What strikes in which round."""


def at_random(seed: int, faults: Sequence[str], length: float = ROUND) -> Plan:
    """The schedule of a seed."""
    kinds = {name: FAULTS[name].kind for name in faults}
    return lambda number: schedule(seed, number, kinds, length)


async def run(lab: Lab, result: Result, plan: Plan, *, rounds: int) -> None:
    """Run rounds until they are done or something is found. The lab is complete and has its tables."""
    chronicle = Chronicle(lab)
    for number in range(1, rounds + 1):
        async with under_way(lab, chronicle):
            strikes = plan(number)
            lab.journal.note("round", "shard", f"round {number} of {rounds}, {len(strikes)} strikes")
            await strike_all(lab, strikes, result)
            await look_at_everything(lab, result)
        result.rounds = number
        if result.findings:
            return


async def strike_all(lab: Lab, strikes: Iterable[Strike], result: Result) -> None:
    """Returns when all of them are healed."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for strike in strikes:
            group.create_task(_strike(lab, strike, began, result))


async def _strike(lab: Lab, strike: Strike, began: float, result: Result) -> None:
    await asyncio.sleep(max(0.0, began + strike.at - time.monotonic()))
    try:
        undo = await FAULTS[strike.fault].inject(lab, strike)
    except (Inapplicable, NetworkFailed, psutil.Error, psycopg.Error, OSError) as error:
        result.spared += 1
        lab.journal.note("spared", strike.fault, f"{strike.target}: {error}")
        return
    result.struck[strike.fault] += 1
    lab.journal.note("fault", strike.fault, undo.said, seconds=strike.seconds)
    try:
        await asyncio.sleep(strike.seconds)
    finally:
        await asyncio.shield(undo.heal())
    if strike.seconds:
        lab.journal.note("heal", strike.fault, f"healed: {undo.said}")


# --- Afterwards -----------------------------------------------------------------------------------------------------


async def look_at_everything(lab: Lab, result: Result) -> None:
    """Everything is healed: what must hold now, and what must have held all the time."""
    over = time.monotonic()
    if not await lab.ensemble.serves(within=ELECTION):
        lab.journal.note("trouble", "ZooKeeper", f"has no leader {ELECTION:.0f} s after healing")
    healed = time.monotonic()

    def found(promise: str, text: str, at: float | None = None) -> None:
        finding = Finding(promise, text, at)
        result.findings.append(finding)
        lab.journal.note("finding", "checker", str(finding))

    if lab.last_state is not None and lab.last_state.frozen:
        await operator.unfreeze(lab)
        healed = time.monotonic()
    if not await takes_writes(lab, healed + RECOVERY):
        found("the shard takes writes within 60 s of healing", await doing(lab))
    else:
        result.recoveries.append(time.monotonic() - healed)
        words = (
            f"{result.recoveries[-1]:.1f} s after ZooKeeper had a leader, {time.monotonic() - over:.1f} s after healing"
        )
        lab.journal.note("again", "shard", f"a write is acknowledged {words}")
    while not lab.idle:
        await asyncio.sleep(0.1)
    try:
        await settle(lab, result)
    except ShardFailed as error:
        found("no manual step", f"{error}; {await doing(lab)}")
    await lab.stop_clients()
    try:
        tables = await final_tables(lab)
    except (NoPrimary, TimeoutError, psycopg.Error, OSError) as error:
        found("the shard takes writes within 60 s of healing", f"no primary to read from: {error}")
        return
    result.operations = operations(lab.histories)
    result.stale = checker.stale_reads(result.operations, tables.lists)
    for finding in [
        *checker.check(result.operations, tables),
        *logs(lab),
        *needless(lab),
        *idle(lab, result.operations),
    ]:
        found(finding.promise, finding.text, finding.at)
    if not result.findings:
        for finding in await differences(lab, tables):
            found(finding.promise, finding.text)


async def takes_writes(lab: Lab, deadline: float) -> bool:
    """Whether a write of our own is acknowledged in time."""
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(NoPrimary, TimeoutError, psycopg.Error, OSError):
            connection = await connect_writable([Address(peer.ip) for peer in lab.peers], deadline=left)
            try:
                statement = "CREATE TABLE IF NOT EXISTS seat (at timestamptz DEFAULT now())"
                await within(connection, 5.0, connection.execute(statement))
                await within(connection, 5.0, connection.execute("INSERT INTO seat DEFAULT VALUES"))
                return True
            finally:
                await connection.close()
        await asyncio.sleep(0.1)
    return False


async def settle(lab: Lab, result: Result) -> None:
    """Until every peer is in the chain again; the operator rebuilds who has diverged. Raises ShardFailed."""
    times: Counter[int] = Counter()
    while True:
        waiting = asyncio.create_task(
            lab.wait_for(lambda seen: seen.complete(lab.members), timeout=SETTLE, what="a complete shard again")
        )
        looking = asyncio.create_task(diverged(lab))
        try:
            await asyncio.wait([waiting, looking], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
                return
        finally:
            waiting.cancel()
            looking.cancel()
            await asyncio.gather(waiting, looking, return_exceptions=True)
        for peer in looking.result():
            times[peer.number] += 1
            if times[peer.number] > REBUILDS:
                raise ShardFailed(f"{lab.node(peer)} was rebuilt {times[peer.number] - 1} times, and still is not back")
            lab.journal.note("operator", lab.node(peer), "has diverged, and is rebuilt")
            if await operator.rebuilt(lab, peer):
                result.rebuilt += 1


async def diverged(lab: Lab) -> list[LocalPeer]:
    """The peers that need a rebuild, as soon as there are any. Waits for ever."""
    while True:
        if found := [peer for peer in lab.peers if await needs_rebuild(peer)]:
            return found
        await asyncio.sleep(1.0)


async def needs_rebuild(peer: LocalPeer) -> bool:
    """Whether its sitter says that its data have diverged: then, and only then, a manual step is promised."""
    said = await operator.ask(peer, "/state") or {}
    return "have diverged" in str(said.get("reason")) and "rebuild" in str(said.get("waitingFor"))


async def doing(lab: Lab) -> str:
    """What each sitter says that it is doing, in one line."""
    words = []
    for peer in lab.peers:
        said = await operator.ask(peer, "/state") or {}
        words.append(f"{lab.node(peer)}: {said.get('reason', 'silent')} (waits for {said.get('waitingFor')})")
    return "; ".join([str(lab.last_state and lab.last_state.generation), *words])


async def final_tables(lab: Lab) -> Tables:
    """All rows, from the primary, after a write of the same connection has been confirmed by the sync."""
    connection = await connect_writable([Address(peer.ip) for peer in lab.peers], deadline=RECOVERY)
    try:
        await within(connection, 30.0, connection.execute("INSERT INTO seat DEFAULT VALUES"))
        return await _tables(connection)
    finally:
        await connection.close()


async def _tables(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> Tables:
    async def rows(statement: str) -> list[tuple[Any, ...]]:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall()

    async def all_of_them() -> Tables:
        inserted = frozenset(row[0] for row in await rows("SELECT value FROM inserts"))
        registers = {row[0]: (row[1], row[2]) for row in await rows("SELECT key, version, token FROM registers")}
        return Tables(inserted, registers, dict(await rows("SELECT key, items FROM lists")))

    return await within(connection, 60.0, all_of_them())


async def differences(lab: Lab, wanted: Tables) -> list[Finding]:
    """Whose tables are not the primary's, once they have replayed it all."""
    found = []
    for peer in lab.peers[: lab.members]:
        deadline = time.monotonic() + 30.0
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    host=peer.ip, user="postgres", dbname="postgres", autocommit=True, connect_timeout=5
                ) as connection:
                    same = await _tables(connection) == wanted
            except psycopg.Error as error:
                same, why = False, str(error).splitlines()[0]
            else:
                why = "its tables differ from the primary's"
            if same or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        if not same:
            found.append(Finding("all peers hold the same", f"{lab.node(peer)}: {why}"))
    return found


def logs(lab: Lab) -> list[Finding]:
    """Tracebacks in any daemon's log, and clients that did not last."""
    found = [
        Finding("logs are free of tracebacks", f"{daemon} of {lab.node(peer)}: {text}")
        for peer in lab.peers
        for daemon in DAEMONS
        if (text := traceback_in(peer.log(daemon))) is not None
    ]
    troubles = [event for event in lab.journal.events if event.kind == "trouble"]
    return found + [Finding("the test itself works", f"{event.subject}: {event.text}") for event in troubles]


def idle(lab: Lab, done: Sequence[Operation]) -> list[Finding]:
    """Kinds of operations of which none was acknowledged since the clients were started: nothing is known of those."""
    worked = {each.kind for each in done if each.acknowledged and each.began > lab.clients_since}
    return [Finding("the test itself works", f"no {kind} was acknowledged") for kind in KINDS if kind not in worked]


def needless(lab: Lab) -> list[Finding]:
    """Peers that live and are taken for dead again and again."""
    again = flapping(lab.journal.events, len(lab.peers))
    return [Finding("a peer that lives is not evicted again and again", each.subject, each.at) for each in again]


def traceback_in(path: Path) -> str | None:
    """The last lines of the first traceback in a log."""
    if not path.exists():
        return None
    lines = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines):
        if "Traceback (most recent call last)" in line:
            rest = lines[number + 1 : number + 60]
            last = next((place for place, each in enumerate(rest) if not each.startswith((" ", "\t"))), len(rest) - 1)
            return " | ".join(each.strip()[:300] for each in rest[max(0, last - 2) : last + 1])
    return None


def summary(result: Result) -> str:
    """One line for people."""
    acknowledged = sum(each.acknowledged for each in result.operations)
    worst = max(result.recoveries, default=0.0)
    return (
        f"{result.rounds} rounds, {sum(result.struck.values())} faults of {len(result.struck)} kinds"
        f" ({result.spared} found nothing to strike), {len(result.operations)} operations, {acknowledged} acknowledged;"
        f" writes again at most {worst:.1f} s after healing; {result.rebuilt} diverged peers rebuilt;"
        f" {result.stale.old} stale reads and {result.stale.unconfirmed} of what was never confirmed"
    )
