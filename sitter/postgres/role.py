"""The role that the peers connect to each other as: made, and given its password, by the primary's sitter.

PostgreSQL never hears the password: libpq makes the SCRAM verifier here, and that is what the statement holds. What the
role may do is replicate, look (`pg_monitor`), and be the source of pg_rewind (documentation, "pg_rewind", Notes), which
reads no more than a base backup would give it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Any

import psycopg
from psycopg import sql

SCRAM = "scram-sha-256"

_REWIND = (
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
)

_LOOK = """
select rolpassword, rolsuper or (rolcanlogin and rolreplication),
  pg_has_role(oid, 'pg_monitor', 'usage')
    and not exists (select from unnest(%s::text[]) name
      where not has_function_privilege(oid, 'pg_catalog.' || name, 'execute'))
from pg_authid where rolname = %s
"""

_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d+):([^$:]+)\$([^$:]+):([^$:]+)")


async def ensure(connection: psycopg.AsyncConnection[Any], name: str, password: str) -> str | None:
    """Make the role what it has to be, on a primary, over a superuser's connection in autocommit mode.

    What was done, in words; None if all was right. Nobody's confirmation is waited for: without the role there may be
    nobody to confirm. Raises psycopg.Error.
    """
    cursor = await connection.execute(_LOOK, [list(_REWIND), name])
    row = await cursor.fetchone()
    right = row is not None and row[1] and is_verifier_of(row[0], password)
    if row is not None and right and row[2]:
        return None
    who = sql.Identifier(name)
    async with connection.transaction():
        await connection.execute("set transaction read write")
        await connection.execute("set local synchronous_commit = local")
        # Not even the verifier is for a log, be it of statements or of errors.
        for quiet in ("log_statement = none", "log_min_duration_statement = -1", "log_min_error_statement = panic"):
            await connection.execute(sql.SQL("set local {}").format(sql.SQL(quiet)))
        if not right:
            verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), SCRAM.encode()).decode()
            how = sql.SQL("{} role {} login replication password {}")
            verb = sql.SQL("alter" if row else "create")
            await connection.execute(how.format(verb, who, sql.Literal(verifier)))
        await connection.execute(sql.SQL("grant pg_monitor to {}").format(who))
        for function in _REWIND:
            grant = sql.SQL("grant execute on function pg_catalog.{} to {}")
            await connection.execute(grant.format(sql.SQL(function), who))
    return "created" if row is None else "given its password" if not right else "granted what it lacked"


def is_verifier_of(stored: str | None, password: str) -> bool:
    """Whether what pg_authid holds was made from this password, in printable ASCII (RFC 5802, section 3)."""
    match = _VERIFIER.fullmatch(stored or "")
    if match is None:
        return False
    iterations, salt, stored_key, _ = match.groups()
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), base64.b64decode(salt), int(iterations))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), base64.b64decode(stored_key))
