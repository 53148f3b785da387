"""Each rule of `decide()` by example: what one peer of a healthy shard does when one thing is not as it should be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from manatee.cluster import ClusterState, Comparison, Role
from manatee.lsn import Lsn
from sitter.decide import decide
from sitter.shard import Shard
from sitter.view import (
    Database,
    Decision,
    Initialize,
    Keep,
    Link,
    Memory,
    Primary,
    Restore,
    Seal,
    Standby,
    Stopped,
    View,
)
from tests.core.views import (
    BEGINNING,
    CLUSTER,
    END,
    EVERYONE,
    FRESH_CLUSTER,
    GENERATION,
    IDENTIFIER,
    A,
    B,
    C,
    D,
    E,
    active,
    empty,
    manatee_2,
    promote,
    says,
    silent,
    state,
    view,
)

SEALED = {"sealed": END, "seal": Seal(GENERATION, END)}


def written(decision: Decision) -> ClusterState:
    assert decision.write is not None, decision.reason
    return decision.write.state


def names(new: ClusterState) -> str:
    """`A > B > C` with the deposed in brackets."""
    labels = " > ".join(one.label[-1] for one in new.assigned)
    return labels + "".join(f" [{one.label[-1]}]" for one in new.deposed)


@pytest.mark.parametrize("me", EVERYONE, ids=lambda one: one.label)
def test_a_healthy_shard_is_left_alone(me: Any) -> None:
    decision = decide(view(me))
    assert decision.write is None
    assert decision.waiting_for is None
    assert decision.compare is None
    assert decision.serving
    assert decision.ready
    assert not decision.resign
    assert decision.memory == view(me).memory
    upstream = {A.id: Primary(B), B.id: Standby(A), C.id: Standby(B), D.id: Standby(C)}
    assert decision.database == upstream[me.id]


# --- 1. Refuse


@pytest.mark.parametrize(
    "wrong",
    [
        view(A, state=None, state_problem="primary.ip: Field required"),
        view(A, singleton=True),
        view(A, identifier="6"),
        view(A, state=state(generation=2)),
        view(A, memory=Memory(IDENTIFIER, 4, 4)),
        view(A, active=active(A, B, says(C, generation=4))),
        view(B, active=active(B, says(C, generation=4))),
        view(A, state=None),
    ],
    ids=["invalid", "singleton", "identifier", "older", "memory", "said", "said to the sync", "wiped"],
)
def test_what_cannot_be_believed_is_not_acted_on(wrong: View) -> None:
    """Promise 6, and 4: a ZooKeeper that forgot is not believed."""
    decision = decide(wrong)
    assert decision.database == Keep()
    assert decision.write is None
    assert not decision.resign
    assert decision.waiting_for
    assert decision.memory == wrong.memory


# --- 2. Set up


def test_the_first_peer_sets_the_shard_up() -> None:
    decision = decide(empty(A))
    new = written(decision)
    assert names(new) == "A > B > C > D"
    assert (new.generation, new.init_wal, new.deposed) == (1, 0, ())
    assert decision.write is not None
    assert decision.write.version is None
    assert decision.write.cluster is not None
    assert (decision.write.cluster.by, decision.write.cluster.system_identifier) == (A.id, None)


@pytest.mark.parametrize(
    "unsafe",
    [
        empty(B),
        empty(A, active=empty(A).active[:1]),
        empty(A, active=(*empty(A).active[:2], silent(C))),
        empty(A, active=(*empty(A).active[:2], says(C, initialized=True, generation=0))),
        empty(A, active=(*empty(A).active[:2], manatee_2(C))),
        empty(A, active=empty(A).active[1:]),
        empty(A, has_history=True),
        empty(A, cluster=FRESH_CLUSTER),
        empty(A, database=Database(initialized=True, identifier=IDENTIFIER)),
        empty(A, write_open=True),
    ],
    ids=["not first", "alone", "silent", "data", "manatee 2", "not in", "history", "cluster", "own data", "open"],
)
def test_no_set_up_unless_it_is_certain_that_nothing_can_be_lost(unsafe: View) -> None:
    """Promise 4: never an empty database over an existing one."""
    decision = decide(unsafe)
    assert decision.write is None
    assert decision.waiting_for


def test_a_singleton_sets_up_alone() -> None:
    new = written(decide(empty(A, active=empty(A).active[:1], singleton=True)))
    assert (new.sync, new.asyncs, new.one_node_write_mode, new.frozen) == (None, (), True, True)
    assert new.document()["freeze"]["reason"] == "manatee setup: one node write mode"


def test_the_database_is_created_once_and_first_started_when_cluster_names_it() -> None:
    """Promise 4: `initdb` runs once in a shard's life, with the intent recorded first."""
    first = state(generation=1, initWal="0/0")
    fresh = {"state": first, "cluster": FRESH_CLUSTER, "active": tuple(says(p, generation=1) for p in EVERYONE)}
    none = decide(view(A, database=Database(), memory=Memory(), **fresh))
    assert none.database == Initialize()
    made = Database(initialized=True, identifier=IDENTIFIER, version="15", end=END)
    created = decide(view(A, database=made, memory=Memory(), **fresh))
    assert created.database == Stopped()
    assert created.cluster == CLUSTER
    assert created.memory.proof == 1
    known = decide(view(A, database=made, memory=created.memory, **{**fresh, "cluster": CLUSTER}))
    assert known.database == Primary(B)


@pytest.mark.parametrize("cluster", [CLUSTER, FRESH_CLUSTER.replace(by=B.id)], ids=["completed", "another's"])
def test_initdb_is_for_the_one_who_set_up_and_only_once(cluster: Any) -> None:
    first = state(generation=1, initWal="0/0")
    heard = tuple(says(p, generation=1) for p in EVERYONE)
    decision = decide(view(A, database=Database(), memory=Memory(), state=first, cluster=cluster, active=heard))
    assert decision.database == Stopped()
    assert decision.resign


# --- 3. Roles


def test_a_primary_without_proof_resigns() -> None:
    """Promise 3: being named is no proof."""
    decision = decide(view(A, proof=2))
    assert (decision.database, decision.resign, decision.write) == (Stopped(), True, None)


def test_a_primary_that_the_state_no_longer_names_stops_at_once() -> None:
    moved = state(generation=4, primary=B, sync=C, **{"async": [D]}, deposed=[A])
    decision = decide(view(A, state=moved))
    assert (decision.role, decision.database) == (Role.DEPOSED, Stopped())
    assert not decision.serving


@pytest.mark.parametrize(
    ("me", "role"), [(E, Role.UNASSIGNED), (B, Role.UNASSIGNED)], ids=["stranger", "one-node-write mode"]
)
def test_the_unassigned_run_nothing(me: Any, role: Any) -> None:
    alone = state(sync=None, **{"async": []}, oneNodeWriteMode=True, freeze=True)
    decision = decide(view(me, state=alone if me is B else state()))
    assert (decision.role, decision.database, decision.write) == (role, Stopped(), None)


@pytest.mark.parametrize("me", EVERYONE, ids=lambda one: one.label)
def test_who_is_asked_to_stop_leaves(me: Any) -> None:
    decision = decide(view(me, leaving=True))
    assert isinstance(decision.database, Stopped)
    assert decision.resign
    assert decision.write is None


@pytest.mark.parametrize(
    ("changes", "clean"),
    [
        ({}, True),
        ({"active": active(A, says(B, serving=False), C, D)}, False),
        ({"active": active(A, B, says(C, serving=False), says(D, serving=False))}, False),
        ({"state": state(freeze=True)}, False),
    ],
    ids=["possible", "no sync", "no async", "frozen"],
)
def test_a_leaving_primary_hands_over_if_a_takeover_is_possible(changes: Any, clean: Any) -> None:
    assert decide(view(A, leaving=True, **changes)).database == Stopped(clean=clean)


# --- 4. Upstream


@pytest.mark.parametrize(
    ("who", "upstream"),
    [
        (active(A, B, C, D), C),
        (active(A, B, D), B),
        (active(A, D), A),
        (active(A, B, says(C, ready=False, unready_for=9), D), C),
        (active(A, B, says(C, ready=False, unready_for=10), D), B),
        (active(says(A, ready=False), says(B, ready=False, serving=False), D), A),
        (active(D), C),
        (active(A, B, C, says(D, ready=False, unready_for=29)), C),
        (active(A, B, C, says(D, ready=False, unready_for=30)), B),
        (active(A, C, says(D, ready=False, unready_for=30)), A),
        (active(C, says(D, ready=False, unready_for=30)), C),
    ],
    ids=[
        *("link", "absent", "two absent", "in grace", "unready", "serving", "nobody"),
        *("waiting", "stranded", "stranded, one absent", "stranded, nobody else"),
    ],
)
def test_the_nearest_ready_link_above_stands_in(who: Any, upstream: Any) -> None:
    link = Link(upstream.id, GENERATION, GENERATION, Comparison.PREFIX, END)
    decision = decide(view(D, active=who, link=link))
    assert decision.database == Standby(upstream)


def test_an_async_promoted_to_sync_follows_the_primary() -> None:
    asked = state(promote=promote(C, "async", 0))
    link = Link(A.id, GENERATION, GENERATION, Comparison.PREFIX, END)
    assert decide(view(C, state=asked, link=link)).database == Standby(A)


def test_an_async_that_has_yet_to_prove_itself_goes_on_following_although_it_is_promoted() -> None:
    """It would have to stop for the comparison with the primary, be ready no more, and so void the request."""
    asked = state(promote=promote(C, "async", 0))
    memory = Memory(generation=GENERATION, proof=GENERATION - 1)
    decision = decide(view(C, state=asked, memory=memory, link=None))
    assert decision.database == Standby(B)
    assert decision.ready


@pytest.mark.parametrize(
    ("me", "who", "sources"),
    [
        (B, active(A, B, C, D), (A, C, D)),
        (C, active(A, B, C, D), (B, A, D)),
        (D, active(A, B, C, D), (B, C, A)),
        (D, active(A, D), (A,)),
        (C, active(C, D), (D,)),
        (C, active(C), ()),
    ],
)
def test_a_peer_without_data_restores(me: Any, who: Any, sources: Any) -> None:
    who = tuple(says(me, initialized=False, serving=False, ready=False) if p.peer.id == me.id else p for p in who)
    decision = decide(view(me, database=Database(), memory=Memory(), active=who))
    assert decision.database == Restore(sources)
    assert decision.memory.proof == 0


@pytest.mark.parametrize("me", [B, C, D], ids=lambda one: one.label)
def test_nobody_is_followed_before_the_comparison(me: Any) -> None:
    """Promise 3: a peer never follows an upstream it has diverged from."""
    decision = decide(view(me, link=None, upstream=None, streaming=False))
    assert decision.database == Standby(None)
    assert decision.compare is not None
    assert decision.waiting_for


def test_nothing_is_compared_while_wal_still_comes_from_elsewhere() -> None:
    """Promise 3: what a former primary sends after the comparison, or who followed it, would not have been compared."""
    moved = state(generation=4, primary=B, sync=C, **{"async": [D]}, deposed=[A])
    who = tuple(says(one, generation=4, proof=4) for one in (B, C, D))
    still = decide(view(C, state=moved, active=who, upstream=A.id))
    assert (still.database, still.compare) == (Standby(None), None)
    ended = decide(view(C, state=moved, active=who, upstream=None, streaming=False))
    assert ended.compare is not None
    unproven = decide(view(D, active=active(A, B, D), proof=2, link=None))
    assert (unproven.database, unproven.compare) == (Standby(None), None)
    proven = decide(view(D, active=active(A, B, says(C, ready=False, unready_for=10), D), link=None))
    assert proven.database == Standby(C)
    assert proven.compare is not None
    not_yet = decide(
        view(D, active=active(A, B, says(C, serving=False, ready=False), D), proof=2, link=None, upstream=B.id)
    )
    assert (not_yet.database, not_yet.compare) == (Standby(B), None)


@pytest.mark.parametrize("upstream", [None, B.id], ids=["stopped", "set to follow before its data went"])
def test_data_without_proof_do_not_run_before_the_comparison(upstream: Any) -> None:
    """Promise 3: somebody downstream may still be set to follow us, and would take what a wrong restore brought."""
    decision = decide(view(C, proof=0, link=None, online=False, streaming=False, upstream=upstream))
    assert decision.database == Stopped()
    assert decision.compare is not None
    link = Link(B.id, GENERATION, GENERATION, Comparison.AHEAD, END)
    assert decide(view(C, proof=0, link=link, online=False, streaming=False)).database == Stopped()


@pytest.mark.parametrize(
    ("me", "who", "answer", "database"),
    [
        (B, active(*EVERYONE), Comparison.DIVERGED, Stopped()),
        (B, active(*EVERYONE), Comparison.AHEAD, Standby(None)),
        (C, active(*EVERYONE), Comparison.AHEAD, Standby(None)),
        (C, active(B, C, D), Comparison.AHEAD, Stopped()),
    ],
    ids=["diverged", "ahead of the primary", "ahead of a standby", "ahead, no primary"],
)
def test_who_is_not_a_prefix_does_not_follow(me: Any, who: Any, answer: Any, database: Any) -> None:
    """Promise 3."""
    upstream = A if me is B else B
    link = Link(upstream.id, GENERATION, GENERATION, answer, END, "at 0/7")
    decision = decide(view(me, active=who, link=link))
    assert decision.database == database
    assert decision.waiting_for
    assert decision.write is None


def test_a_comparison_is_of_one_generation_and_one_upstream() -> None:
    old = Link(A.id, GENERATION - 1, GENERATION - 1, Comparison.DIVERGED, END)
    assert decide(view(B, link=old)).compare is not None
    other = Link(C.id, GENERATION, GENERATION, Comparison.DIVERGED, END)
    assert decide(view(B, link=other)).compare is not None


# --- 5. Declare: the sync takes over

GONE = active(B, C, D)
HELD = {"active": GONE, "attached": {C.id: END, D.id: END}}


def test_a_takeover_seals_first_then_declares() -> None:
    sealing = decide(view(B, active=GONE))
    assert (sealing.database, sealing.write) == (Standby(A, sealed=True), None)
    assert sealing.memory.seal is None
    declared = decide(view(B, active=GONE, **SEALED))
    assert names(written(declared)) == "B > C > D [A]"
    assert (written(declared).generation, written(declared).init_wal) == (4, END)
    assert declared.memory.seal == Seal(GENERATION, END)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"state": state(freeze={"date": "2026-01-16T08:08:33.000Z", "reason": "work"})}, "frozen"),
        ({"proof": 1, "end": Lsn(149)}, "no proof"),
        ({"active": GONE[1:]}, "active list"),
        ({"active": GONE[:1]}, "no async is present"),
        ({"online": False}, "not online"),
        ({"attached": {}}, "no async streams"),
        ({"unsealed_for": 1.0}, "given up"),
        ({"write_open": True}, "landed"),
        ({"sealed": Lsn(99)}, "before this generation's beginning"),
        ({"sealed": END, "attached": {C.id: Lsn(149)}}, "has flushed"),
        ({"sealed": END, "sealed_for": 5.0, "attached": {C.id: Lsn(149)}}, "unsealing"),
        ({"active": active(B, says(C, serving=False), D), **SEALED}, "has flushed"),
    ],
)
def test_a_takeover_that_is_blocked_says_what_would_unblock_it(changes: Any, word: Any) -> None:
    """Promises 1, 3 and 5."""
    decision = decide(view(B, **{"active": GONE, **changes}))
    assert word in decision.reason
    assert decision.write is None or decision.write.state.generation == GENERATION
    assert decision.waiting_for


@pytest.mark.parametrize(
    ("me", "changes", "asks"),
    [
        (B, {"streaming": False}, True),
        (B, {"streaming": True}, False),
        (B, {"streaming": False, "unready_for": 2.0}, False),
        (B, {"streaming": False, "online": False}, False),
        (C, {"streaming": False}, False),
    ],
    ids=["starves", "streams", "for a moment only", "starting", "below a standby"],
)
def test_a_sync_that_nothing_comes_to_compares_again(me: Any, changes: Any, asks: bool) -> None:
    """Promise 1: the primary may have gone back behind what the sync has confirmed, and would replace it."""
    changes = {"unready_for": 2.5, **changes}
    who = [says(one, ready=False, unready_for=changes["unready_for"]) if one is me else one for one in EVERYONE]
    del changes["unready_for"]
    decision = decide(view(me, active=active(*who), **changes))
    assert (decision.compare is not None) is asks
    assert isinstance(decision.database, Standby)


def test_an_absent_async_is_not_chosen_and_not_carried_along() -> None:
    decision = decide(view(B, active=active(B, D), attached={C.id: END, D.id: END}, **SEALED))
    assert names(written(decision)) == "B > D [A]"


def test_the_first_attached_async_is_chosen() -> None:
    decision = decide(view(B, active=GONE, attached={C.id: Lsn(149), D.id: END}, **SEALED))
    assert names(written(decision)) == "B > D > C [A]"


def test_a_seal_stays_while_a_write_is_open() -> None:
    """Promise 1: the write may still land, and then everything above the seal would be lost."""
    for who in (GONE, active(*EVERYONE)):
        decision = decide(view(B, active=who, write_open=True, **SEALED))
        assert isinstance(decision.database, Standby)
        assert decision.database.sealed, [one.peer.label for one in who]
        assert decision.memory.seal == Seal(GENERATION, END)
        assert decision.write is None


def test_a_seal_that_is_no_longer_wanted_is_forgotten() -> None:
    decision = decide(view(B, **SEALED))
    assert decision.database == Standby(A)
    assert decision.memory.seal is None


def test_a_manatee_2_primary_is_taken_over_when_an_operator_asks() -> None:
    asked = state(promote=promote(B, "sync"))
    who = (manatee_2(A), *active(B, C, D))
    decision = decide(view(B, state=asked, active=who, **SEALED))
    assert names(written(decision)) == "B > C > D [A]"
    assert "promote" not in written(decision).document()
    assert decide(view(B, state=asked)).write is None


# --- 5. Declare: the primary replaces its sync

SYNC_GONE = active(A, C, D)


def test_a_replacement_seals_first_then_declares() -> None:
    attached = {"attached": {C.id: END}}
    sealing = decide(view(A, active=SYNC_GONE, **attached))
    assert (sealing.database, sealing.write) == (Primary(B, sealed=True), None)
    declared = decide(view(A, active=SYNC_GONE, **attached, **SEALED))
    assert names(written(declared)) == "A > C > D"
    assert (written(declared).generation, written(declared).init_wal) == (4, END)


@pytest.mark.parametrize(
    ("sync", "writable_for", "replaced"),
    [
        (says(B, ready=False, unready_for=10), 10.0, True),
        (says(B, ready=False, unready_for=9), 10.0, False),
        (says(B, ready=False, unready_for=10), 9.0, False),
        (says(B), 1000.0, False),
    ],
    ids=["unready", "not long", "our own fault", "ready"],
)
def test_a_sync_is_replaced_when_it_was_unready_for_the_grace_time(sync: Any, writable_for: Any, replaced: Any) -> None:
    who = (*active(A), sync, *active(C, D))
    decision = decide(view(A, active=who, writable_for=writable_for, attached={C.id: END}))
    assert decision.database == Primary(B, sealed=replaced)


@pytest.mark.parametrize("says_it_is", [Comparison.AHEAD, Comparison.DIVERGED])
def test_a_sync_that_contradicts_is_never_replaced(says_it_is: Any) -> None:
    """Promise 1: it may hold commits that the primary lacks."""
    sync = says(B, compares=says_it_is, ready=False, unready_for=math.inf)
    decision = decide(view(A, active=(*active(A), sync, *active(C, D)), attached={C.id: END}, **SEALED))
    assert (decision.database, decision.write, decision.resign) == (Stopped(), None, True)


def test_a_sync_that_has_what_the_primary_lost_contradicts_whatever_it_says() -> None:
    """Promise 1: it confirms commits by positions at which it holds other data."""
    lost = {"ahead": frozenset({B.id}), "attached": {B.id: END}}
    decision = decide(view(A, **lost))
    assert (decision.database, decision.write, decision.resign) == (Stopped(), None, True)
    assert "the sync's data are ahead of ours" in decision.reason
    assert decide(view(A, online=False, resigned_for=60.0, **lost)).resign, "it does not come back to try again"
    unproven = (*active(A), says(B, proof=GENERATION - 2), *active(C, D))
    assert not decide(view(A, active=unproven, **lost)).resign


def test_an_async_that_has_what_the_primary_lost_does_not_become_the_sync() -> None:
    one = {"ahead": frozenset({C.id})}
    both = decide(view(A, active=SYNC_GONE, attached={C.id: END, D.id: END}, **one, **SEALED))
    assert names(written(both)) == "A > D > C"
    alone = decide(view(A, active=SYNC_GONE, attached={C.id: END}, **one))
    assert (alone.database, alone.write) == (Primary(B), None)
    assert "lost WAL that is there on zone-C" in alone.reason


def test_a_promote_to_sync_exchanges_sync_and_first_async() -> None:
    asked = state(promote=promote(C, "async", 0))
    decision = decide(view(A, state=asked, attached={B.id: END, C.id: END}, **SEALED))
    assert names(written(decision)) == "A > C > B > D"
    assert "promote" not in written(decision).document()


def test_the_way_out_of_one_node_write_mode_is_a_new_generation_with_a_seal() -> None:
    alone = state(sync=None, **{"async": []}, oneNodeWriteMode=True, deposed=[D])
    who = active(A, says(C, serving=False, ready=False), says(B, serving=False, ready=False))
    sealing = decide(view(A, state=alone, active=who, attached={}))
    assert (sealing.database, sealing.write) == (Primary(None, sealed=True), None)
    new = written(decide(view(A, state=alone, active=who, attached={}, **SEALED)))
    assert names(new) == "A > C > B"
    assert "oneNodeWriteMode" not in new.document()
    frozen = alone.replace(freeze=True)
    assert decide(view(A, state=frozen, active=who, attached={}, **SEALED)).write is None
    assert decide(view(A, state=alone, active=who, attached={}, singleton=True, **SEALED)).write is None


# --- 6. Keep the list


@pytest.mark.parametrize(
    ("me", "who", "frozen", "expected"),
    [
        (A, active(A, B, D), None, "A > B > D"),
        (A, active(A, B, C, D, E), None, "A > B > C > D > E"),
        (A, active(E, A, D, B), None, "A > B > D > E"),
        (A, active(A, B, D), True, "A > B > D"),
        (B, active(B, D, E), True, "A > B > D > E"),
    ],
)
def test_the_list_is_kept(me: Any, who: Any, frozen: Any, expected: Any) -> None:
    before = state(freeze=frozen, later={"x": 1})
    new = written(decide(view(me, state=before, active=who)))
    assert (names(new), new.generation) == (expected, GENERATION)
    assert {**new.document(), "async": None} == {**before.document(), "async": None}


@pytest.mark.parametrize(
    "nothing",
    [
        view(B, active=active(A, B, D)),
        view(C, active=active(C, E)),
        view(A, active=active(A, B, D), write_open=True),
        view(A, active=active(B, D)),
    ],
    ids=["primary is there", "an async", "open", "not present"],
)
def test_the_list_is_kept_by_one_peer_alone(nothing: View) -> None:
    assert decide(nothing).write is None


def test_the_deposed_do_not_join_by_being_present() -> None:
    assert decide(view(A, state=state(deposed=[E]), active=active(*EVERYONE, E))).write is None


# --- Promote


def test_a_promote_of_a_later_async_swaps_it_upwards() -> None:
    new = written(decide(view(A, state=state(promote=promote(D, "async", 1)))))
    assert (names(new), new.generation) == ("A > B > D > C", GENERATION)
    assert "promote" not in new.document()


@pytest.mark.parametrize(
    "asked",
    [
        promote(D, "async", 1, generation=2),
        promote(D, "async", 1, generation="3"),
        promote(D, "async", 1, generation=True),
        promote(D, "async", 1, expireTime="2010-01-01T00:00:00.000Z"),
        promote(D, "async", 1, expireTime="soon"),
        promote(D, "async", 1, expireTime=None),
        promote(D, "async", 0),
        promote(D, "async", -1),
        promote(D, "async", 1, asyncIndex="1"),
        promote(D, "async"),
        promote(D, "sync"),
        promote(A, "primary"),
        promote(D, "test"),
        promote(E, "async", 2),
        {},
    ],
)
def test_an_invalid_promote_is_removed(asked: Any) -> None:
    new = written(decide(view(A, state=state(promote=asked))))
    assert (names(new), new.generation) == ("A > B > C > D", GENERATION)
    assert "promote" not in new.document()


def test_a_promote_of_an_unready_peer_is_removed() -> None:
    who = active(A, B, C, says(D, ready=False))
    new = written(decide(view(A, state=state(promote=promote(D, "async", 1)), active=who)))
    assert names(new) == "A > B > C > D"


def test_a_promote_of_the_sync_makes_the_primary_hand_over() -> None:
    asked = state(promote=promote(B, "sync"))
    decision = decide(view(A, state=asked))
    assert (decision.database, decision.resign) == (Stopped(clean=True), True)
    frozen = decide(view(A, state=asked.replace(freeze=True)))
    assert not frozen.resign
    assert "promote" not in written(frozen).document()


def test_who_has_not_opened_yet_has_nothing_to_hand_over() -> None:
    """Else it would stop, find that nothing was begun, start, and stop again, until the request expires."""
    decision = decide(view(A, state=state(promote=promote(B, "sync")), writable_for=0.0))
    assert (decision.database, decision.resign) == (Primary(B), False)


def test_a_hand_over_that_nobody_took_is_withdrawn_before_coming_back() -> None:
    asked = state(promote=promote(B, "sync"))
    waits = decide(view(A, state=asked, resigned_for=1.0, active=GONE))
    assert (waits.database, waits.resign, waits.write, waits.look_again) == (Stopped(), True, None, 4.0)
    withdraws = decide(view(A, state=asked, resigned_for=6.0, active=GONE))
    assert withdraws.resign
    assert "promote" not in written(withdraws).document()
    comes_back = decide(view(A, resigned_for=6.0, active=GONE, online=False))
    assert (comes_back.database, comes_back.resign) == (Primary(B), False)


# --- PostgreSQL dies


@pytest.mark.parametrize(
    ("changes", "resigns"),
    [
        ({"failing_for": 5.0}, True),
        ({"failing_for": 4.9}, False),
        ({"failing_for": 5.0, "active": active(A, says(B, serving=False), C, D)}, False),
        ({"failing_for": 5.0, "state": state(freeze=True)}, False),
        ({"failing_for": None}, False),
        ({"failing_for": 60.0, "resigned_for": 4.9}, True),
        ({"failing_for": 60.0, "resigned_for": 5.0}, False),  # nobody took over: it comes back and tries again
    ],
)
def test_a_dead_postgresql_makes_way_only_if_a_takeover_is_possible(changes: Any, resigns: Any) -> None:
    decision = decide(view(A, online=False, writable_for=0.0, **changes))
    assert decision.resign is resigns
    assert decision.database == (Stopped() if resigns else Primary(B))


# --- Nobody can follow


@pytest.mark.parametrize(
    ("changes", "resigns"),
    [
        ({}, True),
        ({"online": False, "writable_for": 0.0}, True),  # it is being stopped, for this
        ({"unreached_for": 19.9}, False),  # asyncs may still be on their way
        ({"active": active(A, says(B, ready=False, serving=False), C, D)}, False),
        ({"active": active(A, says(B, ready=False))}, False),  # no new sync for the sync
        ({"state": state(freeze=True)}, False),
        ({"resigned_for": 4.9}, True),
        ({"resigned_for": 5.0}, False),  # nobody took over: it comes back
        ({"returned_for": 299.0}, False),  # and does not try that again at once
        ({"returned_for": 300.0}, True),
    ],
)
def test_a_primary_that_nobody_reaches_makes_way_if_a_takeover_is_possible(changes: Any, resigns: Any) -> None:
    """ZooKeeper and its clients reach it, its peers do not: without them it takes no writes."""
    cut_off: dict[str, Any] = {
        "active": active(A, says(B, ready=False), C, D),
        "attached": {},
        "unreached_for": 20.0,
    }
    decision = decide(view(A, **{**cut_off, **changes}))
    assert decision.resign is resigns
    assert (decision.database == Stopped()) is resigns


@pytest.mark.parametrize(
    ("changes", "unreached"),
    [
        ({}, True),
        ({"online": False, "writable_for": 0.0}, True),  # it is being stopped, for this
        ({"connected": frozenset({C.id})}, False),
        ({"active": active(A, says(B, ready=False, serving=False), C, D)}, False),  # it could not take over
        ({"state": state(primary=B, sync=A, **{"async": [C, D]})}, False),
    ],
)
def test_unreached_is_a_primary_that_nobody_follows_although_the_sync_could_take_over(
    changes: Any, unreached: bool
) -> None:
    seen = view(A, **{"active": active(A, says(B, ready=False), C, D), "attached": {}, **changes})
    assert seen.state is not None
    assert Shard(seen, seen.state).unreached is unreached


# --- 7. Off the deposed list

DEPOSED = {"state": state(primary=B, sync=C, **{"async": [D]}, deposed=[A]), "online": False, "upstream": None}


@pytest.mark.parametrize(
    ("answer", "comes_off"),
    [(Comparison.PREFIX, True), (Comparison.DIVERGED, False), (Comparison.AHEAD, False), (None, False)],
)
def test_a_deposed_peer_comes_off_the_list_by_proof_alone(answer: Any, comes_off: Any) -> None:
    link = Link(B.id, GENERATION, GENERATION, answer, END) if answer else None
    decision = decide(view(A, **DEPOSED, link=link))
    assert decision.database == Stopped()
    assert (decision.write is not None) is comes_off
    if comes_off:
        assert names(written(decision)) == "B > C > D"


# --- Proof


@pytest.mark.parametrize(
    ("end", "earned"), [(Lsn(149), 2), (Lsn(150), 3), (None, 2)], ids=["not yet", "flushed", "unknown"]
)
def test_proof_comes_from_the_upstream_once_its_mark_is_flushed(end: Any, earned: Any) -> None:
    assert decide(view(C, proof=2, end=end)).memory.proof == earned


def test_proof_comes_from_ones_own_seal() -> None:
    mine = view(B, state=state(generation=4, primary=B, sync=C, **{"async": [D]}, deposed=[A], initWal=str(END)))
    assert decide(view(B, state=mine.state, seal=Seal(GENERATION, END))).database == Primary(C)
    for other in (Seal(GENERATION, Lsn(149)), Seal(GENERATION - 1, END), None):
        assert decide(view(B, state=mine.state, seal=other)).database == Stopped()


def test_proof_goes_with_the_data_it_speaks_of() -> None:
    other = decide(view(C, memory=Memory("another", GENERATION, GENERATION), link=None))
    assert other.memory.proof == 0
    gone = decide(view(C, database=Database()))
    assert gone.memory == Memory(generation=GENERATION)


def test_a_shard_of_manatee_2_is_adopted_by_its_primary() -> None:
    """Whose PostgreSQL does not run yet: without proof nothing does."""

    def inherited(at_rest: Lsn | None, **more: Any) -> View:
        database = Database(initialized=True, identifier=IDENTIFIER, version="15", at_rest=at_rest)
        others = tuple(says(p, proof=0) for p in EVERYONE if p is not A)
        return view(A, **{"cluster": None, "memory": Memory(), "active": others, "database": database, **more})

    decision = decide(inherited(Lsn(BEGINNING)))
    assert decision.database == Primary(B)
    assert decision.cluster is not None
    assert (decision.cluster.by, decision.cluster.system_identifier) == (A.id, IDENTIFIER)
    for unproven in (inherited(Lsn(BEGINNING - 1)), inherited(None), inherited(END, cluster=CLUSTER)):
        decision = decide(unproven)
        assert (decision.database, decision.resign, decision.cluster) == (Stopped(), True, None)


@pytest.mark.parametrize(
    "nothing_to_act_on",
    [{"state": None}, {"state": None, "state_problem": "primary: Field required"}],
    ids=["no state", "a state that does not validate"],
)
def test_a_peer_that_is_asked_to_leave_does_so_whatever_zookeeper_holds(nothing_to_act_on: Any) -> None:
    decision = decide(view(A, leaving=True, **nothing_to_act_on))
    assert (decision.database, decision.resign, decision.write) == (Stopped(), True, None)
