"""Self-fencing: when a primary that can neither hear the shard nor be confirmed by its sync stops taking clients.

No promise rests on it: such a primary cannot acknowledge a commit anyway, since its sync does not confirm. But clients
would hang on it, and read what a new primary may have left behind. Its walsenders run on, so that a sync that was only
out of reach can come back; once that streams again, or the state has been read again, the fence comes down.
"""

from __future__ import annotations

from manatee.cluster import application_name
from sitter.postgres.queries import Facts
from sitter.view import View


def cut_off(last: View, facts: Facts | None, *, disconnected_for: float, session_timeout: float) -> bool:
    """Whether the primary of the `last` view must fence itself: no session for longer than it lives, and no sync."""
    state = last.state
    if state is None or state.primary.id != last.me.id or state.sync is None:
        return False
    if disconnected_for <= session_timeout:
        return False
    sync = facts.downstream(application_name(state.sync)) if facts else None
    return sync is None or sync.state != "streaming"
