"""What the zfs driver calls things: the whole of it, and nothing else is ever touched.

Beside the live dataset `<parent>/<leaf>` there are `<parent>/<leaf>.restoring-<time>`, what is being received, and
`<parent>/isolated/<prefix>-<time>`, what was put aside. Times are milliseconds since the epoch, 13 digits, and so are
the names of Manatee's own snapshots; every other snapshot belongs to the operator.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

OF = "manatee:of"
"""User property of what was isolated: the dataset that it was. Peers may share a parent."""
ADOPTING = "manatee:adopting"
"""User property of what is received, complete and checked: it is about to become the live dataset."""
NO_BASE = "manatee:no-base"
"""User property of what was isolated: no increment may build on it."""
HOLD = "manatee:hold-"
"""User properties of the live dataset: who holds which snapshot, where zfs(8) cannot list holds."""
SHARED = "manatee:shared-with"
"""User property of a snapshot that another peer has, too: that peer's id."""
KEPT = "manatee:kept-until"
"""User property of a snapshot whose stream was cut: seconds since the epoch until which it may be gone on with."""
TAKEN_FOR = "manatee:taken-for"
"""User property of a snapshot that was taken for a stream which may be gone on with: the id of the peer that asked."""
FROM = "manatee:from"
"""User property of what is, or was, received: the id of the peer that sent it."""

_SNAPSHOT = re.compile(r"[0-9]{13}")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def is_own(snapshot: str) -> bool:
    """Whether a snapshot, named without its dataset, is Manatee's."""
    return _SNAPSHOT.fullmatch(snapshot) is not None


def new_name(after: str | None = None) -> str:
    """The name of a snapshot of now, later than the snapshot `after` even if the clock was set back."""
    now = time.time_ns() // 1_000_000
    return f"{max(now, int(after) + 1 if after else 0):013d}"


@dataclass(frozen=True)
class Names:
    """The names around one live dataset."""

    live: str

    @property
    def parent(self) -> str:
        return self.live.rpartition("/")[0]

    @property
    def isolated(self) -> str:
        """Holds what was isolated, of every peer with the same parent."""
        return f"{self.parent}/isolated"

    def new_isolated(self, prefix: str) -> str:
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f'"{prefix}" cannot begin the name of a dataset')
        return f"{self.isolated}/{prefix}-{new_name()}"

    def new_restoring(self) -> str:
        return f"{self.live}.restoring-{new_name()}"

    def is_restoring(self, dataset: str) -> bool:
        return re.fullmatch(re.escape(self.live) + r"\.restoring-[0-9]{13}", dataset) is not None

    def is_isolated(self, dataset: str) -> bool:
        return re.fullmatch(re.escape(self.isolated) + r"/[^/@]+-[0-9]{13}", dataset) is not None

    def is_ours(self, dataset: str) -> bool:
        """Whether it is or was this peer's; of what was isolated, it may be another's with the same parent."""
        return dataset == self.live or self.is_restoring(dataset) or self.is_isolated(dataset)
