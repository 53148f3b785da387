"""Broken cores and broken drivers: each must be found out by the model, else the model or a rule is worth nothing.

A mutant of the core is a replacement in the text of one of its files; if the text has changed, the mutant says so
rather than silently testing the healthy core. A mutant of the driver is a name in `parts.broken`.
"""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sitter.decide import decide
from sitter.view import Decision, View
from tests.model import parts, wishes
from tests.model.calm import Restless
from tests.model.explore import explore
from tests.model.parts import Lag, One, Violation, World, with_peer
from tests.model.sitter import settle
from tests.model.world import empty, running, steps
from tests.scenarios import script
from tests.scenarios.replay import differences

CORE = tuple(f"sitter.{name}" for name in ("proof", "shard", "eviction", "follow", "forced", "setup", "decide"))


@dataclass(frozen=True)
class Mutant:
    """A rule left out."""

    name: str
    old: str = ""
    new: str = ""
    """In the core's text; without them it is the driver that is broken."""
    beginning: Callable[[], World] | None = None
    """A world from which the model finds out; None: it is for the scenarios."""


@contextmanager
def installed(mutant: Mutant) -> Iterator[Callable[[View], Decision]]:
    """The worlds are driven by this mutant, which is given."""
    core = mutated(mutant.old, mutant.new) if mutant.old else decide
    if not mutant.old:
        parts.broken.add(mutant.name)
    wishes.use(core)
    try:
        yield core
    finally:
        parts.broken.discard(mutant.name)
        wishes.use(decide)


def mutated(old: str, new: str) -> Callable[[View], Decision]:
    """The core with one text replaced, wherever in its files that stands, exactly once."""
    sources = {name: _source(name) for name in CORE}
    places = [name for name, text in sources.items() for _ in range(text.count(old))]
    if len(places) != 1:
        raise LookupError(f"the core has changed: this stands in it {len(places)} times, not once:\n{old}")
    sources[places[0]] = sources[places[0]].replace(old, new)
    healthy = {name: sys.modules[name] for name in CORE}
    try:
        for name, text in sources.items():
            module = types.ModuleType(name)
            sys.modules[name] = module
            exec(compile(text, f"<mutant of {name}>", "exec"), module.__dict__)
        core: Callable[[View], Decision] = sys.modules["sitter.decide"].decide
        return core
    finally:
        sys.modules.update(healthy)


def _source(name: str) -> str:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text()


def shard(count: int, *before: str, rejoin: str = "safe", **trouble: int) -> Callable[[], World]:
    """A running shard, after these steps, with this much trouble ahead."""
    budget = {"trouble": sum(many for what, many in trouble.items() if what != "commit"), **trouble}

    def begin() -> World:
        now = running(count, rejoin, **dict.fromkeys(("commit", "trouble", *TROUBLES), 100))
        for what in before:
            now = next(after for said, after in steps(now) if said == what)
        return now._replace(budget=tuple(sorted((name.replace("_", "-"), many) for name, many in budget.items())))

    return begin


TROUBLES = (
    *("crash", "expire", "wipe", "lose-data", "operator", "lost", "slow", "mute", "old-snapshot", "forget", "force"),
    *("rewind-cut", "rewind-in-vain", "cut", "cut-off", "evict"),
)


def beside_silence() -> World:
    """ZooKeeper was wiped and the zone of the first peer came back empty; the others have data, and are not heard."""
    world = running(3, trouble=0)
    others = [one._replace(lag=Lag(False, None, None, ()), heard=False) for one in world.peers[1:]]
    nobody = tuple((me, None) for me in range(3))
    return settle(world._replace(peers=(One(), *others), state=None, cluster=None, begins=(), active=nobody))


def data_without_memory() -> World:
    """Peers that have just joined; the first has a database, of which ZooKeeper and its memory know nothing."""
    world = empty(3, trouble=0)
    return settle(with_peer(world, 0, wal=(100,), was_primary=True))


RESTORED_BEHIND_A_LAGGARD = (
    *("commit A", "flow B", "acknowledge A", "flow C", "expire A", "seal B", "write B", "pg-promote B"),
    *("compare C", "flow C", "slow D", "wipe C", "start C", "join C", "restore-from-D C"),
)
"""D goes by an old reading in which C has proof, but C has lost its data and has what D has: less than it proves."""

LATE_TAKEOVER = (
    *("expire A", "seal B", "lose-write B", "catch-up A", "join A", "mute A", "compare C late", "follow C late"),
    *("land-late B",),
)
"""A declaration lands when its new sync has begun to follow the old primary in the declarer's stead."""

DIVERGED = ("commit A", "expire A", "seal B", "write B", "pg-promote B", "catch-up A", "stop A", "join A", "compare A")
"""The old primary has a commit that nobody else has, and knows it."""

REBUILT = ("commit A", "flow B", "acknowledge A", "wipe B", "start B", "join B", "restore-from-C B")
"""The sync has lost an acknowledged commit, and lives on the data of an async that never had it."""

MUTANTS = [
    # Seals
    Mutant(
        "no seal at takeover",
        "shard.view, shard.state, shard.view.database.sealed\n",
        "shard.view, shard.state, shard.view.database.sealed\n"
        "    sealed = view.database.end if sealed is None and not shard.i_am_primary else sealed\n",
        shard(3, commit=1, expire=1),
    ),
    Mutant(
        "no seal at replacement",
        "shard.view, shard.state, shard.view.database.sealed\n",
        "shard.view, shard.state, shard.view.database.sealed\n"
        "    sealed = view.database.end if sealed is None and shard.i_am_primary else sealed\n",
        shard(3, commit=1, expire=1),
    ),
    Mutant("sealed at the momentary replay position", beginning=shard(3, commit=1, expire=1)),
    Mutant("sealed at the received position", beginning=shard(3, commit=1, expire=1)),
    Mutant("the receiver outlives the seal", beginning=shard(3, commit=1, expire=1)),
    Mutant("the old sync still confirms to a sealed primary", beginning=shard(3, commit=1, expire=1)),
    Mutant(
        "a seal undone while a write is open",
        "replace(running, sealed=view.memory.seal is not None)",
        "running",
        shard(3, "expire A", "seal B", commit=1, lost=1),
    ),
    Mutant(
        "a seal undone while a write is open and the primary has come back",
        "seal_stays = view.write_open and view.memory.seal is not None",
        "seal_stays = False",
        shard(3, "expire A", "seal B", commit=1, lost=1),
    ),
    Mutant(
        "a seal that is not remembered",
        "memory = replace(memory, seal=seal)",
        "memory = replace(memory, seal=None)",
        shard(3, "expire A", "seal B", commit=1, lost=1),
    ),
    Mutant(
        "a beginning where the WAL ends, not where it is sealed",
        "init_wal=sealed,",
        "init_wal=shard.view.database.end or sealed,",
    ),
    Mutant(
        "a restart forgets the open write",
        beginning=shard(
            3, "expire A", "seal B", "lose-write B", "crash B", "start B", "catch-up A", "join A", commit=1
        ),
    ),
    Mutant("an open write is settled by reading", beginning=shard(3, "expire A", "seal B", commit=1, lost=1)),
    Mutant(
        "a second write while one is open",
        "    if view.write_open:\n        reason =",
        "    if False:\n        reason =",
        shard(3, "expire A", "seal B", commit=1, lost=1),
    ),
    # Guards of a declaration
    Mutant("takeover below the generation's beginning", "if database.sealed < state.init_wal:", "if False:"),
    Mutant(
        "takeover without proof",
        "if view.memory.proof < needed:",
        "if False:",
        shard(3, *REBUILT, "compare B", "start B", expire=1),
    ),
    Mutant(
        "no proof is needed in generation 1",
        "return max(1, self.state.generation - 1)",
        "return self.state.generation - 1",
        shard(3, *REBUILT, expire=1),
    ),
    Mutant(
        "freeze ignored",
        "    if state.frozen:\n        return because(",
        "    if False:\n        return because(",
        shard(3, expire=1, operator=1),
    ),
    Mutant(
        "generation not raised", "generation=state.generation + 1,", "generation=state.generation,", shard(3, expire=1)
    ),
    Mutant("the old primary is not deposed", "else (*state.deposed, old)", "else state.deposed", shard(3, expire=1)),
    Mutant(
        "a new sync that has not flushed the seal",
        "return flushed is not None and (sealed is None or flushed >= sealed)",
        "return flushed is not None",
        shard(3, "commit A", "flow B", expire=1),
    ),
    Mutant(
        "an absent async becomes the sync",
        "if shard.attached(peer, sealed)), None)",
        "), None)",
        shard(4, "commit A", "flow B", expire=2),
    ),
    Mutant(
        "an async that does not serve becomes the sync",
        "        if not self.serving(peer):\n            return False\n",
        "        if not self.present(peer):\n            return False\n",
    ),
    Mutant("a sync that contradicts its primary is replaced", "    if contradicts:\n", "    if False:\n"),
    Mutant(
        "a sync that has what its primary lost is believed",
        "return Comparison.AHEAD if sync.id in self.view.database.ahead else None",
        "return None",
    ),
    Mutant("an async that has what its primary lost becomes the sync", "None if peer.id in database.ahead else ", ""),
    # Proof and comparison
    Mutant(
        "a primary opens without proof",
        "if shard.view.memory.proof < shard.state.generation:",
        "if False:",
        shard(3, wipe=1),
    ),
    Mutant(
        "proof before the mark is flushed",
        "return link.proof if end is not None and end >= link.mark else 0",
        "return link.proof",
        shard(3, commit=1, expire=1),
    ),
    Mutant(
        "proof survives the data",
        "    if not database.initialized:\n        return Memory(generation=generation)\n"
        "    if memory.identifier not in (None, database.identifier):\n        memory = Memory()\n",
        "    pass\n",
        shard(3, *(step.replace("wipe", "lose-data") for step in REBUILT), expire=1),
    ),
    Mutant("the memory travels with a snapshot", beginning=shard(3, *REBUILT[:-1], expire=1)),
    Mutant(
        "followed without a comparison",
        "    if link or (proven and database.upstream == upstream.id) or shard.vouched_for(upstream):\n",
        "    if True:\n",
    ),
    Mutant(
        "compared while WAL still comes from elsewhere",
        "None if shard.strays else _comparison(shard, upstream)",
        "_comparison(shard, upstream)",
        shard(3, *LATE_TAKEOVER, commit=1),
    ),
    Mutant("data without proof run uncompared", "proven = view.memory.proof >= shard.needed_proof", "proven = True"),
    Mutant(
        "deposed no longer, without a comparison",
        "if link and link.answer is Comparison.PREFIX and shard.i_am_present",
        "if shard.i_am_present",
        shard(3, "expire A", "seal B", "write B", commit=1),
    ),
    Mutant("compared while writing", beginning=shard(3, "expire A", "seal B", "write B", commit=1)),
    Mutant(
        "a comparison is worth what the upstream said before",
        beginning=shard(4, *RESTORED_BEHIND_A_LAGGARD),
    ),
    Mutant("promoted before the names are set", beginning=shard(3, commit=1, expire=1)),
    # Rewinding, and an operator's word
    Mutant("a torn database bears no mark", beginning=shard(3, *DIVERGED, rejoin="rewind", rewind_cut=1)),
    Mutant(
        "what a rewind left half done is taken for data",
        "    if not database.initialized or not database.torn:\n",
        "    if True:\n",
        shard(3, *DIVERGED, rejoin="rewind", rewind_cut=1),
    ),
    Mutant(
        "proof survives a rewind",
        "        memory = replace(memory, proof=0)\n",
        "        pass\n",
        shard(3, *DIVERGED, rejoin="rewind", rewind_cut=1),
    ),
    Mutant(
        "a rewind that came to nothing is tried again",
        "if rejoin.rewinds and unrewindable is None:",
        "if rejoin.rewinds:",
        shard(3, *DIVERGED, rejoin="rewind", rewind_in_vain=1),
    ),
    Mutant(
        "an operator's word is acted on before it is taken",
        "    if shard.state.override_due:\n        return take_word(shard)\n",
        "",
        shard(3, commit=1, force=1, slow=1),
    ),
    Mutant(
        "an operator's word is taken beside who still runs",
        "    busy = _still_busy(shard)\n",
        "    busy = None\n",
        shard(3, "commit A", "slow A", "slow B", commit=1, force=1),
    ),
    Mutant(
        "an operator's word is taken although who was there has gone",
        '        if not shard.present(peer):\n            return f"{peer.label} has gone since',
        '        if False:\n            return f"{peer.label} has gone since',
        shard(3, commit=1, force=1, expire=2),
    ),
    Mutant(
        "an operator's word is taken while PostgreSQL still runs here",
        "    if view.database.running:\n",
        "    if False:\n",
        shard(3, force=1),
    ),
    Mutant("a primary that nobody reaches stays", "if possible and shard.out_of_reach:", "if False:"),
    # Evicting
    Mutant(
        "evicted by anybody",
        "    if state.sync is None or me not in (state.primary.id, state.sync.id):\n",
        "    if state.sync is None:\n",
        shard(4, evict=1),
    ),
    Mutant(
        "evicted although replication goes on",
        "if one.peer.id in view.database.connected or ",
        "if ",
        shard(3, evict=1),
    ),
    Mutant(
        "evicted in a frozen shard",
        "if not view.evict_dead or state.frozen or view.write_open",
        "if not view.evict_dead or view.write_open",
        shard(3, cut=1, evict=1, operator=1),
    ),
    Mutant(
        "evicted again and again",
        "one.evicted_for < view.limits.retry_pause",
        "False",
        shard(3, cut=1, evict=2),
    ),
    Mutant("evicted by its id", beginning=shard(3, crash=1, evict=1, slow=1)),
    # Set up and an old ZooKeeper
    Mutant(
        "set up beside a silent peer", "            if one.status is None:\n", "            if False:\n", beside_silence
    ),
    Mutant(
        "set up over one's own data",
        '    if view.database.initialized:\n        return "this peer has a database, so',
        '    if False:\n        return "this peer has a database, so',
        data_without_memory,
    ),
    Mutant(
        "an older ZooKeeper believed: one's own memory",
        "    if view.memory.generation > here:",
        "    if False:",
        shard(3, "expire A", "seal B", "write B", "crash C", "expire C", "crash B", "expire B", forget=1),
    ),
    Mutant(
        "an older ZooKeeper believed: what the others say",
        "        if one.status and one.status.generation > here:",
        "        if False:",
        shard(3, "expire A", "seal B", "write B", forget=1),
    ),
    # The list
    Mutant(
        "a field forgotten",
        "asyncs=asyncs, without=gone)",
        "asyncs=asyncs, without=(*gone, 'freeze'))",
        shard(3, "freeze", expire=1),
    ),
    Mutant(
        "the deposed join as strangers",
        "named = {peer.id for peer in (*state.assigned, *state.deposed)}",
        "named = {peer.id for peer in state.assigned}",
        shard(3, commit=1, expire=1),
    ),
    Mutant(
        "a stale promote obeyed",
        "        same = type(asked.generation) is int and asked.generation == self.state.generation\n",
        "        same = True\n",
    ),
]


@dataclass(frozen=True)
class Verdict:
    """What found a mutant out; `by` is None if nothing did."""

    mutant: Mutant
    by: str | None
    seconds: float


def judge(mutant: Mutant, *, states: int = 20_000) -> Verdict:
    """The model first, where the mutant says in which world; else the scenarios and the recordings."""
    started = time.monotonic()
    with installed(mutant) as core:
        by = _by_model(mutant, states) if mutant.beginning else _by_scenarios(core)
    return Verdict(mutant, by, time.monotonic() - started)


def _by_model(mutant: Mutant, states: int) -> str | None:
    assert mutant.beginning is not None
    try:
        found = explore(mutant.beginning(), depth=30, states=states)
    except Violation as violation:
        return f"model, before it begins: {violation}"
    if found.violation is None:
        return None
    return f"model, {found.states} states: {', '.join(found.trace)}: {found.violation}"


def _by_scenarios(core: Callable[[View], Decision]) -> str | None:
    here = Path(script.__file__).parent
    for path in sorted(here.glob("*.txt")):
        written = path.read_text()
        try:
            if script.run(written) != written:
                return f"scenario {path.name}"
        except (Violation, Restless, script.ScriptError) as error:
            return f"scenario {path.name}: {str(error)[:100]}"
    for path in sorted((here / "recorded").glob("*.json")):
        found = differences(path, core)
        if found:
            return f"recording {path.name}, step {found[0].step}"
    return None
