"""Replays recordings of Manatee 2's own state machine (`recorded/README.md`) on `decide()`.

One peer, node1, runs our rules; the rest is what the recording's simulator had: other peers are data that say that all
is well, seals hold at once, comparisons say prefix. After every command the loop runs until nothing more is wanted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manatee.cluster import BadDocument, Cluster, ClusterState, Comparison, Peer, PeerStatus, Role, written_time
from manatee.lsn import Lsn
from sitter.decide import decide
from sitter.view import (
    Database,
    Decision,
    Initialize,
    Link,
    Memory,
    Present,
    Primary,
    Restore,
    Standby,
    Stopped,
    View,
)

ME = "node1"
START = 1_700_000_000.0
IDENTIFIER = "7000000000000000001"
AT_REST_WITHIN = 50


class CommandError(Exception):
    """The command is not possible here; nothing has changed."""


@dataclass
class Postgres:
    """The simulated PostgreSQL of node1."""

    initialized: bool = False
    online: bool = False
    role: str = "none"
    downstream: str | None = None
    upstream: str | None = None
    position: int = 0
    waits_for: int | None = None
    """The position that a sync has yet to reach."""
    sealed: bool = False
    unsealed: float = -1e9
    """When the last seal was given up."""


class Replay:
    """One recording's world."""

    def __init__(self, recording: Mapping[str, Any], core: Callable[[View], Decision] = decide) -> None:
        self.core = core
        self.singleton = bool(recording["singleton"])
        self.postgres = Postgres(initialized=bool(recording["pg_setup"]))
        self.peers: dict[str, Peer] = {}
        self.active: list[str] = []
        self.state: ClusterState | None = None
        self.version = 0
        self.cluster: Cluster | None = None
        self.link: Link | None = None
        self.memory = Memory()
        self.started = False
        self.now = START
        self.last: Decision | None = None
        self.me = self.peer(ME)

    def peer(self, name: str | None = None) -> Peer:
        """The peer of this name; numbered by a counter when it is first heard of."""
        number = len(self.peers) + 1
        name = name or f"node{number}"
        if name not in self.peers:
            ip = f"10.0.0.{number}"
            document = {"id": name, "ip": ip, "pgUrl": f"tcp://postgres@{ip}:5432/postgres", "zoneId": name}
            self.peers[name] = Peer.of(document)
        return self.peers[name]

    # --- Commands -----------------------------------------------------------------------------------------------

    def run(self, command: str, args: list[Any], wait_ms: int | None) -> None:
        """One step of the recording. One that is not possible changes nothing; a pause of ours is over."""
        self.postgres.unsealed = -1e9
        with contextlib.suppress(CommandError, BadDocument):
            getattr(self, f"do_{command.lower()}", self.do_unknown)(*args)
        self.settle()
        if wait_ms:
            self.now += wait_ms / 1000
            self.settle()

    def do_unknown(self, *args: object) -> None:
        raise AssertionError(f"a command that this replay does not know, with {args}")

    def do_zk(self, *_: object) -> None:
        """Only looks."""

    def do_peer(self, *_: object) -> None:
        """Only looks."""

    def do_addpeer(self, name: str | None = None) -> None:
        if name in self.active:
            raise CommandError
        peer = self.peer(name)
        self.active.append(peer.id)
        state = self.state
        if state and ME != state.primary.id != peer.id and state.sync and state.sync.id != peer.id:
            self.write(state.replace(asyncs=(*state.asyncs, peer)))

    def do_rmpeer(self, name: str) -> None:
        state = self.state
        if name == ME or name not in self.active:
            raise CommandError
        if state and state.sync and not state.one_node_write_mode:
            primary, sync = state.primary.id, state.sync.id
            if (name == sync and primary != ME) or (name == primary and sync != ME):
                raise CommandError  # who would have to act is not there
        self.active.remove(name)

    def do_bootstrap(self, primary: str | None = None, sync: str | None = None) -> None:
        if self.state:
            raise CommandError
        first = primary or next(iter(self.active), None)
        second = sync if primary and sync else next((id for id in self.active if id != first), None)
        if first not in self.active or second not in self.active or first == second:
            raise CommandError
        rest = [id for id in self.active if id not in (first, second)]
        self.write(
            ClusterState.of(
                {
                    "generation": 1,
                    "primary": self.peers[first].document(),
                    "sync": self.peers[second].document(),
                    "async": [self.peers[id].document() for id in rest],
                    "deposed": [],
                    "initWal": str(Lsn(0)),
                }
            )
        )

    def do_startpeer(self) -> None:
        if self.started:
            raise CommandError
        if ME not in self.active:
            self.active.append(ME)
        self.started = True

    def do_depose(self) -> None:
        state = self.state
        if not state or not state.sync or not state.asyncs:
            raise CommandError
        known = ("generation", "primary", "sync", "async", "deposed", "initWal")
        self.write(
            state.replace(
                generation=state.generation + 1,
                primary=state.sync,
                sync=state.asyncs[0],
                asyncs=state.asyncs[1:],
                deposed=(*state.deposed, state.primary),
                init_wal=Lsn(state.init_wal + 10),
                without=tuple(name for name in state.document() if name not in known),
            )
        )

    def do_rebuild(self, name: str) -> None:
        state = self.state
        if not state or name == ME or name not in {peer.id for peer in state.deposed}:
            raise CommandError
        played = state.primary.id != ME
        self.write(
            state.replace(
                deposed=[peer for peer in state.deposed if peer.id != name],
                asyncs=(*state.asyncs, self.peer(name)) if played else state.asyncs,
            )
        )

    def do_catchup(self) -> None:
        postgres = self.postgres
        if postgres.role != "sync":
            raise CommandError
        postgres.position = (postgres.waits_for or postgres.position) + 10
        postgres.waits_for = None

    def do_freeze(self, frozen: object = True) -> None:
        state = self._present_state()
        if frozen is False:
            self.write(state.replace(without=("freeze",)))
        else:
            self.write(state.replace(freeze={"note": "frozen by simulator"}))

    def do_unfreeze(self) -> None:
        self.do_freeze(False)

    def do_echo(self, *_: object) -> None:
        """Only says."""

    def do_lspeers(self, *_: object) -> None:
        """Only looks."""

    def do_promote(self, asked: dict[str, Any]) -> None:
        asked = dict(asked)
        if "expireIn" in asked:
            asked["expireTime"] = written_time(self.now + asked.pop("expireIn") / 1000)
        self.write(self._present_state().replace(promote=asked))

    def do_setclusterstate(self, document: object) -> None:
        state = ClusterState.of(document)
        for peer in (*state.assigned, *state.deposed):
            self.peers.setdefault(peer.id, peer)
        self.write(state)

    def _present_state(self) -> ClusterState:
        if self.state is None:
            raise CommandError
        return self.state

    # --- The loop: view, decide, apply --------------------------------------------------------------------------

    def settle(self) -> None:
        """Carry out what is wanted until it stands."""
        if not self.started:
            return
        for _ in range(AT_REST_WITHIN):
            before = self._standing()
            self.last = self.core(self.view())
            self.apply(self.last)
            if self._standing() == before:
                return
        raise AssertionError(f"does not come to rest: {self.last}")

    def _standing(self) -> object:
        return (self.version, self.memory, self.cluster, tuple(self.active), replace(self.postgres))

    def view(self) -> View:
        """What node1 knows: the others say that all is well and that they have no data."""
        state, postgres = self.state, self.postgres
        generation = state.generation if state else 0
        well = PeerStatus.of(
            {
                "initialized": False,
                "serving": True,
                "ready": True,
                "generation": generation,
                "proof": generation,
                "compares": "prefix",
            }
        )
        sealed = postgres.sealed and postgres.online
        database = Database(
            initialized=postgres.initialized,
            identifier=IDENTIFIER if postgres.initialized else None,
            version="15" if postgres.initialized else None,
            online=postgres.online,
            writable_for=1000.0 if postgres.role == "primary" else 0.0,
            end=Lsn(postgres.position) if postgres.initialized else None,
            sealed=Lsn(postgres.position) if sealed else None,
            unsealed_for=self.now - postgres.unsealed,
            upstream=postgres.upstream,
            streaming=postgres.online and postgres.upstream is not None,
            attached={name: Lsn(2**63) for name in self.peers},
            link=self._link(generation),
        )
        memory = replace(self.memory, proof=generation if postgres.initialized else 0)
        me_and_others = [Present(self.peers[id], well) for id in self.active if id not in self._handing_over()]
        return View(
            me=self.me,
            now=self.now,
            active=tuple(me_and_others),
            state=state,
            version=self.version if state else None,
            cluster=self.cluster,
            has_history=state is not None,
            database=database,
            memory=memory,
            singleton=self.singleton,
        )

    def _link(self, generation: int) -> Link | None:
        """Our WAL is a prefix of whichever upstream the rules ask about; who is deposed finds nobody to compare with.

        The recorded machine never came off the deposed list by itself.
        """
        asked = self.last.compare if self.last and self.last.role != Role.DEPOSED else None
        if asked and asked.generation == generation:
            self.link = Link(asked.upstream.id, generation, generation, Comparison.PREFIX, Lsn(0))
        return self.link

    def _handing_over(self) -> set[str]:
        """The primary, once our promotion from sync is asked for and possible."""
        state = self.state
        if not state or not state.promote or not state.sync or state.sync.id != ME or state.frozen:
            return set()
        asked = state.promote
        valid = asked.id == ME and asked.role == "sync" and asked.generation == state.generation
        waits = self.postgres.waits_for is not None or not any(peer.id in self.active for peer in state.asyncs)
        return {state.primary.id} if valid and asked.expires() > self.now and not waits else set()

    def apply(self, decision: Decision) -> None:
        postgres, wanted = self.postgres, decision.database
        self.memory = decision.memory
        unsealed = self.now if postgres.sealed and not getattr(wanted, "sealed", False) else postgres.unsealed
        if isinstance(wanted, Initialize | Restore):
            postgres.initialized = True
        elif isinstance(wanted, Primary):
            downstream = wanted.sync.id if wanted.sync else None
            if (postgres.role, postgres.downstream) != ("primary", downstream) or not postgres.online:
                postgres.position += 10
            self.postgres = Postgres(True, True, "primary", downstream, None, postgres.position, None, wanted.sealed)
        elif isinstance(wanted, Standby):
            self._follow(decision, wanted)
        elif isinstance(wanted, Stopped):
            self.postgres = Postgres(postgres.initialized, position=postgres.position)
        self.postgres.unsealed = unsealed
        if decision.cluster:
            self.cluster = decision.cluster
        if decision.write:
            assert decision.write.version == (self.version if self.state else None)
            self.cluster = decision.write.cluster or self.cluster
            self.write(decision.write.state)
        if decision.resign and ME in self.active:
            self.active.remove(ME)

    def _follow(self, decision: Decision, wanted: Standby) -> None:
        postgres, state = self.postgres, self.state
        assert state is not None
        role = str(decision.role)
        waits_for = postgres.waits_for if role == "sync" else None
        if role == "sync" and postgres.role != "sync":
            waits_for = int(state.init_wal) if state.generation > 1 and postgres.position < state.init_wal else None
        upstream = wanted.upstream.id if wanted.upstream else None
        self.postgres = Postgres(True, True, role, None, upstream, postgres.position, waits_for, wanted.sealed)

    def write(self, state: ClusterState) -> None:
        """A first state also records who made the database, as ours would: who starts without data makes it."""
        if self.state is None and self.cluster is None:
            made = not (state.primary.id == ME and not self.postgres.initialized)
            self.cluster = Cluster(
                created=written_time(self.now), by=state.primary.id, system_identifier=IDENTIFIER if made else None
            )
        self.state, self.version = state, self.version + 1

    # --- What is compared ---------------------------------------------------------------------------------------

    def outcome(self) -> dict[str, Any]:
        """Role, cluster state and active list, in the recording's words."""
        role = "unknown"
        if self.started and self.state:
            role = str(self.state.role_of(ME))
        document = self.state.document() if self.state else None
        if document and "promote" in document:
            document["promote"].pop("expireTime", None)
        return {"role": role, "clusterState": document, "activeNodes": list(self.active)}


@dataclass(frozen=True)
class Difference:
    """Where one step of the replay ended otherwise than the recording."""

    step: int
    what: str
    recorded: object
    ours: object


def differences(path: Path, core: Callable[[View], Decision] = decide) -> list[Difference]:
    """Replay one recording; every step whose role, cluster state or active list is not the recorded one."""
    recording = json.loads(path.read_text())
    replay, found = Replay(recording, core), []
    for step in recording["steps"]:
        replay.run(step["cmd"], step["args"] or [], step["wait_ms"])
        recorded, ours = _recorded(step["after"]), replay.outcome()
        found += [
            Difference(step["index"], what, recorded[what], ours[what])
            for what in ("role", "clusterState", "activeNodes")
            if recorded[what] != ours[what]
        ]
    return found


def _recorded(after: Mapping[str, Any]) -> dict[str, Any]:
    state = after["clusterState"]
    if state:
        state["initWal"] = str(Lsn.parse(state["initWal"]))
    if state and "promote" in state:
        state["promote"].pop("expireTime", None)
    return {"role": after["role"], "clusterState": state, "activeNodes": after["activeNodes"]}
