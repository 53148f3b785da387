"""What PostgreSQL needs to reach the other peers and to be reached by them, laid out for its user.

The operator's files may be root's alone; PostgreSQL insists that its key is its own user's. So they are copied, durably
and readable by that user only, next to the rendered configuration. Outside the data directory: no snapshot carries a
secret to another peer.
"""

from __future__ import annotations

import ssl

from manatee import link
from manatee.config import BadConfiguration, Settings, Tls
from sitter.postgres.account import Account, remove_durably, write_durably
from sitter.postgres.errors import PostgresError


def check(settings: Settings) -> None:
    """Whether the files that the settings name can be used; raises BadConfiguration, in one sentence."""
    _contents(settings)


def lay_out(settings: Settings) -> None:
    """Write the files anew, from what the operator's hold now. Raises PostgresError, OSError."""
    account = Account.of(settings)
    try:
        contents = _contents(settings)
    except BadConfiguration as error:
        raise PostgresError(str(error)) from error
    for name, content in contents.items():
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
    _check_tls(settings.tls)
    for name, file in link.TLS_FILES.items():
        found[file] = getattr(settings.tls, name).read_bytes()
    return found


def _check_tls(tls: Tls) -> None:
    """The key is the certificate's, and both are what OpenSSL reads; raises BadConfiguration."""
    for name in link.TLS_FILES:
        path = getattr(tls, name)
        try:
            path.read_bytes()
        except OSError as error:
            raise BadConfiguration(f"tls.{name} = '{path}': cannot be read: {error.strerror}") from error
    if tls.key_file.stat().st_mode & 0o007:
        raise BadConfiguration(
            f"tls.key_file = '{tls.key_file}': anybody on this machine may use it: expected no rights for others"
            " (chmod 600)"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a prompt: a key that is encrypted could not be used by a daemon.
        context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: b"")
    except ssl.SSLError as error:
        raise BadConfiguration(
            f"tls.key_file = '{tls.key_file}': expected the key, without a passphrase, of the certificate in "
            f"'{tls.cert_file}': {error.reason or error}"
        ) from error
    try:
        context.load_verify_locations(tls.ca_file)
    except ssl.SSLError as error:
        raise BadConfiguration(
            f"tls.ca_file = '{tls.ca_file}': expected certificates in PEM form: {error.reason or error}"
        ) from error
