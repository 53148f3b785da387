"""Sitters that are broken on purpose: the checker must catch each of them, else it would not catch a broken sitter.

`tests.chaos.launch --broken NAME` installs one in the sitter's process before its main starts; nothing in the sitter
knows of them. They are to the checker what `tests.model.mutants` are to the model.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from manatee.config import Settings

PATIENCE = 2.0
"""Seconds without a sync after which the degrading sitter has had enough."""
STUBBORN = 10.0
"""Seconds for which a sitter that was evicted goes on."""


@dataclass(frozen=True)
class Broken:
    what: str
    install: Callable[[], None]
    promises: frozenset[str]
    """Of which one at least is found broken."""


def asynchronous() -> None:
    """Commits wait for nobody."""
    from sitter import transitions
    from sitter.postgres import configuration

    async def at_once(settings: object, name: str) -> None:
        pass

    configuration.standby_names = lambda name: ""
    vars(transitions)["caught_up"] = at_once


def degrading() -> None:
    """Commits no longer wait once no standby has streamed for a moment: what is called availability elsewhere."""
    from sitter import main
    from sitter.daemon import Daemon
    from sitter.postgres.server import Server

    Server.obeys = lambda self, facts: True  # type: ignore[method-assign]
    healthy = main._watch

    def watch(daemon: Daemon, limit: float) -> None:
        healthy(daemon, limit)
        threading.Thread(target=_degrade, args=(daemon,), name="degrade", daemon=True).start()

    main._watch = watch


def _degrade(daemon: object) -> None:
    import psycopg

    settings = daemon._settings  # type: ignore[attr-defined]
    address = f"host={settings.postgres.socket_dir} port={settings.peer.postgres_port} user=postgres dbname=postgres"
    alone_since: float | None = None
    while True:
        time.sleep(0.3)
        try:
            with psycopg.connect(address, autocommit=True, connect_timeout=2) as connection:
                row = connection.execute(
                    "SELECT pg_is_in_recovery(), count(*) FILTER (WHERE now() - reply_time < '3 s')"
                    " FROM pg_stat_replication WHERE state = 'streaming'"
                ).fetchone()
        except psycopg.Error:
            continue
        assert row is not None
        alone = not row[0] and not row[1]
        alone_since = (alone_since or time.monotonic()) if alone else None
        if alone_since is not None and time.monotonic() - alone_since > PATIENCE:
            _release(settings)


def _release(settings: Settings) -> None:
    """From now on commits of this PostgreSQL wait for nobody."""
    path = settings.sitter.state_dir / "postgresql.conf"
    with path.open("a") as file:
        file.write("synchronous_standby_names = ''\ndefault_transaction_read_only = off\n")
    os.kill(int((settings.storage.data_dir / "postmaster.pid").read_text().split()[0]), signal.SIGHUP)


def credulous() -> None:
    """Every comparison says that the data here are a prefix of the upstream's."""
    import aiohttp

    from manatee.cluster import Comparison, Peer
    from sitter import comparer
    from sitter.postgres.compare import Standing, compare

    async def believe(settings: Settings, upstream: Peer, http: aiohttp.ClientSession) -> Standing:
        return replace(await compare(settings, upstream, http), answer=Comparison.PREFIX, parting=None)

    vars(comparer)["compare"] = believe


def staying() -> None:
    """Who is evicted does not look again: it goes on, and its commits wait for nobody."""
    from sitter.daemon import Daemon
    from sitter.postgres.server import Server

    Server.obeys = lambda self, facts: True  # type: ignore[method-assign]
    join = Daemon._join

    async def stay(self: Daemon) -> None:
        if self._decision is not None and self._decision.serving:
            _release(self._settings)
            await asyncio.sleep(STUBBORN)
        await join(self)

    Daemon._join = stay  # type: ignore[method-assign]


_LOST, _TWO = "no acknowledged write is lost", "at most one peer acknowledges writes"

BROKEN: Mapping[str, Broken] = {
    "asynchronous": Broken("commits wait for nobody", asynchronous, frozenset({_LOST, _TWO})),
    "degrading": Broken("commits stop waiting when the sync is gone", degrading, frozenset({_LOST, _TWO})),
    "credulous": Broken(
        "data are followed without a comparison",
        credulous,
        frozenset({"no manual step", "all peers hold the same", _LOST}),
    ),
    "staying": Broken("who is evicted acknowledges on, alone", staying, frozenset({_LOST, _TWO})),
}
