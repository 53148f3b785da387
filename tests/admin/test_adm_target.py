"""Which shard a command is about, and what it says when that is not clear."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from admin.target import Options, resolve, servers

SETTINGS = """\
[shard]
name = "1.moray"
{path}
[peer]
ip = "10.0.0.1"
zone_id = "zone"
[zookeeper]
servers = "10.0.0.9:2181,10.0.0.8:2182"
session_timeout = 4
[postgres]
bin_dir = "/bin"
socket_dir = "/tmp"
[storage]
directory = "/data"
[backup]
token_file = "/token"
[sitter]
state_dir = "/state"
[service]
manager = "systemd"
"""


@pytest.fixture
def settings_file(tmp_path: Path) -> str:
    path = tmp_path / "manatee.toml"
    path.write_text(SETTINGS.format(path=""))
    return str(path)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("10.0.0.1", "10.0.0.1:2181"),
        ("10.0.0.1:2182", "10.0.0.1:2182"),
        ("10.0.0.1,zk.example:77", "10.0.0.1:2181,zk.example:77"),
        (" 10.0.0.1, 10.0.0.2 ", "10.0.0.1:2181,10.0.0.2:2181"),
    ],
)
def test_zookeeper_is_given_with_ports_or_without(written: str, meant: str) -> None:
    assert servers(written) == meant


@pytest.mark.parametrize("written", ["10.0.0.1:port", "10.0.0.1:0", "10.0.0.1:70000", ":2181", "a/b"])
def test_what_is_no_address_is_named(written: str) -> None:
    with pytest.raises(click.UsageError, match="is not a ZooKeeper address"):
        servers(written)


def test_addresses_are_printed_as_they_were_given_without_the_default_port() -> None:
    target = resolve(Options(zk="10.0.0.1,10.0.0.2:2181,10.0.0.3:2182", shard="sdc"), {})
    assert target.addresses == "10.0.0.1,10.0.0.2,10.0.0.3:2182"
    assert target.zookeeper.servers == "10.0.0.1:2181,10.0.0.2:2181,10.0.0.3:2182"


@pytest.mark.parametrize(
    ("shard", "root", "name"),
    [
        ("sdc", "/manatee/sdc", "sdc"),
        ("1.moray", "/manatee/1.moray", "1.moray"),
        ("/manatee/1.moray/", "/manatee/1.moray", "1.moray"),
        ("/other/place", "/other/place", "place"),
    ],
)
def test_a_shard_is_a_name_or_a_path(shard: str, root: str, name: str) -> None:
    target = resolve(Options(zk="z", shard=shard), {})
    assert (target.root, target.name) == (root, name)


@pytest.mark.parametrize("shard", ["a/b", "/", "-x", "a b"])
def test_what_is_no_shard_is_named(shard: str) -> None:
    with pytest.raises(click.UsageError, match="is not a shard"):
        resolve(Options(zk="z", shard=shard), {})


def test_what_is_missing_is_named() -> None:
    with pytest.raises(click.UsageError, match="option is required: --zk"):
        resolve(Options(shard="sdc"), {})
    with pytest.raises(click.UsageError, match="option is required: --shard"):
        resolve(Options(zk="z"), {})


def test_the_settings_file_gives_both_and_the_local_peer(settings_file: str) -> None:
    target = resolve(Options(), {"MANATEE_SITTER_CONFIG": settings_file})
    assert target.zookeeper.servers == "10.0.0.9:2181,10.0.0.8:2182"
    assert target.zookeeper.session_timeout == 4
    assert (target.root, target.name) == ("/manatee/1.moray", "1.moray")
    assert target.settings is not None
    assert target.settings.identity.id == "10.0.0.1:5432:12345"


def test_a_path_in_the_settings_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "manatee.toml"
    path.write_text(SETTINGS.format(path='path = "/elsewhere/1"'))
    target = resolve(Options(config=str(path)), {})
    assert (target.root, target.name) == ("/elsewhere/1", "1.moray")
    assert resolve(Options(config=str(path), shard="2.moray"), {}).root == "/manatee/2.moray"


def test_what_was_typed_wins_over_the_environment_and_that_over_its_file(settings_file: str) -> None:
    environment = {"ZK_IPS": "10.1.1.1", "SHARD": "other", "MANATEE_SITTER_CONFIG": settings_file}
    assert resolve(Options(zk="10.2.2.2"), environment).zookeeper.servers == "10.2.2.2:2181"
    assert resolve(Options(), environment).name == "other"
    typed = resolve(Options(config=settings_file), environment)
    assert (typed.name, typed.addresses) == ("1.moray", "10.0.0.9,10.0.0.8:2182")


def test_a_bad_settings_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="cannot be read"):
        resolve(Options(config=str(tmp_path / "missing.toml")), {})
