"""Properties of the live dataset: what suits PostgreSQL is advice, and what the operator has set outlives a restore."""

from __future__ import annotations

from collections.abc import Mapping

from manatee.storage.zfs.command import Dataset

ADVISED = ("recordsize", "compression", "atime", "logbias", "sync", "canmount")
"""Properties that `advice` looks at."""

CARRIED = (
    *("recordsize", "compression", "atime", "logbias", "sync", "primarycache", "secondarycache", "checksum", "copies"),
    *("dedup", "redundant_metadata", "special_small_blocks", "dnodesize", "snapdir", "xattr", "acltype", "aclmode"),
    *("aclinherit", "exec", "devices", "setuid", "relatime", "quota", "refquota", "snapshot_limit"),
)
"""Properties that, set on the old dataset itself, are set on the one that takes its place."""

NEW = {"recordsize": "8K", "compression": "on", "atime": "off"}
"""For a dataset that Manatee creates, where the operator has said nothing above it."""

_RECORDSIZES = range(8 << 10, (32 << 10) + 1)


def advice(live: Dataset) -> list[str]:
    """What would suit a database better, one sentence each, with what to do about it. Nothing is changed."""
    found = []

    def say(why: str, setting: str) -> None:
        found.append(f"{why}: zfs set {setting} {live.name}")

    if live["sync"] == "disabled":
        say("sync is disabled, so a power failure takes commits that were acknowledged", "sync=standard")
    if live["recordsize"] != "-" and live.number("recordsize") not in _RECORDSIZES:
        size = live.number("recordsize") >> 10
        say(f"recordsize is {size}K and PostgreSQL's pages are 8K: small writes rewrite whole records", "recordsize=8K")
    if live["compression"] == "off":
        say("compression is off: tables take, and restores move, two to three times as much", "compression=on")
    if live["atime"] == "on":
        say("atime is on, so reading writes", "atime=off")
    if live["logbias"] == "throughput":
        say("logbias is throughput, and commits wait for the write-ahead log, which lies here too", "logbias=latency")
    if live["canmount"] not in ("noauto", "-"):
        say("canmount is not noauto, so it may be mounted before the sitter has looked at it", "canmount=noauto")
    return found


def carried(local: Mapping[str, str]) -> dict[str, str]:
    """Of what was set on one dataset: what goes along to its successor, the operator's own properties included."""
    return {
        name: value
        for name, value in local.items()
        if name in CARRIED or (":" in name and not name.startswith("manatee:"))
    }
