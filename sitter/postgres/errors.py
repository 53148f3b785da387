"""What can go wrong with PostgreSQL, as types: one small hierarchy for the package."""

from __future__ import annotations


class PostgresError(Exception):
    """Something PostgreSQL should have done did not happen; the message says what, and what to look at."""


class ToolFailed(PostgresError):
    """A PostgreSQL program (initdb, pg_controldata, ...) failed or took too long."""

    def __init__(self, tool: str, reason: str, *, status: int | None = None, output: str = "") -> None:
        super().__init__(f"{tool}: {reason}")
        self.tool = tool
        self.reason = reason
        self.status = status
        """Its exit status, negative for a signal; None if it was ended by us or never ran."""
        self.output = output
        """What it wrote to standard output."""


class WrongVersion(PostgresError):
    """The programs are of a version that the sitter does not run, or of another one than the data."""


class StartFailed(PostgresError):
    """The postmaster ended, or did not come up, before it was listening; the message carries its last words."""


class StopFailed(PostgresError):
    """Processes of this data directory are still there after SIGKILL and the deadline."""


class Unreachable(PostgresError):
    """No connection, or no answer within the deadline."""


class Hung(Unreachable):
    """The deadline passed without an answer, which is another fact than a refusal."""


class SealFailed(PostgresError):
    """A seal did not come about; `step` says how far it got. Nothing is sealed, though the receiver may be gone."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(f"seal: {step}: {reason}")
        self.step = step
        self.reason = reason


class RestartNeeded(SealFailed):
    """Only a restart helps, then seal again: the primary's settings were greater than this standby's, so that replay is
    paused; or the receiver does not end."""


class PromoteFailed(PostgresError):
    """The standby has not become a primary within the deadline."""


class BadWal(PostgresError):
    """The write-ahead log in a data directory cannot be read where it must be readable."""


class CompareFailed(PostgresError):
    """The upstream could not be asked how our log stands to its own; asking again later may help."""
