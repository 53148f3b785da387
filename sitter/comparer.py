"""Finds out, beside the daemon's loop, how our WAL stands to an upstream's, for as long as the core wants to know.

What is compared begins at our latest checkpoint. An upstream that was restored after that checkpoint does not hold so
old a log; then a standby that runs makes a newer restartpoint, and the comparison begins there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from manatee.config import Settings
from manatee.log import Logger
from manatee.peerserver import session
from manatee.tls import BadCertificate
from sitter.postgres.compare import compare
from sitter.postgres.errors import PostgresError
from sitter.postgres.server import Server
from sitter.view import Compare, Incomparable, Link

FIRST_DELAY = 0.1
LONGEST_DELAY = 10.0
"""Seconds between two comparisons with the same upstream: the first, doubling up to the last."""

CERTAIN = 3.0
"""Seconds for which every comparison must have been impossible, until none is expected to be possible any more."""


class Comparer:
    """Answers the newest question asked of it; `link` is the newest answer."""

    def __init__(
        self,
        settings: Settings,
        log: Logger,
        on_change: Callable[[], None],
        server: Server,
    ) -> None:
        self._settings = settings
        self._log = log
        self._server = server
        self._on_change = on_change
        self._wanted: Compare | None = None
        self._asked = asyncio.Event()
        self._unknowable_since: float | None = None
        """Since when, by the monotonic clock, every comparison has found that the answer cannot be known."""
        self.link: Link | None = None
        self.incomparable: Incomparable | None = None
        """With whom there will be no answer, and why. An answer from somebody else does not change that."""
        self.problem: str | None = None
        """Why there is no answer to the present question."""

    def want(self, question: Compare | None) -> None:
        """Find this out, again and again until something else, or nothing, is wanted."""
        if question != self._wanted:
            self._unknowable_since = None
            self._wanted = question
            self.problem = None
            self._asked.set()

    def forget(self) -> None:
        """The data here are being replaced: what was found out about them is void."""
        self.link = self.incomparable = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._asked.clear()
            if self._wanted is None:
                await self._asked.wait()
                continue
            work = asyncio.create_task(self._keep_comparing(self._wanted))
            asked = asyncio.create_task(self._asked.wait())
            try:
                await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()  # it ends by nothing but an error that nobody expected
            finally:
                for each in (work, asked):
                    each.cancel()
                await asyncio.gather(work, asked, return_exceptions=True)

    async def _keep_comparing(self, question: Compare) -> None:
        delay = FIRST_DELAY
        while True:
            await self._compare(question)
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)

    async def _compare(self, question: Compare) -> None:
        upstream = question.upstream
        if self._server.running and not self._server.standby:
            return  # a primary that is still being stopped may write on behind what was compared
        try:
            async with session(self._settings) as http:
                found = await compare(self._settings, upstream, http)
        except (PostgresError, BadCertificate) as error:
            self._unknowable_since, problem = None, str(error)
        else:
            if found.answer is not None:
                self._unknowable_since = None
                link = Link(
                    upstream.id,
                    question.generation,
                    question.proof,
                    found.answer,
                    found.upstream_flush,
                    found.reason,
                    found.parting,
                )
                if link != self.link:
                    self._log.info(
                        "compared with upstream", upstream=upstream.label, answer=found.answer, detail=found.reason
                    )
                self.link, self.problem = link, None
                if self.incomparable and self.incomparable.upstream == upstream.id:
                    self.incomparable = None
                self._on_change()
                return
            problem = await self._begin_later(found.reason)
            if self._stays_unknowable() and not self._server.running:  # so that nothing begins later, ever
                self.incomparable = Incomparable(upstream.id, question.generation, question.proof, found.reason)
                self._on_change()
        if problem != self.problem:
            self._log.warning("not comparable with upstream yet", upstream=upstream.label, reason=problem)
        self.problem = problem

    def _stays_unknowable(self) -> bool:
        """Nobody could know for some time. Once says little: a segment may be recycled while it is read, an upstream
        may just be coming up.
        """
        now = time.monotonic()
        if self._unknowable_since is None:
            self._unknowable_since = now
        return now - self._unknowable_since >= CERTAIN

    async def _begin_later(self, problem: str) -> str:
        """Have the next comparison begin at a newer restartpoint; what the problem is then."""
        try:
            await self._server.restartpoint()
        except PostgresError as error:
            return f"{problem}; no newer restartpoint: {error}"
        return problem
