"""Promise 6: who has lost ZooKeeper alone stays read-write; who has lost its sync as well fences itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from manatee.cluster import Peer, application_name
from manatee.lsn import Lsn
from sitter.fence import cut_off
from sitter.postgres.queries import Downstream, Facts
from tests.core.views import A, B, C, view

SESSION = 10.0
NOBODY = Facts(
    in_recovery=False,
    timeline=1,
    flush=Lsn(100),
    replay=None,
    last_replayed=None,
    replay_paused=False,
    read_only=False,
    standby_names="",
    started=datetime.now(UTC),
    receiver=None,
    downstreams=(),
)


def streaming(peer: Peer, state: str = "streaming") -> Facts:
    row = Downstream(
        pid=1,
        application_name=application_name(peer),
        client_addr=peer.ip,
        state=state,
        sync_state="sync",
        sent=None,
        write=None,
        flush=Lsn(100),
        replay=None,
        replay_lag=None,
    )
    return replace(NOBODY, downstreams=(row,))


@pytest.mark.parametrize(
    ("me", "facts", "disconnected_for", "fenced"),
    [
        (A, NOBODY, SESSION + 1, True),
        (A, None, SESSION + 1, True),
        (A, streaming(C), SESSION + 1, True),
        (A, streaming(B, "catchup"), SESSION + 1, True),
        (A, streaming(B), SESSION + 1, False),
        (A, NOBODY, SESSION, False),
        (A, NOBODY, 0.0, False),
        (B, NOBODY, SESSION + 1, False),
    ],
    ids=[
        "neither ZooKeeper nor sync",
        "nothing is known of PostgreSQL",
        "another than the sync streams",
        "the sync does not stream yet",
        "the sync streams",
        "the session may live",
        "ZooKeeper is there",
        "not the primary",
    ],
)
def test_a_primary_is_cut_off_without_session_and_sync(
    me: Peer, facts: Facts | None, disconnected_for: float, fenced: bool
) -> None:
    last = view(me)
    assert cut_off(last, facts, disconnected_for=disconnected_for, session_timeout=SESSION) is fenced
