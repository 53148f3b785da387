"""The checker finds what it is for, and nothing where nothing is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.checker import INVENTED, LISTS, LOST, ONE_WRITER, REGISTERS, Tables, check, outages, stale_reads
from tests.chaos.history import Operation


def operation(kind: Any, at: float, value: int = 0, **more: Any) -> Operation:
    """One that took a tenth of a second, by default at the first peer on timeline 1."""
    given = {"client": "c", "sent": at, "ended": at + 0.1, "outcome": "ok", "peer": "A", "timeline": 1, **more}
    return Operation(kind=kind, began=at, value=value, **given)


def promises(operations: list[Operation], **tables: Any) -> list[str]:
    given: dict[str, Any] = {"inserts": frozenset(), "registers": {}, "lists": {}, **tables}
    return [finding.promise for finding in check(operations, Tables(**given))]


def test_rows_acknowledged_are_there_and_rows_of_unknown_fate_may_be() -> None:
    history = [operation("insert", 1, 1), operation("insert", 2, 2, outcome="unknown")]
    assert promises(history, inserts=frozenset({1})) == []
    assert promises(history, inserts=frozenset({1, 2})) == []
    assert promises(history, inserts=frozenset({2})) == [LOST]


def test_rows_that_were_refused_or_never_sent_are_invented() -> None:
    history = [operation("insert", 1, 1, outcome="no")]
    assert promises(history, inserts=frozenset({1})) == [INVENTED]
    assert promises(history, inserts=frozenset({7})) == [INVENTED]


def register(at: float, value: int, version: int, token: int, **more: Any) -> Operation:
    return operation("register", at, value, seen=[version, token], **more)


def test_a_register_whose_writes_follow_each_other() -> None:
    history = [register(1, 11, 0, 0), register(2, 12, 1, 11, outcome="unknown"), register(3, 13, 2, 12)]
    assert promises(history, registers={0: (3, 13)}) == []


def test_a_register_whose_last_write_is_of_unknown_fate() -> None:
    history = [
        register(1, 11, 0, 0),
        register(2, 12, 1, 11, outcome="unknown"),
        register(3, 13, 1, 11, outcome="unknown"),
    ]
    for final in ((1, 11), (2, 12), (2, 13)):
        assert promises(history, registers={0: final}) == []


@pytest.mark.parametrize(
    ("history", "final", "promise"),
    [
        ([register(1, 11, 0, 0), register(2, 12, 0, 0)], (1, 12), REGISTERS),
        ([register(1, 11, 0, 0), register(2, 12, 1, 99)], (2, 12), REGISTERS),
        ([register(1, 11, 1, 12), register(2, 12, 0, 0)], (2, 11), REGISTERS),
        ([register(1, 11, 0, 0), register(2, 12, 1, 11)], (1, 11), LOST),
        ([register(1, 11, 0, 0)], (1, 12), LOST),
        ([register(1, 11, 0, 0)], (9, 999), REGISTERS),
        ([register(1, 11, 0, 0), register(2, 12, 1, 77, outcome="unknown")], (2, 12), REGISTERS),
        (
            [
                register(1, 11, 0, 0),
                register(1, 10, 0, 0, outcome="unknown"),
                register(2, 12, 1, 10, outcome="unknown"),
                register(3, 13, 2, 12),
            ],
            (3, 13),
            REGISTERS,
        ),
    ],
    ids=[
        "an update is lost",
        "found what nobody wrote",
        "back in time",
        "the last is lost",
        "the last is another",
        "ends with what nobody wrote",
        "a write that must have happened found what nobody wrote",
        "an update is lost, as a write of unknown fate shows",
    ],
)
def test_a_register_that_is_not_linearizable(history: list[Operation], final: tuple[int, int], promise: str) -> None:
    assert promise in promises(history, registers={0: final})


def append(at: float, value: int, *seen: int, **more: Any) -> Operation:
    return operation("append", at, value, seen=list(seen), **more)


def test_a_list_that_is_appended_to() -> None:
    history = [append(1, 1, 1), append(2, 2, 1, 2), append(3, 3, outcome="unknown"), append(4, 4, 1, 2, 3, 4)]
    assert promises(history, lists={0: [1, 2, 3, 4]}) == []


@pytest.mark.parametrize(
    ("history", "final", "promise"),
    [
        ([append(1, 1, 1), append(2, 2, 1, 2)], [1], LOST),
        ([append(1, 1, 1), append(2, 2, 2)], [1, 2], LISTS),
        ([append(1, 1, 2, 1), append(2, 2, 2)], [2, 1], LISTS),
        ([append(1, 1, 1)], [1, 9], INVENTED),
        ([append(1, 1, 1)], [1, 1], INVENTED),
    ],
    ids=["the last is lost", "found another beginning", "back in time", "nobody appended it", "twice"],
)
def test_a_list_that_is_not_what_was_appended(history: list[Operation], final: list[int], promise: str) -> None:
    assert promise in promises(history, lists={0: final})


def test_writers_one_after_the_other() -> None:
    history = [
        operation("insert", 1, 1),
        operation("insert", 2, 2, peer="B", timeline=2),
        operation("insert", 3, 3, timeline=3),
    ]
    assert promises(history, inserts=frozenset({1, 2, 3})) == []


def test_an_answer_that_was_on_its_way_is_no_second_writer() -> None:
    history = [operation("insert", 1, 1, ended=3.0), operation("insert", 2, 2, peer="B", timeline=2)]
    assert promises(history, inserts=frozenset({1, 2})) == []


def test_a_deposed_primary_that_acknowledges_is_a_second_writer() -> None:
    history = [operation("insert", 1, 1), operation("insert", 2, 2, peer="B", timeline=2), operation("insert", 3, 3)]
    assert promises(history, inserts=frozenset({1, 2, 3})) == [ONE_WRITER]


def test_two_servers_never_acknowledge_on_one_timeline() -> None:
    history = [operation("insert", 1, 1), operation("insert", 2, 2, peer="B")]
    assert promises(history, inserts=frozenset({1, 2})) == [ONE_WRITER]


def test_stale_reads_are_counted() -> None:
    history = [append(1, 1, 1), operation("read", 2, seen=[]), operation("read", 3, seen=[1, 9], peer="B")]
    stale = stale_reads(history, {0: [1]})
    assert (stale.old, stale.unconfirmed, stale.by_peer) == (1, 1, {"A": 1, "B": 1})


def test_outages_lie_between_acknowledgements() -> None:
    history = [operation("insert", at, at) for at in (1, 2, 9)]
    assert [(outage.began, outage.ended) for outage in outages(history, longer_than=2)] == [(2.1, 9.1)]
    assert outages(history, longer_than=2, pauses=[5.0]) == []
