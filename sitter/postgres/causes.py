"""Why PostgreSQL died or could not be started, in one word: for metrics and alarms, which cannot read logs.

The words are recognised in what PostgreSQL and the sitter's own errors say; the sitter has it speak English (LC_ALL=C).
"""

from __future__ import annotations

import re

HUNG = "hung"
KILLED = "killed"
OTHER = "other"

_SIGNS = (
    ("disk_full", r"No space left on device|Disk quota exceeded"),
    ("configuration", r"configuration file .* contains errors|(syntax error|could not open|open) .*file .*\.conf"),
    ("configuration", r"unrecognized configuration parameter|invalid value for parameter"),
    ("data_directory", r"Permission denied|[Nn]o such file or directory|has wrong ownership|invalid permissions"),
    ("data_directory", r"Input/output error|Read-only file system|could not read file|checksum|corrupt"),
    ("memory", r"out of memory|Cannot allocate memory|could not (map|create) .*shared memory"),
    ("address", r"Address already in use|Cannot assign requested address|could not create any TCP/IP sockets"),
    ("backend_crashed", r"(server process|background worker|process) .*was terminated by signal|terminating any other"),
)
"""The first that is found counts: who dies of a full disk takes others along."""

CAUSES = (*dict.fromkeys(cause for cause, _ in _SIGNS), HUNG, KILLED, OTHER)


def cause_of(said: str, *, returncode: int | None = None) -> str:
    """The cause, from what was said last and how the postmaster ended (negative: by that signal)."""
    if returncode is not None and returncode < 0:
        return KILLED
    return next((cause for cause, sign in _SIGNS if re.search(sign, said)), OTHER)
