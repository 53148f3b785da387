"""Sessions to the peers' backup servers: who asks one, be it for a snapshot, a digest or a sign of life, asks so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manatee.config import Backup, Settings

if TYPE_CHECKING:
    import aiohttp


class NoToken(Exception):
    """The file that holds the token cannot be used; the message says why."""


def session(settings: Settings, **options: Any) -> aiohttp.ClientSession:
    """A session with the shard's encryption; `options` are aiohttp's. Raises BadCertificate.

    The certificates are those in the files now: open one for what is to be done, not for a process's life.
    """
    import aiohttp  # not everybody who knows the peers talks to them

    from manatee import tls

    encrypted: Any = tls.client_context(settings.tls) if settings.tls else True
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=encrypted), **options)


def bearer(settings: Backup) -> dict[str, str]:
    """The header that shows the token, as it is in its file now. Raises NoToken."""
    try:
        token = settings.token_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NoToken(f"{settings.token_file} cannot be read: {error}") from error
    if not (token.isascii() and token.isprintable()):
        raise NoToken(f"{settings.token_file} holds more than one line, or characters beyond ASCII")
    return {"Authorization": f"Bearer {token}"}
