"""What a peer's sitter has logged of its restores, in sentences: where the data came from, and how much of them."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from demo.shard import LocalPeer, LocalShard

_FORMS = {
    "full": "all of it",
    "increment": "only what has changed since a snapshot that both had",
    "rest": "the rest of a stream that was cut",
}


def restores(shard: LocalShard, peer: LocalPeer) -> list[str]:
    """One sentence for each restore, the oldest first; for a peer that never needed one, that."""
    found = [
        entry for line in peer.log("sitter").read_text(errors="replace").splitlines() if (entry := _restored(line))
    ]
    if not found:
        return [f"{peer.label} ({peer.ip}) came first, and made the database"]
    return [f"{peer.label} ({peer.ip}) {_told(shard, entry)}" for entry in found]


def _restored(line: str) -> dict[str, object] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and entry.get("event") == "restored" else None


def _told(shard: LocalShard, entry: dict[str, object]) -> str:
    ip = urlsplit(str(entry["source"])).hostname
    source = next((f"{peer.label} ({ip})" for peer in shard.peers if peer.ip == ip), ip)
    stream = entry.get("stream")
    form = _FORMS.get(str(stream.get("form")), "") if isinstance(stream, dict) else ""
    return f"received snapshot {entry['snapshot']} of {source}: {int(str(entry['bytes'])):,} bytes, {form}"
