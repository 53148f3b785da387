"""docs/performance.md, from the results: the targets, then a table for each section."""

from __future__ import annotations

from collections.abc import Iterator

from bench.results import OURS, Machine, Results, Row, Section
from bench.targets import TARGETS, verdict

TITLES = {
    "outage": "Write outage",
    "footprint": "Footprint",
    "cost": "Cost to the database",
    "bootstrap": "Bootstrap",
    "scale": "Scale",
    "decide": "One decision",
}
"""The sections, in the order of the page."""

_HEAD = """\
# Performance

Written by `make bench`, which measures all of it again (`make bench ONLY="outage cost"` some of it, `ROUNDS=n`); the
single values are in [performance.json](performance.json). Every figure is a **median**, with the least and the greatest
value in brackets; one without brackets was measured once. `make bench CHECK=1` writes nothing and says which medians
lie outside the spread recorded here.
"""


def page(results: Results) -> str:
    """The whole document."""
    parts = [_HEAD, *_targets(results)]
    for name, title in TITLES.items():
        if section := results.sections.get(name):
            parts += _section(name, title, section)
    return "\n".join(parts)


def table(section: Section) -> list[str]:
    """Lines of Markdown: a row for each figure, a column for each contestant."""
    columns = [key for key in section.columns if any(row.values.get(key) for row in section.rows.values())]
    lines = [
        "| | " + " | ".join(section.columns[key] for key in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for row in section.rows.values():
        cells = [f"{row.what}, {row.unit}".removesuffix(", "), *(_cell(row, key) for key in columns)]
        lines += [f"| {' | '.join(cells)} |"]
    return lines


def _cell(row: Row, column: str) -> str:
    if not row.values.get(column):
        return "-"
    least, most = row.spread(column)
    median = f"**{row.median(column):.{row.digits}f}**"
    return f"{median} ({least:.{row.digits}f} to {most:.{row.digits}f})" if len(row.values[column]) > 1 else median


def _targets(results: Results) -> Iterator[str]:
    yield "## Targets\n"
    yield "| | target | median | |"
    yield "| --- | ---: | ---: | --- |"
    for target in TARGETS:
        met = verdict(target, results)
        if met is None:
            continue
        row = results.sections[target.section].rows[target.row]
        median = f"{row.median(target.column):.{row.digits}f} {row.unit}"
        verdict_ = "met" if met else "**not met**"
        yield f"| {row.what} | {target.words(row.digits, row.unit)} | {median} | {verdict_} |"
    yield ""


def _section(name: str, title: str, section: Section) -> Iterator[str]:
    yield f"## {title}\n"
    yield from table(section)
    yield ""
    if section.missing:
        yield f"**{section.missing} acknowledged rows are missing.**\n"
    for words in section.failed:
        yield f"**Went wrong: {words}.**\n"
    for note in section.notes:
        yield f"- {note}"
    if section.machine:
        yield from _machine(section.machine)
    yield ""
    yield from _unmet(name, section)


def _machine(on: Machine) -> Iterator[str]:
    versions = ", ".join(f"{what} {version}" for what, version in on.versions.items())
    yield (
        f"- {on.date} UTC, commit {on.commit}; {on.cores} x {on.processor}, {on.memory}, {on.kernel}; {versions};"
        f" load average {on.load:.1f} at the start, and {on.used:.0f} % of the processors in use by others."
    )
    if on.busy:
        yield "- **The machine was busy with something else: these figures are worse than the truth.**"


def _unmet(name: str, section: Section) -> Iterator[str]:
    """Where the time goes where a target is missed."""
    missed = [t for t in TARGETS if t.section == name and verdict(t, Results(sections={name: section})) is False]
    for target in missed:
        if spans := section.spans.get(target.row):
            row = section.rows[target.row]
            yield f"Where it goes: {row.what}, {section.columns[OURS]}.\n"
            yield "```"
            yield from spans
            yield "```"
            yield ""
