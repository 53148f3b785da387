"""The promises, read off the history: pure functions from operations and final tables to findings.

No search is needed. Every write transaction says what it found, and every value is written once, so the order of writes
is there to be read; it only has to be one order, agree with real time, and end in what the tables hold. (The idea of
Elle's recoverable, traceable histories: Kingsbury and Alvaro, 2020.) All of it is linear in the number of operations.

- *Inserts*: acknowledged rows are there; rows that are there were sent, and not refused.
- *Registers*: a transaction that found version n wrote version n + 1, so the order of versions is the order of the
  register's history. A write is *certain* if it was acknowledged, or if what it wrote was found by one that is certain
  or stands there in the end. One certain writer per version; each found the token that its predecessor wrote; nobody
  began after somebody of a later version had ended. That is linearizability for a register of which every operation is
  a read-modify-write.
- *Lists*: what an acknowledged append found must be a beginning of the final list, and end with its own element; the
  order of elements must agree with real time.
- *One writer*: a *reign* is a server and a timeline. Of two reigns, the one with the lower timeline is the older;
  nothing may be acknowledged by it that was sent after the other had acknowledged something. Two servers never
  acknowledge on the same timeline.
- *Stale reads*: reads that lack what was acknowledged before they began are counted, not forbidden: a fenced or deposed
  primary may answer them. So are reads of elements that are in no final list.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from tests.chaos.history import Operation

LOST = "no acknowledged write is lost"
INVENTED = "no write is invented"
REGISTERS = "registers are linearizable"
LISTS = "lists are linearizable"
ONE_WRITER = "at most one peer acknowledges writes"
PROMISES = frozenset({LOST, INVENTED, REGISTERS, LISTS, ONE_WRITER})
"""What is found here: a single time, on any machine, is one too many."""

SHOWN = 5
"""How many examples a finding gives."""


@dataclass(frozen=True)
class Finding:
    """A broken promise."""

    promise: str
    text: str
    at: float | None = None
    """When, if that can be said."""

    def __str__(self) -> str:
        return f"{self.promise}: {self.text}"


@dataclass(frozen=True)
class Tables:
    """What the primary holds in the end."""

    inserts: frozenset[int]
    registers: Mapping[int, tuple[int, int]]
    """Version and token by key."""
    lists: Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Stale:
    """Reads that a client of the primary alone would not have seen."""

    old: int = 0
    unconfirmed: int = 0
    """Of elements that nobody has in the end."""
    by_peer: Mapping[str, int] = field(default_factory=dict)


def check(operations: Sequence[Operation], tables: Tables) -> list[Finding]:
    """Everything that is wrong; empty if nothing is."""
    return [
        *inserts(operations, tables.inserts),
        *registers(operations, tables.registers),
        *lists(operations, tables.lists),
        *one_writer(operations),
    ]


# --- Inserts --------------------------------------------------------------------------------------------------------


def inserts(operations: Iterable[Operation], there: frozenset[int]) -> Iterator[Finding]:
    sent = {operation.value: operation for operation in operations if operation.kind == "insert"}
    lost = [each for value, each in sent.items() if each.acknowledged and value not in there]
    if lost:
        lost.sort(key=lambda each: each.ended)
        yield Finding(LOST, f"{len(lost)} rows: {_some(lost)}", lost[0].ended)
    refused = [each for value, each in sent.items() if each.outcome == "no" and value in there]
    if refused:
        yield Finding(INVENTED, f"{len(refused)} rows that were refused are there: {_some(refused)}")
    unknown = sorted(there - sent.keys())
    if unknown:
        yield Finding(INVENTED, f"{len(unknown)} rows that nobody sent: {unknown[:SHOWN]}")


# --- Registers ------------------------------------------------------------------------------------------------------


def registers(operations: Iterable[Operation], final: Mapping[int, tuple[int, int]]) -> Iterator[Finding]:
    by_key: defaultdict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == "register" and operation.outcome != "no" and operation.seen:
            by_key[operation.key].append(operation)
    for key, writes in by_key.items():
        yield from _register(key, writes, final.get(key, (0, 0)))


def _register(key: int, writes: Sequence[Operation], final: tuple[int, int]) -> Iterator[Finding]:
    certain, unexplained = _certain(writes, final)
    writers: defaultdict[int, list[Operation]] = defaultdict(list)
    for write in certain:
        writers[write.seen[0] + 1].append(write)
    for version, claims in writers.items():
        if len(claims) > 1:
            text = f"register {key}: version {version} was written twice: {_some(claims)}"
            yield Finding(REGISTERS, text, claims[0].ended)
    for version, token, finder in unexplained:
        by = _some([finder]) if finder else "in the end"
        text = f"register {key}: version {version} held {token}, which nobody wrote as that: {by}"
        yield Finding(REGISTERS, text, finder.ended if finder else None)
    for write in certain:
        before, token = write.seen
        other = next((each for each in writers[before] if each.value != token), None)
        if other is not None:
            text = f"register {key}: {_some([write])} found {token} in version {before}, but {_some([other])} wrote it"
            yield Finding(REGISTERS, text, write.ended)
    acknowledged = sorted((write for write in writes if write.acknowledged), key=lambda write: write.seen[0])
    yield from _real_time(f"register {key}", REGISTERS, acknowledged)
    last = acknowledged[-1] if acknowledged else None
    if last and (final[0] <= last.seen[0] or (final[0] == last.seen[0] + 1 and final[1] != last.value)):
        text = f"register {key} ends as version {final[0]} with {final[1]}, but {_some([last])} was acknowledged after"
        yield Finding(LOST, text, last.ended)


def _certain(
    writes: Sequence[Operation], final: tuple[int, int]
) -> tuple[list[Operation], list[tuple[int, int, Operation | None]]]:
    """The writes that have certainly happened; and versions with tokens that were found, by whom or in the end, without
    anybody who wrote them.
    """
    by_version: defaultdict[int, list[Operation]] = defaultdict(list)
    for write in writes:
        by_version[write.seen[0] + 1].append(write)
    found: defaultdict[int, dict[int, Operation | None]] = defaultdict(dict)
    found[final[0]][final[1]] = None
    certain, unexplained = list[Operation](), list[tuple[int, int, Operation | None]]()
    for version in range(max([final[0], *by_version]), 0, -1):
        here = [write for write in by_version[version] if write.acknowledged or write.value in found[version]]
        certain += here
        known = {write.value for write in here}
        unexplained += [(version, token, by) for token, by in found[version].items() if token not in known]
        for write in here:
            found[version - 1].setdefault(write.seen[1], write)
    return certain, unexplained


# --- Lists ----------------------------------------------------------------------------------------------------------


def lists(operations: Iterable[Operation], final: Mapping[int, Sequence[int]]) -> Iterator[Finding]:
    by_key: defaultdict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == "append":
            by_key[operation.key].append(operation)
    for key, appends in by_key.items():
        yield from _list(key, appends, final.get(key, ()))
    for key in final.keys() - by_key.keys():
        yield Finding(INVENTED, f"list {key}, which nobody appended to")


def _list(key: int, appends: Sequence[Operation], final: Sequence[int]) -> Iterator[Finding]:
    place = {value: number for number, value in enumerate(final)}
    acknowledged = [each for each in appends if each.acknowledged]
    lost = [each for each in acknowledged if each.value not in place]
    if lost:
        yield Finding(LOST, f"list {key}: {len(lost)} elements: {_some(lost)}", lost[0].ended)
    if len(place) != len(final):
        yield Finding(INVENTED, f"list {key} holds an element twice")
    if invented := place.keys() - {each.value for each in appends if each.outcome != "no"}:
        yield Finding(INVENTED, f"list {key}: {sorted(invented)[:SHOWN]}")
    for each in acknowledged:
        if each.value in place and list(each.seen) != list(final[: place[each.value] + 1]):
            text = f"list {key}: what {_some([each])} found is not how the list begins"
            yield Finding(LISTS, text, each.ended)
            break
    kept = sorted((each for each in acknowledged if each.value in place), key=lambda each: place[each.value])
    yield from _real_time(f"list {key}", LISTS, kept)


def _real_time(what: str, promise: str, ordered: Sequence[Operation]) -> Iterator[Finding]:
    """Nobody may stand before one who had ended before he began."""
    latest: Operation | None = None
    for operation in ordered:
        if latest is not None and operation.ended < latest.began:
            yield Finding(promise, f"{what}: {_some([latest])} comes before {_some([operation])}", operation.ended)
            return
        if latest is None or operation.began > latest.began:
            latest = operation


# --- One writer -----------------------------------------------------------------------------------------------------


@dataclass
class _Reign:
    peer: str
    timeline: int
    first: Operation
    """Of all it acknowledged, what ended first."""
    last: Operation
    """What was sent last."""


def one_writer(operations: Iterable[Operation]) -> Iterator[Finding]:
    reigns = reigns_of(operations)
    for number, older in enumerate(reigns):
        for younger in reigns[number + 1 :]:
            if older.timeline == younger.timeline:
                text = f"{older.peer} and {younger.peer} both did on timeline {older.timeline}"
                yield Finding(ONE_WRITER, text, younger.first.ended)
            elif (older.last.sent or 0.0) > younger.first.ended:
                text = (
                    f"{older.peer} (timeline {older.timeline}) acknowledged {_some([older.last])} after {younger.peer}"
                    f" (timeline {younger.timeline}) had acknowledged {_some([younger.first])}"
                )
                yield Finding(ONE_WRITER, text, older.last.ended)


def reigns_of(operations: Iterable[Operation]) -> list[_Reign]:
    """Who acknowledged, in the order of their timelines."""
    found: dict[tuple[str, int], _Reign] = {}
    for operation in operations:
        if not operation.acknowledged or operation.peer is None or operation.timeline is None:
            continue
        reign = found.setdefault(
            (operation.peer, operation.timeline),
            _Reign(operation.peer, operation.timeline, operation, operation),
        )
        if operation.ended < reign.first.ended:
            reign.first = operation
        if (operation.sent or 0.0) > (reign.last.sent or 0.0):
            reign.last = operation
    return sorted(found.values(), key=lambda reign: (reign.timeline, reign.first.ended))


# --- What is counted ------------------------------------------------------------------------------------------------


def stale_reads(operations: Sequence[Operation], final: Mapping[int, Sequence[int]]) -> Stale:
    places = {key: {value: number for number, value in enumerate(items)} for key, items in final.items()}
    appends: defaultdict[int, list[Operation]] = defaultdict(list)
    for each in sorted(operations, key=lambda each: each.ended):
        if each.kind == "append" and each.acknowledged:
            appends[each.key].append(each)
    ends = {key: [each.ended for each in done] for key, done in appends.items()}
    # How long a list must be, at least, after so many of its appends.
    lengths = {
        key: list(accumulate((places.get(key, {}).get(each.value, -1) + 1 for each in done), max))
        for key, done in appends.items()
    }
    old = unconfirmed = 0
    by_peer: defaultdict[str, int] = defaultdict(int)
    for read in (each for each in operations if each.kind == "read" and each.acknowledged):
        known = places.get(read.key, {})
        before = bisect_left(ends.get(read.key, []), read.began)
        lacks = before > 0 and lengths[read.key][before - 1] > sum(value in known for value in read.seen)
        strange = any(value not in known for value in read.seen)
        old, unconfirmed = old + lacks, unconfirmed + strange
        if lacks or strange:
            by_peer[read.peer or "?"] += 1
    return Stale(old, unconfirmed, dict(by_peer))


@dataclass(frozen=True)
class Outage:
    """A time in which nothing was acknowledged to anybody."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def outages(
    operations: Iterable[Operation], *, longer_than: float = 0.25, pauses: Iterable[float] = ()
) -> list[Outage]:
    """Times without acknowledgement, but for those in which nobody asked: a pause is a moment of such a time."""
    ended = sorted(each.ended for each in operations if each.acknowledged and each.kind != "read")
    known = sorted(pauses)
    return [
        Outage(before, after)
        for before, after in pairwise(ended)
        if after - before > longer_than and bisect_left(known, before) == bisect_left(known, after)
    ]


def _some(operations: Sequence[Operation]) -> str:
    shown = [
        f"{each.kind} {each.value} of {each.client} (by {each.peer}, timeline {each.timeline},"
        f" sent {each.sent or 0:.3f}, ended {each.ended:.3f})"
        for each in operations[:SHOWN]
    ]
    return "; ".join(shown)
