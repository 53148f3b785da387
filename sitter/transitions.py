"""Brings PostgreSQL from what it is to what is wanted: start, stop, follow, seal, promote, open, rewind, restore.

One transition at a time. It looks at what is there, so it can be given up at any await and begun again; a newer
decision does just that. It never decides: what it has reached are facts (`sealed`, `upstream`, ...) for the next view.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from manatee.cluster import Peer, application_name
from manatee.config import Settings
from manatee.log import Logger
from manatee.lsn import Lsn
from manatee.storage import Storage, StorageError
from sitter.bootstrap import Progress, RestoreFailed
from sitter.failures import Failures
from sitter.postgres import causes, initdb, tail
from sitter.postgres.configuration import ALONE, NOBODY, Replication, conninfo
from sitter.postgres.errors import Hung, PostgresError, RestartNeeded, StopFailed
from sitter.postgres.gate import caught_up
from sitter.postgres.promote import promote
from sitter.postgres.release import release
from sitter.postgres.seal import seal_primary, seal_standby
from sitter.postgres.server import Server
from sitter.postgres.watch import Watch
from sitter.replacement import Replacement
from sitter.tidying import tidy_up
from sitter.upholding import Upholding
from sitter.view import Initialize, Keep, Primary, Restore, Rewind, Standby, Stopped, Wanted

RETRY_DELAY = 0.2
RETRY_DELAY_MAX = 5.0
"""Seconds between two attempts at a transition that fails: the first, doubling up to the last."""

TIDIED_WITHIN = 1.0
"""Seconds that an attempt which is given up has to end: PostgreSQL does not wait for a pool that hangs."""

OUTGROWN_INTERVAL = 1.0
"""Seconds between two looks at whether a standby that lets nobody in needs greater settings."""


class Transitions:
    """Carries out the newest wish, until cancelled; then PostgreSQL is dead."""

    def __init__(
        self, settings: Settings, server: Server, watch: Watch, log: Logger, on_change: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._server = server
        self._watch = watch
        self._log = log
        self._on_change = on_change
        self._wanted: Wanted = Keep()
        self._news = asyncio.Event()
        self.system_identifier: str | None = None
        """The shard's, for a restore to insist on."""
        self.upstream: Peer | None = None
        """Whom PostgreSQL is set to follow."""
        self.sealed: Lsn | None = None
        self.sealed_since: float | None = None
        self.unsealed_since: float | None = None
        self.failures = Failures()
        self.handing_over = False
        self.restarts = 0
        self.doing: str | None = None
        """The step that is being done, for people."""
        self._begun: float | None = None
        self._cut_tail: Lsn | None = None
        """There is half a record to be taken away; up to where the log is surely whole."""
        self._problem: str | None = None
        self._upholding: Upholding | None = None
        self.replacement = Replacement(settings, watch, log, on_change)
        self.ready = asyncio.Event()
        """The core has found this peer ready: the data here need none of what a restore has put aside."""

    @property
    def storage(self) -> Storage:
        """Where the data are."""
        return self.replacement.storage

    @property
    def restore(self) -> Progress | None:
        """The restore or rewind that runs, or the last."""
        return self.replacement.progress

    @property
    def problem(self) -> str | None:
        """Why the last attempt at the present wish failed, or what it has come to does not last."""
        return self._problem or (self._upholding.problem if self._upholding else None)

    @property
    def idle(self) -> bool:
        """What is wanted has come about."""
        return self.doing is None and not self._news.is_set()

    @property
    def running(self) -> bool:
        """Processes of PostgreSQL run here."""
        return self._server.running

    @property
    def open(self) -> bool:
        """PostgreSQL runs as a primary that lets clients write."""
        return self._server.running and not self._server.standby and not self._server.replication.read_only

    @property
    def last_words(self) -> str:
        """The newest lines of PostgreSQL's log."""
        return self._server.last_words

    @property
    def wanted(self) -> Wanted:
        """What it was told last to bring about, and keeps up."""
        return self._wanted

    def want(self, wanted: Wanted) -> None:
        """Bring this about; a transition towards something else is given up."""
        if isinstance(wanted, Keep):  # of what the core decided, and fencing is not the core's
            wanted = replace(self._wanted, fenced=False) if isinstance(self._wanted, Primary) else self._wanted
        if wanted == self._wanted:
            return
        self._wanted = wanted
        self._problem = None
        self.replacement.under_way = wanted if isinstance(wanted, Restore | Rewind) else None
        if not self._sealing:
            self._unseal()  # before anything is undone: nobody may declare on a position that no longer holds
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        delay = RETRY_DELAY
        while True:
            self._news.clear()
            wanted = self._wanted
            try:
                if not await self._unless_news(self._bring_about(wanted)):
                    delay = RETRY_DELAY
                    continue
            except (PostgresError, StorageError, RestoreFailed, OSError) as error:
                self._failed(wanted, error)
                await self._unless_news(asyncio.sleep(max(delay, self.failures.pause)))
                delay = min(2 * delay, RETRY_DELAY_MAX)
                continue
            self._begin(None)
            self._problem, delay = None, RETRY_DELAY
            self._on_change()
            if await self._unless_news(self._watch_over(wanted)):
                await self._unless_news(asyncio.sleep(self.failures.pause))

    async def _unless_news(self, work: object) -> bool:
        """Do the work, unless there is something newer to do: then it is cancelled, and the answer is False."""
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        news = asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait((task, news), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            for each in (task, news):
                each.cancel()
            await asyncio.gather(task, news, return_exceptions=True)

    async def _watch_over(self, wanted: Wanted) -> None:
        """Returns when PostgreSQL has died, or hangs, although it should run; or when its settings were read again."""
        if not isinstance(wanted, Primary | Standby):
            await asyncio.Event().wait()
        upholding = Upholding(self._settings, self._server, self._watch, self._log, follows=self._follows)
        self._upholding = upholding
        keep = self._settings.storage.keep_isolated
        died = asyncio.create_task(self._server.exited.wait())
        hung = asyncio.create_task(self._watch.hung.wait())
        stale = asyncio.create_task(self._server.stale.wait())
        kept = asyncio.create_task(upholding.run())
        tidied = asyncio.create_task(tidy_up(self.storage, self.ready, self._log, keep=keep))
        try:
            await asyncio.wait((died, hung, stale, kept), return_when=asyncio.FIRST_COMPLETED)
            if kept.done():
                kept.result()  # it ends by nothing but an error that nobody expected
        finally:
            for each in (died, hung, stale, kept, tidied):
                each.cancel()
            await asyncio.gather(kept, return_exceptions=True)
            await asyncio.wait([tidied], timeout=TIDIED_WITHIN)
            self._upholding = None
            if upholding.restart:
                self._cut_tail = upholding.restart.whole_up_to
        if not self._server.exited.is_set() and not self._watch.hung.is_set():
            await self._server.reread()
            return  # what is wanted is brought about again: by these settings, whom we follow may be written otherwise
        self.restarts += 1
        if upholding.restart:
            self._log.warning("restarting PostgreSQL", reason=upholding.restart.reason)
        elif not self._server.exited.is_set():
            said = self._watch.problem or "no answer"
            self.failures.failed(_cause(said), said)
            self._log.error("PostgreSQL does not answer: ending it", problem=said)
            await self._server.stop("immediate")
        else:
            said = await self._server.obituary()
            self.failures.failed(causes.cause_of(said, returncode=self._server.returncode), said)
            self._log.error(
                "PostgreSQL died: restarting it",
                cause=self.failures.last and self.failures.last.cause,
                returncode=self._server.returncode,
                last_words=said,
                pause=self.failures.pause,
            )
        self._void_seal()
        self._on_change()

    def _failed(self, wanted: Wanted, error: Exception) -> None:
        problem = str(error)
        if problem != self._problem:
            self._log.error("transition failed", wanted=type(wanted).__name__, doing=self.doing, error=problem)
        self._problem = problem
        if isinstance(wanted, Primary | Standby) and (not self._server.running or isinstance(error, StopFailed)):
            hung = isinstance(error, Hung | StopFailed)
            self.failures.failed(_cause(problem) if hung else causes.cause_of(problem), problem)
        self._end_step()
        self._on_change()

    def _begin(self, step: str | None) -> None:
        """A step begins, or none does."""
        self._end_step()
        self.doing, self._begun = step, time.monotonic()

    def _end_step(self) -> None:
        """Log how long the step took that is being done: what an outage was spent on."""
        if self.doing is not None and self._begun is not None:
            self._log.info("step", step=self.doing, seconds=round(time.monotonic() - self._begun, 3))
        self._begun = None

    # --- What can be wanted -------------------------------------------------------------------------------------

    async def _bring_about(self, wanted: Wanted) -> None:
        match wanted:
            case Keep():
                pass
            case Stopped():
                await self._stop(clean=wanted.clean)
            case Initialize():
                await self._initialize()
            case Restore() | Rewind():
                await self._replace(wanted)
            case Primary():
                await self._primary(wanted)
            case Standby():
                await self._standby(wanted)

    async def _stop(self, *, clean: bool) -> None:
        self._begin("stopping PostgreSQL")
        if clean and self._server.running:
            self.handing_over = not self._server.standby
            await self._server.stop_cleanly()
        else:
            await self._server.stop("immediate")
        self.upstream = None
        self._void_seal()

    async def _initialize(self) -> None:
        self._begin("creating the database with initdb")
        await self.storage.prepare()
        made = await initdb.initialize(self._settings, self._log, timeout=self._settings.postgres.start_timeout)
        initdb.adopt(self._settings, made)
        self._watch.forget_identity()

    async def _replace(self, wanted: Restore | Rewind) -> None:
        self.ready.clear()
        if isinstance(wanted, Rewind):
            self._begin(f"rewinding to the data of {wanted.source.label}")
        elif not wanted.sources:
            self._begin("waiting for a peer to restore from")
            return
        else:
            self._begin(f"restoring from {wanted.sources[0].label}")
        await self._server.stop("immediate")
        self.upstream = self._cut_tail = None
        self._void_seal()
        await self.replacement.run(wanted, self.system_identifier)

    async def _primary(self, wanted: Primary) -> None:
        name = application_name(wanted.sync) if wanted.sync else ALONE
        self.handing_over = False
        if not self._server.running:
            self._void_seal()
            self._begin("starting PostgreSQL")
            self.replacement.make_ours()
            waits_for = NOBODY if wanted.sealed else name
            await self._server.start(Replication(waits_for, read_only=True), as_standby=self._server.is_standby_on_disk)
        await self._online()
        if self._server.standby:
            self._begin("promoting PostgreSQL")
            if self._server.replication.commits_wait_for != NOBODY:
                await self._server.configure(Replication(NOBODY, read_only=True))
            await promote(self._settings, self._log)
            self._server.standby = False
            self._void_seal()
        self.upstream = None
        if wanted.sealed:
            if self.sealed is None:
                self._begin("sealing: from now on nothing more is acknowledged")
                self._seal_at(await seal_primary(self._settings, self._server, wanted.sync))
            return
        if self._server.replication.commits_wait_for != name:
            self._begin("having commits wait for the sync")
            await self._server.configure(Replication(name, read_only=self._server.replication.read_only))
            if name != ALONE and not self._server.replication.read_only:
                await release(self._settings, name)
        if wanted.fenced:
            self._begin("shutting clients out")
            await self._server.shut_out_clients()
        elif self._server.replication.read_only:
            self._begin("waiting until the sync has caught up, to accept writes")
            if name != ALONE:
                await caught_up(self._watch, name)
            await self._server.configure(Replication(name, read_only=False))
            self._log.info("accepting writes", sync=wanted.sync and wanted.sync.label)

    async def _standby(self, wanted: Standby) -> None:
        self.handing_over = False
        upstream = None if wanted.sealed else wanted.upstream
        target = Replication(NOBODY, read_only=True, upstream=conninfo(self._settings, upstream) if upstream else None)
        if self._server.running and not self._server.standby:
            await self._server.stop("immediate")
        if not self._server.running:
            self._void_seal()
            if self._cut_tail is not None:
                self._begin("taking away half a record")
                replayed, self._cut_tail = self._cut_tail, None  # if it fails, a standby that runs is looked at again
                await tail.cut(self._settings, replayed=replayed)
            self._begin("starting PostgreSQL as a standby")
            self.replacement.make_ours()
            await self._server.start(target, as_standby=True)
        elif not wanted.sealed and self._server.replication != target:
            self._begin(f"following {upstream.label}" if upstream else "following nobody")
            await self._server.configure(target)
        if not wanted.sealed:
            self.upstream = upstream
        await self._online()
        if wanted.sealed and self.sealed is None:
            self._begin("sealing: from now on nothing more is received")
            try:
                self._seal_at(await seal_standby(self._settings, self._server))
            except RestartNeeded:
                await self._server.stop("immediate")
                raise

    async def _online(self) -> None:
        """Wait until PostgreSQL lets us in. Recovery takes as long as it takes; its death ends the wait.

        One that has let others in and hangs is ended. Raises PostgresError.
        """
        begun = looked = recovered = time.monotonic()
        patience = 2 * self._settings.postgres.health_timeout
        while not await self._watch.answers():
            if self._server.exited.is_set():
                raise PostgresError(f"PostgreSQL ended while it was starting: {await self._server.obituary()}")
            if not self._server.ready:
                recovered = time.monotonic()
            elif self._watch.hung.is_set() and time.monotonic() - recovered > patience:
                said = f"PostgreSQL does not answer: {self._watch.problem or 'no answer'}"
                self._log.error("PostgreSQL does not answer: ending it", problem=said, doing=self.doing)
                self.restarts += 1
                await self._server.stop("immediate")
                raise Hung(said)
            if self._server.standby and time.monotonic() - looked > OUTGROWN_INTERVAL:
                looked = time.monotonic()
                if outgrown := await self._server.outgrown():
                    await self._server.stop("immediate")
                    raise PostgresError(f"its replay was paused before anyone was let in: {outgrown}")
            await self._server.opening(asked=time.monotonic() - begun)
        self.failures.came_up()
        self.replacement.settled()
        self._on_change()

    def _follows(self) -> bool:
        """PostgreSQL is to stream from its upstream."""
        return self.upstream is not None and not self._sealing

    # --- Seals --------------------------------------------------------------------------------------------------

    @property
    def _sealing(self) -> bool:
        """What is wanted is sealed, or to be."""
        return isinstance(self._wanted, Primary | Standby) and self._wanted.sealed

    def _seal_at(self, position: Lsn) -> None:
        if not self._sealing:
            return  # it came through in the moment in which it was no longer wanted
        self.sealed, self.sealed_since = position, time.monotonic()
        self._log.info("sealed", position=str(position))

    def _unseal(self) -> None:
        if self.sealed is not None:
            self.unsealed_since = time.monotonic()
            self._log.info("unsealed", position=str(self.sealed))
        self._void_seal()

    def _void_seal(self) -> None:
        self.sealed = self.sealed_since = None


def _cause(said: str) -> str:
    """Why it hangs: it does not say so itself, but it may have said what it hangs for."""
    cause = causes.cause_of(said)
    return causes.HUNG if cause == causes.OTHER else cause
