"""What `make bench` writes: every section keeps its last results, and the page says what they are."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from bench import bootstrap, decide, footprint
from bench.outage.deeds import EVENTS
from bench.page import TITLES, page, table
from bench.results import OURS, Machine, Results, Row, Section, differences
from bench.targets import TARGETS

MACHINE = Machine(
    date="2026-01-01 10:00",
    commit="abc1234",
    processor="a processor",
    cores=2,
    memory="8.0 GiB",
    kernel="Linux 6.1",
    versions={"PostgreSQL": "15.18"},
    load=0.2,
    used=1.0,
)


def outage(*seconds: float, used: float = 1.0, **others: list[float]) -> Section:
    """A section with one row; the contestants beside us by keyword."""
    return Section(
        columns={OURS: "Manatee", **{name: name.title() for name in others}},
        rows={"kill-peer": Row(what="SIGKILL of a peer", unit="s", values={OURS: seconds, **others})},
        notes=("How it was done.",),
        spans={"kill-peer": ["  100.0 ms  a  sealed"]},
        machine=MACHINE.model_copy(update={"used": used}),
    )


def test_a_cell_is_the_median_with_the_spread() -> None:
    assert table(outage(0.4, 0.2, 0.9, patroni=[20.0])) == [
        "| | Manatee | Patroni |",
        "| --- | ---: | ---: |",
        "| SIGKILL of a peer, s | **0.40** (0.20 to 0.90) | **20.00** |",
    ]


def test_a_contestant_without_figures_has_no_column_and_one_without_this_figure_a_dash() -> None:
    section = outage(0.4, floor=[], patroni=[])
    section = section.model_copy(
        update={"rows": {**section.rows, "other": Row(what="other", unit="s", values={"floor": [1]})}}
    )
    assert table(section)[0] == "| | Manatee | Floor |"
    assert table(section)[2].endswith("| **0.40** | - |")


def test_a_section_that_is_measured_again_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    raw = tmp_path / "performance.json"
    results = Results.read(raw).merged("outage", outage(0.4)).merged("decide", outage(1.0))
    results.write(raw)
    again = Results.read(raw).merged("outage", outage(0.3))
    assert again.sections["outage"].rows["kill-peer"].median(OURS) == 0.3
    assert again.sections["decide"] == results.sections["decide"]


def test_a_target_is_met_by_the_median_and_where_it_is_not_the_page_says_where_the_time_goes() -> None:
    met = page(Results().merged("outage", outage(0.9, 0.4, 0.3)))
    assert "| SIGKILL of a peer | at most 0.50 s | 0.40 s | met |" in met
    assert "sealed" not in met
    missed = page(Results().merged("outage", outage(0.9, 0.6, 0.3)))
    assert "| SIGKILL of a peer | at most 0.50 s | 0.60 s | **not met** |" in missed
    assert "  100.0 ms  a  sealed" in missed


def test_a_busy_machine_and_missing_rows_are_not_hidden() -> None:
    quiet = page(Results().merged("outage", outage(0.4)))
    assert "commit abc1234; 2 x a processor, 8.0 GiB, Linux 6.1; PostgreSQL 15.18; load average 0.2" in quiet
    assert "busy" not in quiet
    assert "missing" not in quiet
    assert "busy" in page(Results().merged("outage", outage(0.4, used=30.0)))
    lost = page(Results().merged("outage", outage(0.4).model_copy(update={"missing": 2, "failed": ("it stopped",)})))
    assert "**2 acknowledged rows are missing.**" in lost
    assert "it stopped" in lost


def test_a_median_outside_the_recorded_spread_is_named_and_one_inside_is_not() -> None:
    before = outage(0.2, 0.3, 0.4, patroni=[20.0, 21.0])
    assert differences(before, outage(0.1, 0.4, 0.9, patroni=[20.5])) == []
    assert differences(before, outage(0.404)) == []  # as the table shows it
    assert differences(outage(0.2), outage(0.3)) == []  # one value has no spread
    (line,) = differences(before, outage(0.2, 0.5, 0.5, patroni=[20.5]))
    assert line == "SIGKILL of a peer, Manatee: 0.50 s, recorded 0.30 (0.20 to 0.40)"


def test_every_target_is_about_something_that_is_measured() -> None:
    run = dict.fromkeys((*bootstrap.PHASES, "bytes", "seconds", "memory", "processor"), 1.0)
    way = bootstrap.Way(seconds=[1.0], bytes=1.0, runs=[run])
    measured: dict[str, Collection[str]] = {
        "outage": EVENTS,
        "footprint": footprint.ROWS,
        "decide": decide.cases(),
        "bootstrap": bootstrap.Measured(way, way, way, way).section("zfs", 1).rows,
    }
    for target in TARGETS:
        assert target.row in measured[target.section]
        assert target.section in TITLES
