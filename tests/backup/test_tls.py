"""With `[tls]` the backup servers speak HTTPS, and who asks one trusts only a peer's certificate."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
import structlog
from structlog.testing import capture_logs

from demo.authority import Authority
from demo.postgresql import Installation
from manatee.config import EXIT_BAD_CONFIGURATION, Settings, Tls
from manatee.peerserver import session
from manatee.tls import BadCertificate, client_context, server_context
from sitter.source import SourceFailed
from tests.backup.plain import Sender, expected, serving, take
from tests.backup.sandbox import Peer, Sandbox

SIZE = 8 << 20


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def peer(sandbox: Sandbox, any_postgresql: Installation, authority: Authority) -> Peer:
    """With a certificate for its address."""
    peer = sandbox.peer(any_postgresql, tls=authority.sign("to-be", None))
    return with_certificate(peer, authority.sign("peer", f"IP:{peer.ip}"))


def with_certificate(peer: Peer, tls: Tls) -> Peer:
    peer.settings = peer.settings.model_copy(update={"tls": tls})
    return peer


def requester(peer: Peer, ca_file: Path) -> Settings:
    """Settings of who trusts that authority."""
    assert peer.settings.tls is not None
    trusting = peer.settings.tls.model_copy(update={"ca_file": ca_file})
    return peer.settings.model_copy(update={"tls": trusting})


async def test_a_snapshot_comes_encrypted_from_whom_the_authority_knows(peer: Peer) -> None:
    async with serving(peer, Sender(SIZE)) as source:
        assert str(source.backup_url).startswith("https://")
        taken = await take(source, peer.settings)
        async with session(peer.settings) as asking, asking.get(f"{source.backup_url}/ping") as answer:
            assert answer.status == 200
        plain = source.replace(backup_url=str(source.backup_url).replace("https", "http"))
        with pytest.raises(SourceFailed, match="cannot be reached"):
            await take(plain, peer.settings)
    assert taken.sha256 == expected(SIZE)


@pytest.mark.parametrize("alternatives", [None, "DNS:peer.example.com"], ids=["no name", "a name"])
async def test_a_certificate_that_names_no_address_is_worth_its_chain(
    peer: Peer, authority: Authority, alternatives: str | None
) -> None:
    with_certificate(peer, authority.sign("named", alternatives))
    async with serving(peer, Sender(SIZE)) as source:
        assert (await take(source, peer.settings)).bytes == SIZE


async def test_another_authority_s_certificate_is_refused_before_the_token_is_shown(peer: Peer, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    sender = Sender(SIZE)
    async with serving(peer, sender) as source:
        with pytest.raises(SourceFailed, match="is not trusted: .*certificate verify failed"):
            await take(source, requester(peer, other.certificate))


async def test_another_address_s_certificate_is_refused(
    peer: Peer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_certificate(peer, authority.sign("elsewhere", "IP:192.0.2.1,DNS:peer"))
    with pytest.raises(BadCertificate, match=rf"its certificate is for 192.0.2.1, not for {peer.ip}"):
        async with serving(peer, Sender(SIZE)):
            pass
    monkeypatch.setattr("manatee.tls.trusted", lambda *_: None)
    async with serving(peer, Sender(SIZE)) as source:
        with pytest.raises(SourceFailed, match=rf"is for 192.0.2.1, not for {peer.ip}"):
            await take(source, peer.settings)


async def test_new_connections_get_a_new_certificate_and_a_bad_one_is_not_taken_up(
    peer: Peer, authority: Authority
) -> None:
    assert peer.settings.tls is not None
    files = peer.settings.tls

    async def serial() -> str:
        _, writer = await asyncio.open_connection(peer.ip, 12345, ssl=client_context(files), server_hostname=peer.ip)
        try:
            return str(writer.get_extra_info("peercert")["serialNumber"])
        finally:
            writer.transport.abort()

    async with serving(peer, Sender(SIZE)):
        before = await serial()
        renewed = authority.sign("renewed", f"IP:{peer.ip}")
        shutil.copy(renewed.cert_file, files.cert_file)
        with capture_logs() as logs:
            assert await serial() == before  # the key is still the old one
        assert f"{files.key_file} is not the key of {files.cert_file}" in logs[0]["error"]
        shutil.copy(renewed.key_file, files.key_file)
        after = await serial()
        assert after != before
        assert await serial() == after


def broken(tls: Tls, path: Path, what: str) -> Tls:
    text = path / "text"
    text.write_text("this is no PEM\n")
    match what:
        case "no authority":
            return tls.model_copy(update={"ca_file": path / "none"})
        case "no key":
            return tls.model_copy(update={"key_file": path / "none"})
        case "no certificate":
            return tls.model_copy(update={"cert_file": text})
        case "authority is text":
            return tls.model_copy(update={"ca_file": text})
        case "another's key":
            return tls.model_copy(update={"key_file": Authority(path, "another").sign("x", None).key_file})
        case "another's authority":
            return tls.model_copy(update={"ca_file": Authority(path, "another").certificate})
    return Authority(path, "late").sign("expired", None, days=-1)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no authority", r"tls.ca_file: .*/none cannot be read: No such file"),
        ("no key", r"tls.key_file: .*/none cannot be read: No such file"),
        ("no certificate", r"are not a certificate and its key, in PEM and without a passphrase"),
        ("authority is text", r"tls.ca_file: .*/text holds no certificate"),
        ("another's key", r"tls.key_file: .*/x.key is not the key of .*/peer.crt"),
        ("another's authority", r"no peer would trust this one: .*(certificate|signature)"),
        ("expired", r"no peer would trust this one: certificate has expired"),
    ],
)
def test_files_that_cannot_be_used_are_said_in_one_sentence(peer: Peer, tmp_path: Path, what: str, said: str) -> None:
    assert peer.settings.tls is not None
    with pytest.raises(BadCertificate, match=said) as raised:
        server_context(broken(peer.settings.tls, tmp_path, what), peer.ip, structlog.get_logger())
    assert "\n" not in str(raised.value)


def test_the_server_does_not_start_without_its_certificate(
    sandbox: Sandbox, any_postgresql: Installation, authority: Authority
) -> None:
    tls = authority.sign("peer", None)
    peer = sandbox.peer(any_postgresql, tls=tls)
    tls.cert_file.unlink()
    command = [sys.executable, "-m", "backupserver.main", "-c", str(peer.root / "manatee.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_BAD_CONFIGURATION, 1)
    assert f"tls.cert_file: {tls.cert_file} cannot be read: No such file or directory" in done.stderr


async def test_nothing_below_tls_1_2_is_spoken(peer: Peer) -> None:
    assert peer.settings.tls is not None
    context = client_context(peer.settings.tls)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED
    async with serving(peer, Sender(1)) as source, aiohttp.ClientSession() as unknowing:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await unknowing.get(f"{source.backup_url}/ping")
