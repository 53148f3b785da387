"""What happened to a shard, told from the states that were written: one sentence for each step of its history.

Pure: two states in, words out. It says what the states say; why a peer was gone stands in the sitters' logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manatee.cluster import ClusterState, Freeze, Peer, Promote
from manatee.coordination import HistoryEntry


def told(entries: Iterable[HistoryEntry]) -> Iterator[str]:
    """A sentence for each entry, of what is different from the one before that could be read."""
    before: ClusterState | None = None
    for entry in entries:
        if entry.state is None:
            yield f"error: not a cluster state: {entry.problem}"
            continue
        yield _began(entry.state) if before is None else changes(before, entry.state)
        before = entry.state


def _began(state: ClusterState) -> str:
    if state.one_node_write_mode:
        words = f"set up in one-node-write mode: primary {state.primary.label}"
    else:
        words = f"primary {state.primary.label}, sync {_label(state.sync)}"
        words = (
            f"set up: {words}" if state.generation <= 1 else f"history begins at generation {state.generation}: {words}"
        )
        if state.asyncs:
            words += f", async {_labels(state.asyncs)}"
    return ", ".join([words, *_freeze(None, state)])


def changes(before: ClusterState, after: ClusterState) -> str:
    """What the step from one state to the next did."""
    if after.generation != before.generation:
        parts = [_generation(before, after)]
    elif after.generation <= 1 and after.primary.id != before.primary.id and not after.init_wal:
        parts = [f"set-up handed over from {before.primary.label}: primary {after.primary.label}"]
    elif (after.primary.id, _id(after.sync)) != (before.primary.id, _id(before.sync)):
        parts = [f"error: primary {after.primary.label}, sync {_label(after.sync)} without a new generation"]
    else:
        parts = []
    if after.one_node_write_mode != before.one_node_write_mode:
        parts.append("entered one-node-write mode" if after.one_node_write_mode else "left one-node-write mode")
    parts += [*_came_and_went(before, after), *_freeze(before, after), *_promote(before, after)]
    parts += _otherwise(before, after)
    return ", ".join(parts) or "written again, unchanged"


def _generation(before: ClusterState, after: ClusterState) -> str:
    number = f"generation {after.generation}"
    if after.generation < before.generation:
        return f"error: generation went back from {before.generation} to {after.generation}"
    if after.forced:
        return f"{number}: {_by_word(before, after)}"
    skipped = f" (generation {before.generation} came before)" if after.generation != before.generation + 1 else ""
    asked = _asked(before, after)
    if after.primary.id != before.primary.id:
        was_sync = before.sync is not None and after.primary.id == before.sync.id
        wrong = "" if was_sync else " without having been the sync"
        deposed = " (deposed)" if any(peer.id == before.primary.id for peer in after.deposed) else ""
        who = f"{after.primary.label} took over from {before.primary.label}{deposed}{wrong}"
        return f"{number}: {who} at {after.init_wal}, new sync {_label(after.sync)}{asked}{skipped}"
    if _id(after.sync) != _id(before.sync):
        old = f" in place of {before.sync.label}" if before.sync else ""
        return f"{number}: {after.primary.label} made {_label(after.sync)} its sync{old}{asked}{skipped}"
    return f"{number}: declared again by {after.primary.label} with the same sync{skipped}"


def _by_word(before: ClusterState, after: ClusterState) -> str:
    """An operator's word, where no rule led on."""
    word = after.override
    reason = f" ({word.reason})" if word is not None and word.reason else ""
    was = "" if after.primary.id == before.primary.id else f" in place of {before.primary.label}"
    deposed = " (deposed)" if was and any(peer.id == before.primary.id for peer in after.deposed) else ""
    return (
        f"an operator forced {after.primary.label} to be primary{was}{deposed}{reason}, new sync {_label(after.sync)}"
    )


def _asked(before: ClusterState, after: ClusterState) -> str:
    """Whether an operator's request explains the new generation."""
    wanted = before.promote.id if before.promote else None
    return ", as an operator asked" if wanted in (after.primary.id, _id(after.sync)) and wanted is not None else ""


def _came_and_went(before: ClusterState, after: ClusterState) -> Iterator[str]:
    old, new = {p.id for p in before.assigned}, {p.id for p in after.assigned}
    deposed_before, deposed_after = {p.id for p in before.deposed}, {p.id for p in after.deposed}
    joined = [peer for peer in after.asyncs if peer.id not in old]
    if joined:
        yield f"{_labels(joined)} joined"
    left = [peer for peer in before.assigned if peer.id not in new | deposed_after]
    if left:
        yield f"{_labels(left)} left"
    fallen = [peer for peer in after.deposed if peer.id not in deposed_before and peer.id != before.primary.id]
    if fallen:
        yield f"{_labels(fallen)} deposed"
    risen = [peer for peer in before.deposed if peer.id not in deposed_after]
    if risen:
        yield f"{_labels(risen)} no longer deposed"
    kept_before = [peer.id for peer in before.asyncs if peer.id in {p.id for p in after.asyncs}]
    kept_after = [peer.id for peer in after.asyncs if peer.id in {p.id for p in before.asyncs}]
    if kept_before != kept_after:
        yield f"asyncs now in the order {_labels(after.asyncs)}"


def _freeze(before: ClusterState | None, after: ClusterState) -> Iterator[str]:
    was = before is not None and before.frozen
    if after.frozen and (before is None or not was or after.freeze != before.freeze):
        reason = f": {after.freeze.reason}" if isinstance(after.freeze, Freeze) and after.freeze.reason else ""
        yield f"frozen{reason}"
    elif was and not after.frozen:
        yield "unfrozen"


def _promote(before: ClusterState, after: ClusterState) -> Iterator[str]:
    if after.promote == before.promote:
        return
    if after.promote is not None:
        yield f"promotion of {_wanted(after, after.promote)} asked for, until {after.promote.expire_time}"
    elif before.promote is not None and after.generation == before.generation and _order(before) == _order(after):
        yield f"request to promote {_wanted(before, before.promote)} withdrawn"


def _wanted(state: ClusterState, promote: Promote) -> str:
    label = next((peer.label for peer in state.assigned if peer.id == promote.id), str(promote.id))
    return f"{promote.role} {label}"


def _otherwise(before: ClusterState, after: ClusterState) -> Iterator[str]:
    """What no rule above speaks of."""
    peers = {peer.id: peer for peer in (*before.assigned, *before.deposed)}
    for peer in (*after.assigned, *after.deposed):
        if peer.id in peers and peer != peers[peer.id]:
            yield f"{peer.label} describes itself anew"
    if after.generation == before.generation and before.override_due and not after.override_due:
        yield f"{after.primary.label} took the operator's word"
    if after.generation == before.generation and after.init_wal != before.init_wal:
        yield f"error: initWal {after.init_wal} without a new generation"


def _order(state: ClusterState) -> list[str]:
    return [peer.id for peer in state.assigned]


def _id(peer: Peer | None) -> str | None:
    return peer.id if peer else None


def _label(peer: Peer | None) -> str:
    return peer.label if peer else "none"


def _labels(peers: Iterable[Peer]) -> str:
    return ", ".join(peer.label for peer in peers)
