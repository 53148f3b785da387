"""What ZFS refuses, in the words of zfs(8), told apart where that matters."""

from __future__ import annotations

from manatee.storage.errors import StorageError


class ZfsError(StorageError):
    """ZFS did not do what it was asked to do."""


class Missing(ZfsError):
    """There is no such dataset or snapshot."""


class Exists(ZfsError):
    """There is one of that name already."""


class Busy(ZfsError):
    """Mounted and in use, being sent or received, or held. Often it passes within a second."""


class HasClones(ZfsError):
    """Something was cloned from it."""


class Denied(ZfsError):
    """The user of this process may not do that (`zfs allow`, and mount(2))."""


class Unusable(ZfsError):
    """ZFS cannot be reached this way at all: no module, no daemon, no library, no command."""


_SIGNS = (
    ("does not exist", Missing),
    ("no such tag", Missing),
    ("dependent clones", HasClones),
    ("already exists", Exists),
    ("permission denied", Denied),
    ("not permitted", Denied),
    ("superuser", Denied),
    ("privileges", Denied),
    ("busy", Busy),
)


def from_words(words: str) -> ZfsError:
    """The error that a message of zfs(8) means."""
    return next((kind for sign, kind in _SIGNS if sign in words.lower()), ZfsError)(words)
