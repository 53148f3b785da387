"""A picture of a run, time from left to right: who had which role, what was acknowledged, what was wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import pairwise

from tests.chaos.history import Event, Operation

WIDTH, LEFT, ROW, GAP = 1600, 130, 26, 10
Scale = Callable[[float], float]
"""Where a moment is on the picture."""
COLOURS = {"primary": "#2f7ed8", "sync": "#8bbc21", "async": "#c9d8a5", "deposed": "#910000"}
FAULT, OUTAGE, FINDING = "#f28f43", "#e8a0a0", "#d00000"


def draw(title: str, nodes: Sequence[str], events: Sequence[Event], operations: Sequence[Operation]) -> str:
    """The SVG document."""
    times = [event.at for event in events] + [operation.ended for operation in operations]
    began, ended = min(times, default=0.0), max(times, default=1.0)
    scale = (WIDTH - LEFT - 20) / max(ended - began, 1.0)

    def x(at: float) -> float:
        return round(LEFT + (at - began) * scale, 1)

    lanes = _lanes(events)
    depth = max((lane for lane, _, _ in lanes), default=0) + 1
    acknowledged_at = 40 + len(nodes) * (ROW + GAP)
    faults_at = acknowledged_at + 80
    height = faults_at + depth * 16 + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="18" font-size="14">{escape(title)}</text>',
        *_axis(began, ended, x, height),
        *_outages(events, x, height),
        *_roles(nodes, events, ended, x),
        *_rate(operations, began, ended, x, acknowledged_at),
        *_faults(lanes, ended, x, faults_at),
        *_findings(events, x, height),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axis(began: float, ended: float, x: Scale, height: int) -> Iterable[str]:
    step = next(each for each in (5, 10, 30, 60, 120, 300, 600, 1800) if (ended - began) / each <= 40 or each == 1800)
    for number in range(int((ended - began) // step) + 1):
        place = x(began + number * step)
        yield f'<line x1="{place}" x2="{place}" y1="26" y2="{height - 16}" stroke="#eeeeee"/>'
        yield f'<text x="{place}" y="{height - 4}" fill="#777777">{number * step} s</text>'


def _roles(nodes: Sequence[str], events: Sequence[Event], ended: float, x: Scale) -> Iterable[str]:
    states = [event for event in events if event.kind == "generation" and event.detail]
    for row, node in enumerate(nodes):
        top = 32 + row * (ROW + GAP)
        yield f'<text x="8" y="{top + 17}">{escape(node)}</text>'
        for state, following in pairwise([*states, None]):
            assert state is not None
            assert state.detail is not None
            role = state.detail["roles"].get(node)
            if role is None:
                continue
            until = following.at if following else ended
            wide = max(1.0, x(until) - x(state.at))
            yield (
                f'<rect x="{x(state.at)}" y="{top}" width="{wide:.1f}" height="{ROW}" fill="{COLOURS[role]}">'
                f"<title>{escape(state.text)}</title></rect>"
            )
    numbers = [(state.at, state.detail["number"]) for state in states if state.detail]
    for before, (at, number) in zip([None, *(each for _, each in numbers)], numbers, strict=False):
        if before != number:
            yield f'<text x="{x(at) + 2}" y="30" fill="#555555">g{number}</text>'


def _rate(operations: Sequence[Operation], began: float, ended: float, x: Scale, top: int) -> Iterable[str]:
    """Acknowledged writes, half a second to a step."""
    counts = [0] * (int((ended - began) * 2) + 1)
    for operation in operations:
        if operation.acknowledged and operation.kind != "read":
            counts[int((operation.ended - began) * 2)] += 1
    highest = max([*counts, 1])
    points = " ".join(
        f"{x(began + place / 2)},{top + 60 - 56 * count / highest:.1f}" for place, count in enumerate(counts)
    )
    yield f'<text x="8" y="{top + 20}">acknowledged</text><text x="8" y="{top + 34}">up to {highest * 2}/s</text>'
    yield f'<polyline points="{points}" fill="none" stroke="#333333"/>'


def _lanes(events: Sequence[Event]) -> list[tuple[int, Event, float]]:
    """Each fault with when it was over, in the first lane that is free."""
    free: list[float] = []
    placed = []
    for event in (event for event in events if event.kind == "fault"):
        until = event.at + float((event.detail or {}).get("seconds", 0.0))
        lane = next((number for number, at in enumerate(free) if at <= event.at), len(free))
        # What is written on it needs room, too.
        free[lane : lane + 1] = [max(until, event.at + 8.0)]
        placed.append((lane, event, until))
    return placed


def _faults(lanes: Iterable[tuple[int, Event, float]], ended: float, x: Scale, top: int) -> Iterable[str]:
    yield f'<text x="8" y="{top + 11}">faults</text>'
    for lane, event, until in lanes:
        place, wide = x(event.at), max(3.0, x(min(until, ended)) - x(event.at))
        y = top + lane * 16
        yield (
            f'<rect x="{place}" y="{y}" width="{wide:.1f}" height="13" fill="{FAULT}" fill-opacity="0.6">'
            f"<title>{escape(event.text)}</title></rect>"
            f'<text x="{place + 1}" y="{y + 10}" font-size="9">{escape(event.subject)}</text>'
        )


def _outages(events: Sequence[Event], x: Scale, height: int) -> Iterable[str]:
    for event in (event for event in events if event.kind == "outage"):
        wide = max(1.0, x(event.at + float((event.detail or {}).get("seconds", 0.0))) - x(event.at))
        yield (
            f'<rect x="{x(event.at)}" y="26" width="{wide:.1f}" height="{height - 42}" fill="{OUTAGE}"'
            f' fill-opacity="0.5"><title>{escape(event.text)}</title></rect>'
        )


def _findings(events: Sequence[Event], x: Scale, height: int) -> Iterable[str]:
    for event in (event for event in events if event.kind == "finding"):
        yield (
            f'<line x1="{x(event.at)}" x2="{x(event.at)}" y1="26" y2="{height - 16}" stroke="{FINDING}"'
            f' stroke-width="3"><title>{escape(event.text)}</title></line>'
        )
