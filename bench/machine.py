"""What a figure was measured on."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
from pathlib import Path

import psutil

from bench.results import Machine
from demo.postgresql import Installation, choose
from demo.zookeeper import JARS

ROOT = Path(__file__).parents[1]

LOAD = os.getloadavg()[0]
"""Later we are part of it ourselves."""

LOOK = 3.0
"""Seconds for which is looked at what others do."""


def describe() -> str:
    """The machine, the versions and the day, in one line."""
    load = os.getloadavg()[0]
    return (
        f"{dt.datetime.now(dt.UTC).date()}, {os.cpu_count()} x {_processor()}, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"PostgreSQL {postgresql()}, load {load:.1f} at the end"
    )


def machine(**versions: str) -> Machine:
    """The same for the record, with the versions of what else takes part.

    To be asked before anything is started: it looks for some seconds at what others do here.
    """
    return Machine(
        date=f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M}",
        commit=_commit(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory=f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        kernel=f"{platform.system()} {re.split('[-_]', platform.release())[0]}",
        versions={
            "PostgreSQL": postgresql(),
            "ZooKeeper": _zookeeper(),
            "Python": platform.python_version(),
            **versions,
        },
        load=LOAD,
        used=psutil.cpu_percent(LOOK),
    )


def programs() -> Installation:
    """The PostgreSQL that is measured: the preferred one, or that of the major version `$BENCH_POSTGRESQL`.

    Raises demo.postgresql.NoPostgreSQL.
    """
    major = os.environ.get("BENCH_POSTGRESQL")
    return choose(int(major) if major else None)


def postgresql() -> str:
    """Its version."""
    said = subprocess.run([programs().bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[2]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _zookeeper() -> str:
    """From the names of the jar's links."""
    names = [path.stem.removeprefix("zookeeper-") for path in JARS.glob("zookeeper-[0-9]*.jar")]
    return max(names, default="of unknown version")


def _commit() -> str:
    """Of this checkout, with a + if something in it is not committed."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return (git("rev-parse", "--short", "HEAD") or "none") + ("+" if changed else "")
