"""Broken cores and broken drivers: each must be found out by the model, else the model or a rule is worth nothing.

A mutant of the core is a replacement in the text of one of its files; if the text has changed, the mutant says so
rather than silently testing the healthy core. A mutant of the driver is a name in `world.broken`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sitter.decide import decide
from sitter.view import Decision, View
from tests.model import world
from tests.model.world import World, running

CORE = ("sitter.proof", "sitter.shard", "sitter.decide")


@dataclass(frozen=True)
class Mutant:
    """A rule left out."""

    name: str
    old: str = ""
    new: str = ""
    """In the core's text; without them it is the driver that is broken."""
    beginning: Callable[[], World] | None = None
    """The world in which the rule matters; None: it is for the scenarios to find."""


@contextmanager
def installed(mutant: Mutant) -> Iterator[None]:
    """The worlds are driven by this mutant."""
    if mutant.old:
        world.use(mutated(mutant.old, mutant.new))
    else:
        world.broken.add(mutant.name)
        world.use(decide)
    try:
        yield
    finally:
        world.broken.discard(mutant.name)
        world.use(decide)


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


def _three(**trouble: int) -> Callable[[], World]:
    return _shard(3, **trouble)


def _shard(count: int, **trouble: int) -> Callable[[], World]:
    budget = {"commit": 1, "trouble": sum(trouble.values()), **trouble}
    budget = {name.replace("_", "-"): many for name, many in budget.items()}
    return lambda: running(count, **budget)


MUTANTS = [
    # Seals
    Mutant(
        "no seal at takeover",
        "shard.view, shard.state, shard.view.database.sealed\n",
        "shard.view, shard.state, shard.view.database.sealed\n"
        "    sealed = view.database.end if sealed is None and not shard.i_am_primary else sealed\n",
        _three(expire=1),
    ),
    Mutant(
        "no seal at replacement",
        "shard.view, shard.state, shard.view.database.sealed\n",
        "shard.view, shard.state, shard.view.database.sealed\n"
        "    sealed = view.database.end if sealed is None and shard.i_am_primary else sealed\n",
        _three(expire=1),
    ),
    Mutant("sealed at the momentary replay position", beginning=_three(expire=1)),
    Mutant("the receiver outlives the seal", beginning=_three(expire=1)),
    Mutant("the old sync still confirms to a sealed primary", beginning=_three(expire=1)),
    Mutant(
        "a seal undone while a write is open",
        "replace(running, sealed=view.memory.seal is not None)",
        "running",
        _three(expire=1, lost=1),
    ),
    Mutant(
        "a seal undone while a write is open and the primary has come back",
        "seal_stays = view.write_open and view.memory.seal is not None",
        "seal_stays = False",
        _three(expire=1, lost=1),
    ),
    Mutant(
        "a seal that is not remembered",
        "memory = replace(memory, seal=seal)",
        "memory = replace(memory, seal=None)",
        None,
    ),
    Mutant(
        "a generation that begins where the WAL ends, not where it is sealed",
        "init_wal=sealed,",
        "init_wal=shard.view.database.end or sealed,",
        None,
    ),
    Mutant("a restart forgets the open write", beginning=_three(expire=1, lost=1, crash=1)),
    Mutant("an open write is settled by reading", beginning=_three(expire=1, lost=1)),
    # Guards of a declaration
    Mutant("takeover below the generation's beginning", "if database.sealed < state.init_wal:", "if False:", None),
    Mutant("takeover without proof", "if view.memory.proof < needed:", "if False:", None),
    Mutant(
        "in generation 1 no proof is needed",
        "return max(1, self.state.generation - 1)",
        "return self.state.generation - 1",
    ),
    Mutant(
        "freeze ignored",
        "    if state.frozen:\n        return because(",
        "    if False:\n        return because(",
        _three(expire=1, operator=1),
    ),
    Mutant(
        "generation not raised", "generation=state.generation + 1,", "generation=state.generation,", _three(expire=1)
    ),
    Mutant("the old primary is not deposed", "else (*state.deposed, old)", "else state.deposed", _three(expire=1)),
    Mutant(
        "a new sync that has not flushed the seal",
        "return flushed is not None and (sealed is None or flushed >= sealed)",
        "return flushed is not None",
        None,
    ),
    Mutant("an absent async becomes the sync", "if shard.attached(peer, sealed)), None)", "), None)", None),
    Mutant(
        "an async that does not serve becomes the sync",
        "        if not self.serving(peer):\n            return False\n",
        "        if not self.present(peer):\n            return False\n",
        None,
    ),
    Mutant(
        "a second write while one is open",
        "    if view.write_open:\n        reason =",
        "    if False:\n        reason =",
        None,
    ),
    Mutant("a sync that contradicts its primary is replaced", "    if contradicts:\n", "    if False:\n", None),
    # Proof and comparison
    Mutant(
        "a primary opens without proof",
        "if shard.view.memory.proof < shard.state.generation:",
        "if False:",
        None,
    ),
    Mutant(
        "proof before the mark is flushed",
        "return link.proof if end is not None and end >= link.mark else 0",
        "return link.proof",
        None,
    ),
    Mutant(
        "proof by an old comparison",
        "or link.answer is not Comparison.PREFIX or link.generation != state.generation:",
        "or link.answer is not Comparison.PREFIX:",
        None,
    ),
    Mutant(
        "followed without a comparison",
        "    if link or database.upstream == upstream.id:\n",
        "    if True:\n",
        None,
    ),
    Mutant(
        "deposed no longer, without a comparison",
        "if link and link.answer is Comparison.PREFIX and shard.i_am_present",
        "if shard.i_am_present",
        _three(expire=1, crash=1),
    ),
    Mutant("compared while writing", beginning=_three(expire=1)),
    Mutant("the memory outlives the data", beginning=None),
    Mutant("the memory travels with a snapshot", beginning=None),
    Mutant("promoted before the names are set", beginning=_three(expire=1)),
    # Set up and an old ZooKeeper
    Mutant("set up beside a silent peer", "            if one.status is None:\n", "            if False:\n", None),
    Mutant(
        "set up over one's own data",
        '    if view.database.initialized:\n        return "this peer has a database, so',
        '    if False:\n        return "this peer has a database, so',
        None,
    ),
    Mutant("an older ZooKeeper believed: own memory", "    if view.memory.generation > here:", "    if False:", None),
    Mutant(
        "an older ZooKeeper believed: the others",
        "        if one.status and one.status.generation > here:",
        "        if False:",
        None,
    ),
    # The list
    Mutant(
        "a field forgotten",
        "replace(shard, state=state.replace(asyncs=asyncs))",
        "replace(shard, state=state.replace(asyncs=asyncs, without=('freeze',)))",
        None,
    ),
    Mutant(
        "the deposed join as strangers",
        "named = {peer.id for peer in (*state.assigned, *state.deposed)}",
        "named = {peer.id for peer in state.assigned}",
        None,
    ),
    Mutant(
        "stale promote obeyed",
        "        same = type(asked.generation) is int and asked.generation == self.state.generation\n",
        "        same = True\n",
        None,
    ),
]
