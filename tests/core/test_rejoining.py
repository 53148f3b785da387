"""What becomes of data that have diverged, by example; and what an operator's word is good for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from manatee.cluster import ClusterState, Comparison
from sitter.decide import decide
from sitter.view import (
    Compare,
    Decision,
    Incomparable,
    Keep,
    Link,
    Parting,
    Primary,
    Rejoin,
    Restore,
    Rewind,
    Standby,
    Stopped,
    View,
)
from tests.core.views import END, GENERATION, A, B, C, D, E, active, says, state, view

DEPOSED = {"state": state(primary=B, sync=C, **{"async": [D]}, deposed=[A]), "online": False, "upstream": None}


def diverged(upstream: Any, *, proof: int = GENERATION, parting: Parting = Parting.TIMELINES) -> Link:
    return Link(upstream.id, GENERATION, proof, Comparison.DIVERGED, END, "at 0/96 on timeline 2", parting)


def deposed(rejoin: Rejoin, **changes: Any) -> Decision:
    """What A does, which is deposed, proven of the generation before, and has diverged from B."""
    return decide(view(A, **{**DEPOSED, "proof": GENERATION - 1, "link": diverged(B), "rejoin": rejoin, **changes}))


@pytest.mark.parametrize(
    ("rejoin", "wanted"),
    [
        (Rejoin.NEVER, Stopped()),
        (Rejoin.SAFE, Stopped()),
        (Rejoin.REWIND, Rewind(B)),
        (Rejoin.REBUILD, Rewind(B)),
    ],
)
def test_the_policy_says_what_becomes_of_diverged_data(rejoin: Rejoin, wanted: Any) -> None:
    decision = deposed(rejoin)
    assert decision.database == wanted
    assert decision.diverged == "from zone-B: at 0/96 on timeline 2"
    assert decision.memory.proof == (0 if isinstance(wanted, Rewind) else GENERATION - 1)


@pytest.mark.parametrize(
    "changes",
    [{"unrewindable": "no checksums"}, {"link": diverged(B, parting=Parting.BYTES)}],
    ids=["pg_rewind refuses", "it sees no difference"],
)
def test_what_cannot_be_rewound_is_restored_if_that_is_allowed(changes: Any) -> None:
    rewind, rebuild = deposed(Rejoin.REWIND, **changes), deposed(Rejoin.REBUILD, **changes)
    assert rewind.database == Stopped()
    assert "cannot be rewound" in rewind.reason
    assert rebuild.database == Restore((C, D, B))
    assert rebuild.memory.proof == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"link": diverged(B, parting=Parting.DATABASE)},
        {"link": diverged(B, proof=GENERATION - 1)},
        {"proof": GENERATION},
        {"write_open": True},
        {"link": replace(diverged(B), answer=Comparison.AHEAD)},
    ],
    ids=["another database", "an upstream without proof", "proven data", "a write that is open", "ahead"],
)
def test_data_are_given_up_only_if_it_is_certain_that_nothing_is_lost(changes: Any) -> None:
    assert deposed(Rejoin.REBUILD, **changes).database == Stopped()


@pytest.mark.parametrize(
    ("rejoin", "changes", "restores"),
    [
        (Rejoin.REBUILD, {}, True),
        (Rejoin.REWIND, {}, False),
        (Rejoin.REBUILD, {"upstream": C.id}, False),
        (Rejoin.REBUILD, {"generation": GENERATION - 1}, False),
        (Rejoin.REBUILD, {"proof": GENERATION - 1}, False),
    ],
    ids=["rebuild", "rewind", "another upstream", "another generation", "an upstream without proof"],
)
def test_data_that_cannot_be_compared_any_more_are_restored_if_that_is_allowed(
    rejoin: Rejoin, changes: Any, restores: bool
) -> None:
    found = replace(Incomparable(B.id, GENERATION, GENERATION, "recycled"), **changes)
    decision = deposed(rejoin, link=None, incomparable=found)
    assert decision.database == (Restore((C, D, B)) if restores else Stopped())


@pytest.mark.parametrize(
    ("with_whom", "who", "wanted"),
    [
        (C, active(A, B, C, D), Compare(B, GENERATION, GENERATION)),
        (C, active(A, C, D), Compare(A, GENERATION, GENERATION)),
        (B, active(A, B, C, D), Compare(A, GENERATION, GENERATION)),
        (A, active(A, B, C, D), Compare(A, GENERATION, GENERATION)),
        (C, active(C, D), Compare(C, GENERATION, GENERATION)),
    ],
    ids=["link", "the next is absent", "two links", "nobody is left", "nobody else"],
)
def test_data_without_proof_are_compared_with_whoever_still_has_the_wal(with_whom: Any, who: Any, wanted: Any) -> None:
    """A link that was restored later than this peer does not hold the WAL that the comparison begins with."""
    found = Incomparable(with_whom.id, GENERATION, GENERATION, "recycled")
    here = {"online": False, "upstream": None, "streaming": False, "link": None, "proof": 0, "active": who}
    decision = decide(view(D, **here, incomparable=found))
    assert (decision.compare, decision.database) == (wanted, Stopped())


def test_proven_data_go_on_with_their_own_link_although_they_do_not_run_yet() -> None:
    """They run, and so catch up with it, or begin to be compared later."""
    found = Incomparable(C.id, GENERATION, GENERATION, "recycled")
    decision = decide(view(D, online=False, upstream=None, streaming=False, link=None, incomparable=found))
    assert (decision.compare, decision.database) == (Compare(C, GENERATION, GENERATION), Standby(None))


def test_data_that_nobody_can_be_compared_with_are_restored_if_that_is_allowed() -> None:
    here = {"online": False, "upstream": None, "streaming": False, "link": None, "proof": 0, "rejoin": Rejoin.REBUILD}
    with_sync = Incomparable(C.id, GENERATION, GENERATION, "recycled")
    assert decide(view(D, **here, incomparable=with_sync)).database == Stopped()
    with_primary = Incomparable(A.id, GENERATION, GENERATION, "recycled")
    assert decide(view(D, **here, incomparable=with_primary)).database == Restore((B, C, A))


@pytest.mark.parametrize(("proof", "wanted"), [(0, Rewind(A)), (GENERATION - 1, Stopped())])
def test_a_sync_that_ever_had_proof_keeps_its_data(proof: int, wanted: Any) -> None:
    here = {"link": diverged(A), "online": False, "upstream": None, "rejoin": Rejoin.REBUILD}
    assert decide(view(B, **here, proof=proof)).database == wanted


def test_a_rewind_needs_a_primary_that_serves() -> None:
    present = active(says(A, serving=False, ready=False), B, C, D)
    here = {"link": diverged(B), "upstream": None, "rejoin": Rejoin.REWIND, "active": present}
    decision = decide(view(C, **here, proof=GENERATION - 1))
    assert decision.database == Stopped()
    assert "zone-A to serve" in str(decision.waiting_for)


@pytest.mark.parametrize("doing", [Rewind(B), Restore((C, D))])
def test_what_has_begun_goes_on_although_the_comparison_is_void(doing: Any) -> None:
    decision = deposed(Rejoin.REBUILD, replacing=doing, link=None, proof=0)
    assert (decision.database, decision.memory.proof) == (doing, 0)


@pytest.mark.parametrize(
    ("source", "begun", "wanted"),
    [(B, False, Rewind(B)), (C, False, Stopped()), (C, True, Rewind(C)), (D, True, Rewind(D))],
    ids=["the primary", "no primary any more", "too late", "absent, too late"],
)
def test_a_rewind_from_who_leads_no_longer_is_given_up_while_that_harms_nothing(
    source: Any, begun: bool, wanted: Any
) -> None:
    here = {"replacing": Rewind(source), "rewind_begun": begun, "link": None, "proof": 0, "active": active(A, B, C)}
    assert deposed(Rejoin.REWIND, **here).database == wanted


def test_a_rewind_from_who_is_absent_is_given_up_while_that_harms_nothing() -> None:
    here = {"replacing": Rewind(B), "link": None, "proof": 0, "active": active(A, C, D)}
    assert deposed(Rejoin.REWIND, **here).database == Stopped()


@pytest.mark.parametrize("doing", [Rewind(A), Restore((B, C))])
def test_what_has_begun_goes_on_while_the_peer_is_in_no_list(doing: Any) -> None:
    """It was reaped, or left for a moment: a rewind that is given up leaves nothing of use."""
    here = {"online": False, "upstream": None, "streaming": False, "link": None, "proof": 0}
    decision = decide(view(E, **here, replacing=doing))
    assert (decision.database, decision.memory.proof) == (doing, 0)
    alone = state(sync=None, **{"async": []}, oneNodeWriteMode=True, freeze=True)
    assert decide(view(E, **here, replacing=doing, state=alone)).database == Stopped()


def test_a_restore_goes_on_while_one_of_its_sources_is_present() -> None:
    """Nobody serves in the moment in which the generation changes: hours of a transfer would be lost."""
    before = active(A, *(says(one, generation=GENERATION - 1) for one in (B, C)))
    doing = Restore((B, D))
    assert deposed(Rejoin.REBUILD, replacing=doing, link=None, proof=0, active=before).database == doing
    for gone in (D, A):  # absent, and deposed
        decision = deposed(Rejoin.REBUILD, replacing=Restore((gone,)), link=None, proof=0, active=before)
        assert decision.database == Stopped()


@pytest.mark.parametrize(
    ("rejoin", "wanted"), [(Rejoin.SAFE, Stopped()), (Rejoin.REWIND, Restore((C, D, B)))], ids=["safe", "rewind"]
)
def test_what_a_rewind_left_half_done_is_never_started(rejoin: Rejoin, wanted: Any) -> None:
    prefix = Link(B.id, GENERATION, GENERATION, Comparison.PREFIX, END)
    decision = deposed(rejoin, torn=True, link=prefix, proof=0)
    assert (decision.database, decision.write) == (wanted, None)
    as_async = decide(view(C, torn=True, proof=0, rejoin=rejoin))
    assert not isinstance(as_async.database, Standby | Primary | Keep)


def test_never_leaves_a_deposed_peer_to_the_operator() -> None:
    prefix = Link(B.id, GENERATION, GENERATION, Comparison.PREFIX, END)
    decision = deposed(Rejoin.NEVER, link=prefix)
    assert (decision.database, decision.write) == (Stopped(), None)
    assert "postgres.rejoin is never" in decision.reason
    assert decide(view(C, rejoin=Rejoin.NEVER)).database == Standby(B)


# --- An operator's word

WORD = {"id": C.id, "generation": GENERATION, "date": "2026-01-01T00:00:00.000Z", "reason": "both disks are gone"}


def forced(**changes: Any) -> View:
    """What C knows, which an operator has made the primary, with D as its sync; A and B are absent."""
    given: dict[str, Any] = {
        "state": _forced(),
        "active": active(C, says(D, serving=False, ready=False, proof=1, running=False)),
        "proof": 1,
        "running": False,
        "online": False,
        "link": None,
        **changes,
    }
    return view(C, **given)


def _forced(**changes: Any) -> ClusterState:
    return state(primary=C, sync=D, **{"async": []}, deposed=[A, B], initWal="0/0", override={**WORD, **changes})


def test_the_word_is_proof_and_marked_as_taken_before_anything_runs() -> None:
    decision = decide(forced())
    assert decision.database == Stopped()
    assert decision.memory.proof == GENERATION
    assert decision.write is not None
    assert decision.write.state.override is not None
    assert decision.write.state.override.taken == "2023-11-14T22:13:20.000Z"
    assert decide(forced(state=decision.write.state, proof=GENERATION)).database == Primary(D)


@pytest.mark.parametrize(
    ("unusable", "resigns"),
    [({"torn": True}, True), ({"replacing": Rewind(A)}, False), ({"replacing": Restore((B,))}, False)],
    ids=["a rewind was cut short", "it is being rewound", "it is being restored"],
)
@pytest.mark.parametrize("proof", [0, GENERATION])
def test_the_word_is_not_for_data_that_are_being_replaced_or_were_half_rewound(
    unusable: Any, resigns: bool, proof: int
) -> None:
    """Promise 3, and it must not be taken either: it was given for other data."""
    decision = decide(forced(**unusable, proof=proof))
    assert (decision.database, decision.write, decision.resign) == (Stopped(), None, resigns)
    assert decision.memory.proof == proof
    taken = decide(forced(**unusable, proof=proof, state=_forced(taken="2026-01-01T00:00:01.000Z")))
    assert taken.database == Stopped()


@pytest.mark.parametrize(
    "not_yet",
    [
        {"active": active(C, says(D, generation=GENERATION - 1, running=False))},
        {"active": active(C, says(D, running=True))},
        {"active": active(C, says(D))},
        {"active": active(C)},
        {"running": True},
        {"write_open": True},
    ],
    ids=["it acts on what was", "it still runs", "it does not say", "it has gone", "we still run", "a write is open"],
)
def test_the_word_is_not_taken_beside_who_may_still_act_on_what_was(not_yet: Any) -> None:
    decision = decide(forced(**not_yet))
    assert (decision.database, decision.write) == (Stopped(), None)


@pytest.mark.parametrize(
    "no_word",
    [
        {"state": _forced(taken="2026-01-01T00:00:01.000Z")},
        {"state": _forced(generation=GENERATION - 1)},
        {"state": _forced(id=D.id)},
    ],
    ids=["taken", "of another generation", "about another peer"],
)
def test_the_word_counts_once_in_its_generation_for_its_peer(no_word: Any) -> None:
    decision = decide(forced(**no_word))
    assert (decision.database, decision.resign, decision.memory.proof) == (Stopped(), True, 1)


def test_the_next_generation_drops_the_word() -> None:
    taken = state(override={**WORD, "id": A.id, "taken": "2026-01-01T00:00:01.000Z"})
    decision = decide(view(A, state=taken, active=active(A, C, D), attached={C.id: END}, sealed=END))
    assert decision.write is not None
    assert decision.write.state.generation == GENERATION + 1
    assert decision.write.state.override is None


def test_a_sync_whose_data_prove_nothing_does_not_contradict_the_primary() -> None:
    says_so = says(B, serving=False, ready=False, compares=Comparison.DIVERGED, proof=0, unready_for=99.0)
    decision = decide(view(A, active=active(A, says_so, C, D), attached={C.id: END}))
    assert not decision.resign
    assert decision.database == Primary(B, sealed=True)
