"""The systemd units: valid, and of the same mind as the SMF manifests."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from manatee.config import EXIT_BAD_CONFIGURATION
from manatee.service import DEADLINE
from tests.smf.test_manifests import DAEMONS, ROOT

MODULES = {"sitter": "sitter.main", "backupserver": "backupserver.main", "snapshotter": "backupserver.snapshotter"}


def unit(daemon: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "systemd" / f"manatee-{daemon}.service")
    return parser


def setting(daemon: str, name: str) -> str:
    return unit(daemon)["Service"][name]


@pytest.mark.parametrize("daemon", DAEMONS)
def test_it_runs_the_console_script_on_the_settings_file(daemon: str) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    command, option, argument = setting(daemon, "ExecStart").split()
    assert Path(command).name in scripts
    assert Path(command).name == f"manatee-{daemon}"
    assert (option, argument) == ("-c", "${MANATEE_SITTER_CONFIG}")


@pytest.mark.parametrize("daemon", DAEMONS)
def test_it_comes_back_for_ever_unless_its_settings_are_bad(daemon: str, tmp_path: Path) -> None:
    assert setting(daemon, "Restart") == "always"
    assert unit(daemon)["Unit"]["StartLimitIntervalSec"] == "0"
    assert setting(daemon, "RestartPreventExitStatus") == str(EXIT_BAD_CONFIGURATION)
    (tmp_path / "bad.toml").write_text("[shard]\n")
    ended = subprocess.run(
        [sys.executable, "-m", MODULES[daemon], "-c", tmp_path / "bad.toml"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == EXIT_BAD_CONFIGURATION
    assert ended.stderr.count("\n") == 1


def test_a_stop_is_the_sitters_and_takes_less_than_manatee_adm_waits() -> None:
    """Not PostgreSQL's: a backend that ends while it waits for the sync acknowledges what only one peer has."""
    assert setting("sitter", "KillMode") == "mixed"
    assert setting("sitter", "OOMPolicy") == "continue"
    for daemon in DAEMONS:
        assert 0 < int(setting(daemon, "TimeoutStopSec")) < DEADLINE
        assert setting(daemon, "ExecReload") == "/bin/kill -HUP $MAINPID"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
@pytest.mark.parametrize("daemon", DAEMONS)
def test_systemd_finds_nothing_wrong_with_it(daemon: str, tmp_path: Path) -> None:
    name = f"manatee-{daemon}.service"
    text = (ROOT / "systemd" / name).read_text()
    (tmp_path / name).write_text(text.replace("/opt/manatee/bin/manatee-", "/bin/true #"))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / name], capture_output=True, text=True, timeout=60
    )
    assert [line for line in found.stderr.splitlines() if f"manatee-{daemon}" in line] == []


def test_systemd_would_find_something(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not here")
    (tmp_path / "bad.service").write_text("[Service]\nExecStart=/nowhere\nNoSuchThing=1\n")
    found = subprocess.run(["systemd-analyze", "verify", "--man=no", tmp_path / "bad.service"], capture_output=True)
    assert b"NoSuchThing" in found.stderr
