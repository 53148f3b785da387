"""Runs scenarios: short scripts that say what happens, and what is so after it (`*.txt` beside this file).

    > expire A
    generation 2 begins at 2: B > C, deposed: A
      A  deposed  ...

A line with `>` is something that happens; then the sitters, PostgreSQL and ZooKeeper go on until nothing changes any
more, and what is so is written below it. `python -m tests.scenarios.script` writes all outcomes anew, for review.

What can happen: `shard N` (a running shard) and `peers N` (peers without data; `peers N alone` with a singleton) begin
a script; every step of `tests.model.world` (`crash A`, `start A`, `expire A`, `mute A`, `catch-up A`, `commit A`,
`pg-crash A`, `cut B` (from its upstream), `cut-off A` (from its standbys), `wipe A`, `freeze`, `promote C`,
`rebuild A`, `reap A`, `force A`, `evict-A B` (B has seen A dead), ...);
`disk A empty|older|ahead|diverged|rolled-back` changes what a stopped peer has on disk (the last behind its sitter's
back: it remembers what was proven); `rejoin A rebuild` sets what it may do by itself; `leave A` asks its sitter to
stop; `ask C async 0 generation 1` is any promote request; `later` lets every timeout pass; `alone A` configures
one-node-write mode, `together A` takes it back; `step STEP` does one step and lets nothing else happen.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.model.calm import Restless, rest
from tests.model.parts import ALONE, NAMES, NOBODY, Lag, One, State, Violation, World, with_peer
from tests.model.promises import check, land
from tests.model.sitter import settle
from tests.model.wishes import wish
from tests.model.world import empty, running, steps

HERE = Path(__file__).parent
PLENTY = 1000
TROUBLES = (
    *("trouble", "commit", "crash", "slow", "mute", "pg-crash", "expire", "wipe", "cut", "operator", "lost"),
    *("forget", "forget-all", "old-snapshot", "force", "rewind-cut", "rewind-in-vain", "evict", "cut-off"),
)
BUDGET = dict.fromkeys(TROUBLES, PLENTY)


class ScriptError(Exception):
    """The script asks for what cannot happen there."""


def run(script: str) -> str:
    """The script with the outcomes that it comes to."""
    written: list[str] = []
    world: World | None = None
    for line in script.splitlines():
        if line.startswith("> "):
            world = happen(world, line[2:].strip())
            written += [line, *describe(world)]
        elif line.startswith("#") or not line.strip():
            written.append(line)
    return "\n".join(written) + "\n"


def happen(world: World | None, command: str) -> World:
    """The world after the command, at rest."""
    words = command.split()
    if words[0] in ("shard", "peers"):
        begun = (running if words[0] == "shard" else empty)(int(words[1]), **BUDGET)
        return rest(settle(with_peer(begun, 0, singleton="alone" in words)))
    if world is None:
        raise ScriptError(f"a script begins with `shard N` or `peers N`, not with: {command}")
    if words[0] == "step":
        return _step(world, " ".join(words[1:]))
    if words[0] == "later":
        return rest(rest(world, late=True))
    if words[0] in ("disk", "leave", "ask", "alone", "together", "rejoin"):
        return rest(settle(_changed(world, words)))
    return rest(_step(world, command))


def _step(world: World, wanted: str) -> World:
    for what, after in steps(world):
        if what == wanted:
            check(after)
            return after
    raise ScriptError(f"`{wanted}` cannot happen here, but: {', '.join(what for what, _ in steps(world))}")


def _changed(world: World, words: list[str]) -> World:
    me = NAMES.index(words[1])
    one, state = world.peers[me], world.state
    if words[0] == "rejoin":
        return with_peer(world, me, rejoin=words[2])
    if words[0] == "leave":
        return with_peer(world, me, leaving=True)
    if words[0] in ("alone", "together"):
        return with_peer(world, me, singleton=words[0] == "alone")
    if words[0] == "ask":
        assert state is not None
        index = int(words[3]) if words[2] == "async" else None
        return land(world, None, state._replace(promote=(me, words[2], index, int(words[-1]))))
    assert one.wal is not None
    if words[2] == "rolled-back":  # beyond what the invariants can hold of: a memory that is private to other data
        return with_peer(world, me, wal=one.wal[:-1])._replace(forgot=True)
    disks = {"empty": None, "older": one.wal[:-1], "ahead": (*one.wal, 199), "diverged": (*one.wal[:-1], 199)}
    # Whatever changed the data did not bring a memory with it.
    memory = type(one.memory)() if words[2] == "empty" else one.memory._replace(proof=0)
    return with_peer(world, me, wal=disks[words[2]], memory=memory)


# --- What is so -----------------------------------------------------------------------------------------------------


def describe(world: World) -> list[str]:
    """The cluster state and every peer, in words."""
    return [_state(world.state), *(f"  {_peer(world, me, one)}" for me, one in enumerate(world.peers))]


def _state(state: State | None) -> str:
    if state is None:
        return "no cluster state"
    chain = " > ".join(NAMES[one] for one in (state.primary, state.sync, *state.asyncs) if one is not None)
    said = f"generation {state.generation} begins at {state.init_wal}: {chain}"
    if state.deposed:
        said += f", deposed: {' '.join(NAMES[one] for one in state.deposed)}"
    if state.promote:
        said += f", promote: {NAMES[state.promote[0]]} from {state.promote[1]}"
    if state.forced:
        said += f", by an operator's word ({state.forced})"
    return said + (", one-node-write mode" if state.alone else "") + (", frozen" if state.frozen else "")


def _peer(world: World, me: int, one: One) -> str:
    data = "no data" if one.wal is None else f"{len(one.wal)}" + ("*" if _strays(world, one) else "")
    data += " torn" if one.torn else ""
    if not one.up:
        return f"{NAMES[me]}  dead, {data}"
    now = wish(world, me, late=False)
    role = now.decision.role or "no role"
    absent = "" if any(other == me for other, _ in world.active) else ", absent"
    unheard = f", knows generation {_known(one.lag)}" if one.lag else ""
    waits = f" [{now.decision.waiting_for}]" if now.decision.waiting_for else ""
    postgres = _postgres(one, data)
    return f"{NAMES[me]}  {role}{absent}{unheard}; {postgres}, proof {one.memory.proof}; {now.decision.reason}{waits}"


def _strays(world: World, one: One) -> bool:
    """Its data are not a prefix of the primary's."""
    theirs = world.peers[world.state.primary].wal if world.state else None
    return bool(theirs and one.wal and one.wal != theirs[: len(one.wal)])


def _known(lag: Lag) -> int:
    return lag.state.generation if lag.state else 0


def _postgres(one: One, data: str) -> str:
    pg = one.pg
    if pg is None:
        return f"down at {data}" if one.wal is not None else data
    sealed = "" if pg.sealed is None else " sealed"
    if pg.primary:
        waits = {NOBODY: "nobody", ALONE: "no one"}.get(pg.waits_for) or NAMES[pg.waits_for]
        return f"primary{sealed} at {data}, commits wait for {waits}"
    follows = "nobody" if pg.upstream is None or pg.sealed is not None else NAMES[pg.upstream]
    return f"standby{sealed} of {follows} at {data}"


def main() -> None:
    """Write every outcome anew."""
    for path in sorted(HERE.glob("*.txt")):
        before = path.read_text()
        try:
            after = run(before)
        except (ScriptError, Restless, Violation) as error:
            sys.stdout.write(f"{path.name}: {error}\n")
            continue
        if after != before:
            path.write_text(after)
            sys.stdout.write(f"{path.name}: rewritten\n")


if __name__ == "__main__":
    main()
