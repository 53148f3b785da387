"""The wire models: what ZooKeeper holds is read and written as it was, with the fields that nobody here knows."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manatee.cluster import (
    BadDocument,
    Cluster,
    ClusterState,
    Freeze,
    Peer,
    PeerStatus,
    Promote,
    Role,
    application_name,
    election_data,
    written_time,
)
from manatee.lsn import Lsn


def peer(number: int) -> dict[str, Any]:
    ip = f"10.65.68.{number}"
    return {
        "id": f"{ip}:5432:12345",
        "ip": ip,
        "zoneId": f"{number:08x}-5fe7-4e79-899e-c6b0f540b9c0",
        "pgUrl": f"tcp://postgres@{ip}:5432/postgres",
        "backupUrl": f"http://{ip}:12345",
    }


STATE: dict[str, Any] = {
    "generation": 77,
    "primary": peer(14),
    "sync": peer(51),
    "async": [peer(112), peer(113)],
    "deposed": [peer(120)],
    "initWal": "B6/952E6978",
    "freeze": {"date": "2026-01-16T08:08:33.000Z", "reason": "maintenance"},
    "promote": {
        "id": "10.65.68.112:5432:12345",
        "role": "async",
        "asyncIndex": 0,
        "generation": 77,
        "expireTime": "2026-01-16T08:09:03.000Z",
    },
}


def state(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(STATE), **changes}


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in copy.deepcopy(STATE).items() if name not in names}


unknown = st.dictionaries(
    st.text(min_size=1).map(lambda name: f"x-{name}"),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


@given(unknown, unknown, unknown, unknown)
def test_a_round_trip_keeps_every_field(
    top: dict[str, Any], primary: dict[str, Any], freeze: dict[str, Any], promote: dict[str, Any]
) -> None:
    document = state() | top
    document["primary"] |= primary
    document["async"][1] |= primary
    document["freeze"] |= freeze
    document["promote"] |= promote
    assert json.loads(ClusterState.parse(json.dumps(document)).content()) == document


@given(unknown)
def test_a_rewritten_state_keeps_what_was_not_changed(extra: dict[str, Any]) -> None:
    before = ClusterState.of(state() | extra)
    after = before.replace(generation=78, sync=before.asyncs[0], asyncs=before.asyncs[1:], init_wal=Lsn.parse("B7/1"))
    expected = state(generation=78, sync=peer(112), initWal="B7/00000001") | extra
    expected["async"] = [peer(113)]
    assert after.document() == expected


def test_fields_are_taken_out_only_by_name() -> None:
    after = ClusterState.of(state()).replace(without=("promote",))
    assert after.document() == without("promote")
    assert after.frozen


@pytest.mark.parametrize("absent", ["deposed", "freeze", "promote"])
def test_what_old_states_lack_is_not_added(absent: str) -> None:
    document = without(absent)
    assert ClusterState.of(document).document() == document


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (without("generation"), "generation"),
        (state(generation="77"), "generation"),
        (state(generation=True), "generation"),
        (state(generation=-1), "generation"),
        (state(initWal=12), "initWal"),
        (state(initWal="B6952E6978"), "initWal"),
        (state(primary=None), "primary"),
        (without("sync"), "sync"),
        (state(sync=[]), "sync"),
        (without("async"), "async"),
        (state(**{"async": {}}), "async"),
        (state(**{"async": [peer(1), {**peer(2), "pgUrl": 5}]}), "async.1.pgUrl"),
        (state(deposed=[{"id": "x"}]), "deposed.0.ip"),
        (state(freeze="yes"), "freeze"),
        (state(oneNodeWriteMode="yes"), "oneNodeWriteMode"),
        (state(promote="now"), "promote"),
        ([], "document"),
        (None, "document"),
    ],
)
def test_a_bad_document_gives_the_path_of_the_bad_field(document: object, path: str) -> None:
    with pytest.raises(BadDocument) as caught:
        ClusterState.parse(json.dumps(document))
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xfd", b'{"generation": NaN'])
def test_what_is_not_json_is_a_bad_document(content: bytes) -> None:
    with pytest.raises(BadDocument, match="not JSON"):
        ClusterState.parse(content)


def test_a_missing_sync_is_only_right_in_one_node_write_mode() -> None:
    with pytest.raises(BadDocument, match="sync is null"):
        ClusterState.of(state(sync=None))
    assert ClusterState.of(state(sync=None, oneNodeWriteMode=True)).sync is None


def test_a_peer_is_named_once() -> None:
    with pytest.raises(BadDocument, match=r"10\.65\.68\.14:5432:12345 is named more than once"):
        ClusterState.of(state(deposed=[peer(14)]))


def test_roles_are_what_the_state_says() -> None:
    read = ClusterState.of(state())
    roles = {number: read.role_of(peer(number)["id"]) for number in (14, 51, 112, 113, 120, 200)}
    assert roles == {
        14: Role.PRIMARY,
        51: Role.SYNC,
        112: Role.ASYNC,
        113: Role.ASYNC,
        120: Role.DEPOSED,
        200: Role.UNASSIGNED,
    }
    alone = ClusterState.of(state(oneNodeWriteMode=True))
    assert {alone.role_of(peer(number)["id"]) for number in (51, 112, 120)} == {Role.UNASSIGNED}


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [(None, False), (False, False), (True, True), (STATE["freeze"], True), ({"note": "no date"}, True)],
)
def test_every_way_to_write_a_freeze_is_understood(freeze: object, frozen: bool) -> None:
    read = ClusterState.of(state(freeze=freeze))
    assert read.frozen is frozen
    assert read.document()["freeze"] == freeze


def test_a_promote_request_is_kept_whatever_it_says() -> None:
    odd = {"id": 5, "role": ["sync"], "expireTime": "tomorrow"}
    read = ClusterState.of(state(promote=odd))
    assert read.document()["promote"] == odd
    assert read.promote is not None
    assert read.promote.expires() < 0


def test_times_are_written_as_they_are_read() -> None:
    written = written_time(1768550943.0007)
    assert written == "2026-01-16T08:09:03.000Z"
    assert Promote(expire_time=written).expires() == datetime(2026, 1, 16, 8, 9, 3, tzinfo=UTC).timestamp()


def test_an_identity_has_the_fields_that_older_peers_read() -> None:
    one = Peer.of(peer(14))
    assert election_data(one) == {
        "zoneId": one.zone_id,
        "ip": "10.65.68.14",
        "pgUrl": "tcp://postgres@10.65.68.14:5432/postgres",
        "backupUrl": "http://10.65.68.14:12345",
        "status": True,
    }
    assert one.label == "0000000e"
    assert one.postgres_port == 5432


def test_a_status_names_its_fields_as_the_design_does() -> None:
    status = PeerStatus(initialized=True, system_identifier="7123456789012345678", lsn=Lsn.parse("0/3000060"))
    assert status.document() == {
        "initialized": True,
        "systemIdentifier": "7123456789012345678",
        "lsn": "0/03000060",
    }


@pytest.mark.parametrize(("said", "port"), [(5433, 5433), (70000, None), (0, None), ("5433", None), (True, None)])
def test_a_status_with_what_is_no_port_is_worth_as_much_without_it(said: object, port: int | None) -> None:
    status = PeerStatus.of({"initialized": True, "serving": True, "statusPort": said})
    assert (status.serving, status.status_port) == (True, port)


def test_a_system_identifier_is_a_string() -> None:
    with pytest.raises(BadDocument, match="systemIdentifier"):
        PeerStatus.of({"initialized": True, "systemIdentifier": 7123456789012345678})
    with pytest.raises(BadDocument, match="systemIdentifier"):
        Cluster.of({"created": "now", "by": "a", "systemIdentifier": 1})


def test_models_are_not_changed_in_place() -> None:
    read = ClusterState.of(state())
    with pytest.raises(ValueError, match="frozen"):
        read.generation = 78  # type: ignore[misc]
    assert Freeze(date="now").reason == ""


@given(st.text(min_size=1, max_size=100), st.text(min_size=1, max_size=100))
def test_two_peers_never_share_an_application_name(one: str, other: str) -> None:
    names = []
    for text in (one, other):
        url = f"tcp://postgres@{text}:5432/postgres"
        name = application_name(Peer(id=text, ip=text, zone_id=text, pg_url=url))
        assert len(name.encode()) <= 63
        names.append(name)
    assert (names[0] == names[1]) == (one == other)
