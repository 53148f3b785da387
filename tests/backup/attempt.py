"""One restore by the sitter's own means, watched."""

from __future__ import annotations

import time
from typing import Any

import structlog

from manatee.cluster import Peer as Identity
from manatee.storage import open_storage
from sitter.bootstrap import Progress, Restore, Restored
from tests.backup.sandbox import Peer


class Attempt:
    """One restore, with what was shown of it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.seconds = 0.0
        self.seen: list[Progress] = []
        self.restore = Restore(peer.settings, open_storage(peer.settings), structlog.get_logger(), self.seen.append)

    async def run(self, *sources: Peer | Identity, **options: Any) -> Restored:
        """Two attempts, and no wish as to whose data it is, unless `options` say otherwise."""

        async def before_adopt() -> None:
            pass

        options = {
            "major_version": str(self.peer.postgresql.major),
            "system_identifier": None,
            "before_adopt": before_adopt,
            "attempts": 2,
            **options,
        }
        identities = [source.settings.identity if isinstance(source, Peer) else source for source in sources]
        began = time.monotonic()
        try:
            return await self.restore.run(identities, **options)
        finally:
            self.seconds = time.monotonic() - began

    @property
    def estimate(self) -> int:
        """The bytes that were to be expected, as they were first shown."""
        return next(progress.bytes_total for progress in self.seen if progress.bytes_total)

    @property
    def errors(self) -> list[str]:
        """What went wrong, each once."""
        return list(dict.fromkeys(progress.error for progress in self.seen if progress.error))
