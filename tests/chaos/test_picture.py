"""The picture is one that a browser can show, with everything on it."""

from __future__ import annotations

from lxml import etree

from tests.chaos.history import Event
from tests.chaos.picture import LEFT, WIDTH, draw
from tests.chaos.test_checker import operation

SVG = "{http://www.w3.org/2000/svg}"


def test_roles_faults_outages_and_findings_are_on_it() -> None:
    events = [
        Event(
            0.0, "generation", "shard", "generation 1", {"number": 1, "roles": {"peer1": "primary", "peer2": "sync"}}
        ),
        Event(4.0, "fault", "kill-peer", "SIGKILL to all of <peer1>", {"seconds": 5.0}),
        Event(5.0, "fault", "isolate", "peer2 & client1", {"seconds": 5.0}),
        Event(3.1, "outage", "shard", "no write for 9.0 s", {"seconds": 9.0}),
        Event(9.0, "generation", "shard", "generation 2", {"number": 2, "roles": {"peer2": "primary"}}),
        Event(20.0, "finding", "checker", "lost", None),
    ]
    operations = [operation("insert", at, at) for at in (1, 2, 3, 12, 13)]
    root = etree.fromstring(draw("seed 1", ["peer1", "peer2"], events, operations).encode())
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles == [
        "no write for 9.0 s", "generation 1", "generation 1", "generation 2",
        "SIGKILL to all of <peer1>", "peer2 & client1", "lost",
    ]  # fmt: skip
    for rect in list(root.iter(f"{SVG}rect"))[1:]:
        assert LEFT <= float(rect.get("x")) <= float(rect.get("x")) + float(rect.get("width")) <= WIDTH


def test_of_nothing_there_is_one_too() -> None:
    etree.fromstring(draw("", ["peer1"], [], []).encode())
