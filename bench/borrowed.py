"""Sections that come from programs of their own, by the JSON that they write."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.machine import machine
from bench.results import OURS, Row, Section


def scale(_: int) -> Section:
    """One run of `bench.scale`, whose figures are of hundreds of shards each."""
    on = machine()
    found = _run("bench.scale")
    rows = {
        figure["name"]: Row(
            what=figure["name"],
            unit=figure["unit"],
            digits=0 if figure["value"] >= 100 or figure["value"] == int(figure["value"]) else 2,
            values={OURS: [figure["value"]]},
        )
        for figure in found["figures"]
    }
    return Section(columns={OURS: f"{found['shards']} shards"}, rows=rows, machine=on, notes=_SCALE)


_SCALE = ("The real coordination code and the real rules, with PostgreSQL simulated; one run, so no spread.",)


def _run(module: str, *arguments: str) -> Any:
    """What a program has written with `--json`. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="manatee-bench-") as directory:
        raw = Path(directory) / "raw.json"
        subprocess.run([sys.executable, "-m", module, *arguments, "--json", str(raw)], check=True, stdout=sys.stderr)
        return json.loads(raw.read_text())
