"""What storage raises: every message tells an operator what is the matter, and holds no secret."""

from __future__ import annotations


class StorageError(Exception):
    """Something about the data directory, its snapshots or a stream of them."""


class NoDatabase(StorageError):
    """There is no database here."""


class NotServing(StorageError):
    """PostgreSQL does not answer here, or cannot give what a snapshot needs now."""


class UnsupportedLayout(StorageError):
    """The database does not lie wholly inside its directory."""


class SendFailed(StorageError):
    """A stream ended before the whole snapshot was in it."""


class ReceiveFailed(StorageError):
    """A stream could not be made a database; what was there before is untouched."""


class NoSpace(ReceiveFailed):
    """The disk is too small for what is coming, or has become full on the way."""
