"""What PostgreSQL needs to reach the other peers and to be reached by them, laid out for its user.

The operator's files may be root's alone; PostgreSQL insists that its key is its own user's. So they are copied, durably
and readable by that user only, next to the rendered configuration. Outside the data directory: no snapshot carries a
secret to another peer.
"""

from __future__ import annotations

from manatee import link, tls
from manatee.config import Settings
from sitter.postgres.account import Account, remove_durably, write_durably


def check(settings: Settings) -> None:
    """Whether the files that the settings name can be used; raises BadConfiguration, in one sentence."""
    _contents(settings)


def lay_out(settings: Settings) -> None:
    """Write the files anew, from what the operator's hold now. Raises BadConfiguration, OSError."""
    account = Account.of(settings)
    for name, content in _contents(settings).items():
        path = link.file(settings, name)
        if content is None:
            remove_durably(path)
        elif not path.exists() or path.read_bytes() != content:
            write_durably(path, content, account)


def tls_settings(settings: Settings) -> dict[str, str]:
    """What PostgreSQL's configuration has to say of TLS; nothing where it is the operator's."""
    if settings.tls is None:
        return {}
    files = {name: str(link.file(settings, file)) for name, file in link.TLS_FILES.items()}
    ours = {"ssl_ca_file": files["ca_file"], "ssl_cert_file": files["cert_file"], "ssl_key_file": files["key_file"]}
    return {"ssl": "on", **ours, "ssl_min_protocol_version": "TLSv1.2"}


def _contents(settings: Settings) -> dict[str, bytes | None]:
    """Every file by name; None for one that is not to be there."""
    secret, user = link.password(settings), settings.postgres.replication_user
    line = link.passfile_line(user, secret).encode() if user is not None and secret is not None else None
    found: dict[str, bytes | None] = {link.PASSFILE: line}
    if settings.tls is None:
        return {**found, **dict.fromkeys(link.TLS_FILES.values())}
    tls.trusted(settings.tls, settings.peer.ip)
    for name, file in link.TLS_FILES.items():
        found[file] = getattr(settings.tls, name).read_bytes()
    return found
