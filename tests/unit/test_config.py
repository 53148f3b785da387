"""Settings: every mistake is one sentence with the key, the value and what was expected; the sample is complete."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from demo.shard import as_toml
from manatee.config import BadConfiguration, Changes, Settings, load
from manatee.reread import reread

SAMPLE = Path(__file__).parents[2] / "etc" / "manatee.toml"

MINIMAL: dict[str, dict[str, Any]] = {
    "shard": {"name": "demo"},
    "peer": {"ip": "127.0.0.2", "zone_id": "6589d30f-5fe7-4e79-899e-c6b0f540b9c0"},
    "zookeeper": {"servers": "127.0.0.1:2181"},
    "postgres": {"bin_dir": "/usr/lib/postgresql/15/bin", "socket_dir": "/run/manatee"},
    "storage": {"directory": "/var/manatee/store"},
    "backup": {"token_file": "/etc/manatee/token"},
    "sitter": {"state_dir": "/var/manatee/state"},
}


def written(tmp_path: Path, changes: dict[str, Any] | None = None) -> Path:
    """The minimal settings with `section.key` changed, or taken out where the value is None."""
    document = copy.deepcopy(MINIMAL)
    for name, value in (changes or {}).items():
        section, _, key = name.partition(".")
        if not key:
            document.pop(section, None)
        elif value is None:
            document[section].pop(key)
        else:
            document.setdefault(section, {})[key] = value
    path = tmp_path / "manatee.toml"
    path.write_text(as_toml(document))
    return path


def uncommented() -> str:
    return re.sub(r"^#(\w+ = |\[)", r"\1", SAMPLE.read_text(), flags=re.MULTILINE)


def test_the_sample_is_a_peers_settings_as_it_stands() -> None:
    settings = load(SAMPLE)
    assert settings.identity.id == "10.65.68.14:5432:12345"
    assert settings.status_port == 5433
    assert settings.shard.root == "/manatee/1.moray.example.com"


def test_the_sample_shows_every_setting_and_its_true_default(tmp_path: Path) -> None:
    path = tmp_path / "manatee.toml"
    path.write_text(uncommented())
    shown = load(path)
    as_it_stands = load(SAMPLE)
    for section in Settings.model_fields:
        values: BaseModel = getattr(shown, section)
        assert values.model_fields_set == set(type(values).model_fields), f"[{section}] of the sample is not complete"
        standing = getattr(as_it_stands, section)
        if standing is None:
            continue
        for key in values.model_fields_set - standing.model_fields_set:
            default = type(values).model_fields[key].get_default()
            assert default is not PydanticUndefined, f"{section}.{key} has no default: the sample must set it"
            if default is not None:
                assert getattr(values, key) == default, f"{section}.{key} of the sample is not the default"


def test_little_is_needed(tmp_path: Path) -> None:
    settings = load(written(tmp_path))
    assert settings.storage.data_dir == Path("/var/manatee/store/data")
    assert settings.identity.document() == {
        "id": "127.0.0.2:5432:12345",
        "ip": "127.0.0.2",
        "zoneId": "6589d30f-5fe7-4e79-899e-c6b0f540b9c0",
        "pgUrl": "tcp://postgres@127.0.0.2:5432/postgres",
        "backupUrl": "http://127.0.0.2:12345",
    }


def test_an_address_of_version_six_is_bracketed_in_urls(tmp_path: Path) -> None:
    identity = load(written(tmp_path, {"peer.ip": "fd00::14"})).identity
    assert identity.pg_url == "tcp://postgres@[fd00::14]:5432/postgres"
    assert identity.postgres_port == 5432


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peer.ip": None}, "peer.ip is missing"),
        ({"sitter": None}, "sitter is missing"),
        ({"peer.ip": "db1.example.com"}, "peer.ip = 'db1.example.com': "),
        ({"peer.postgres_port": 65536}, "peer.postgres_port = 65536: should be less than or equal to 65535"),
        ({"peer.postgres_port": "5432x"}, "peer.postgres_port = '5432x': should be a valid integer"),
        ({"peer.colour": "red"}, "peer.colour is not a setting"),
        ({"colour.red": 1}, "colour is not a setting"),
        ({"shard.name": "a/b"}, "shard.name = 'a/b': expected letters, digits, dots, dashes and underscores"),
        ({"shard.path": "manatee"}, "shard.path = 'manatee': "),
        ({"zookeeper.servers": "one two"}, "zookeeper.servers = 'one two': "),
        ({"zookeeper.session_timeout": 0.5}, "zookeeper.session_timeout = 0.5: should be greater than or equal to 1"),
        ({"postgres.query_timeout": 0}, "postgres.query_timeout = 0: should be greater than 0"),
        (
            {"storage.driver": "zfs"},
            'storage: dataset is missing: expected the name of a ZFS dataset, since driver is "zfs"',
        ),
        (
            {"storage.driver": "zfs", "storage.dataset": "tank"},
            "storage: dataset = 'tank': expected pool/name, as zfs list shows it, not a whole pool",
        ),
        ({"storage.driver": "tape"}, "storage.driver = 'tape': should be 'basebackup' or 'zfs'"),
        (
            {"postgres.replication_user": "replication"},
            "postgres: replication_password_file is missing: the role and the file with its password go together",
        ),
        ({"postgres.replication_password_file": "/p"}, "postgres: replication_user is missing: the role and"),
        (
            {"postgres.replication_user": "postgres"},
            "postgres.replication_user = 'postgres': expected a role of its own",
        ),
        ({"postgres.replication_user": 'a"b'}, "postgres.replication_user = 'a\"b': expected letters, digits"),
        ({"postgres.max_slot_wal_keep_size": 0}, "postgres.max_slot_wal_keep_size = 0: should be greater than"),
        (
            {"peer.status_port": 5432},
            "peer: postgres_port, backup_port and status_port are 5432, 12345, 5432",
        ),
        (
            {"sitter.state_dir": "/var/manatee/store/data/state"},
            "sitter.state_dir = '/var/manatee/store/data/state'",
        ),
        (
            {"postgres.socket_dir": "/" + 90 * "s"},
            f"postgres.socket_dir = '/{90 * 's'}': expected a path shorter by 3",
        ),
        ({"tls.ca_file": "/ca"}, "tls.cert_file is missing; tls.key_file is missing"),
        ({"service.manager": "supervisor"}, "service: supervisor_socket is missing: expected a path"),
        ({"log.level": "loud"}, "log.level = 'loud': should be 'debug', 'info', 'warning' or 'error'"),
        ({"backup.max_streams": 0}, "backup.max_streams = 0: should be greater than or equal to 1"),
    ],
)
def test_a_mistake_is_said_with_key_value_and_what_was_expected(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = written(tmp_path, changes)
    with pytest.raises(BadConfiguration) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"peer\.ip is missing; .*log\.level = 'loud'"):
        load(written(tmp_path, {"peer.ip": None, "log.level": "loud"}))


def test_a_file_that_cannot_be_read_or_is_not_toml_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"absent\.toml: cannot be read: No such file"):
        load(tmp_path / "absent.toml")
    path = tmp_path / "manatee.toml"
    path.write_text("[shard\n")
    with pytest.raises(BadConfiguration, match="not TOML: "):
        load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadConfiguration, match="not TOML: "):
        load(path)


class Log:
    """Notes what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    def _note(self, event: str, **values: Any) -> None:
        self.said.append((event, values))

    info = warning = error = _note


def test_settings_are_read_again_and_what_needs_a_restart_is_named(tmp_path: Path) -> None:
    path, log = written(tmp_path), cast(Any, Log())
    settings = load(path)
    part = settings  # what a part of the daemon holds
    written(tmp_path, {"postgres.sync_grace": 3, "postgres.bin_dir": "/elsewhere", "peer.ip": "127.0.0.9"})
    assert reread(settings, path, log)
    assert part.postgres.sync_grace == 3
    assert part.postgres.bin_dir == Path("/usr/lib/postgresql/15/bin")
    assert part.identity.ip == "127.0.0.2"
    assert log.said[0][1] == {"changed": ["postgres.sync_grace"]}
    assert log.said[1][1] == {"settings": ["peer.ip", "postgres.bin_dir"]}


@pytest.mark.parametrize("mistake", [{"postgres.sync_grace": -1}, {"postgres.replication_user": "r"}])
def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path, mistake: dict[str, Any]) -> None:
    path, log = written(tmp_path), cast(Any, Log())
    settings = load(path)
    written(tmp_path, {"postgres.query_timeout": 1, **mistake})
    assert not reread(settings, path, log)
    assert settings == load(written(tmp_path))
    assert "stay as they are" in log.said[0][0]


def test_every_section_says_whether_it_can_change(tmp_path: Path) -> None:
    settings = load(written(tmp_path))
    assert settings.take_over(load(written(tmp_path))) == Changes()
