"""The SMF manifests: valid, complete, and with methods that do what they are for.

`service_bundle.dtd.1` is illumos' own, the one that `svccfg validate` goes by.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lxml import etree

ROOT = Path(__file__).parents[2]
DAEMONS = ["sitter", "backupserver", "snapshotter"]


def manifest(daemon: str) -> etree._ElementTree:
    return etree.parse(ROOT / "smf" / f"{daemon}.xml", etree.XMLParser(load_dtd=False, no_network=True))


def attribute(daemon: str, path: str, name: str) -> str:
    (element,) = manifest(daemon).xpath(path)
    return str(element.get(name))


def method(daemon: str, name: str) -> str:
    return attribute(daemon, f"//exec_method[@name='{name}']", "exec")


@pytest.mark.parametrize("daemon", DAEMONS)
def test_it_is_valid(daemon: str) -> None:
    dtd = etree.DTD(str(Path(__file__).with_name("service_bundle.dtd.1")))
    assert dtd.validate(manifest(daemon)), dtd.error_log.filter_from_errors()


@pytest.mark.parametrize("daemon", DAEMONS)
def test_an_invalid_one_would_be_noticed(daemon: str) -> None:
    dtd = etree.DTD(str(Path(__file__).with_name("service_bundle.dtd.1")))
    broken = manifest(daemon)
    (service,) = broken.xpath("//service")
    service.append(etree.SubElement(service, "dependency"))
    assert not dtd.validate(broken)


@pytest.mark.parametrize("daemon", DAEMONS)
def test_it_names_the_service_that_triton_knows(daemon: str) -> None:
    assert attribute(daemon, "//service", "name") == f"manta/application/manatee-{daemon}"


@pytest.mark.parametrize("daemon", DAEMONS)
def test_it_waits_for_network_filesystems_and_where_there_is_one_config_agent(daemon: str) -> None:
    found = {
        (dependency.get("grouping"), dependency.find("service_fmri").get("value"))
        for dependency in manifest(daemon).iterfind(".//dependency")
    }
    assert found == {
        ("require_all", "svc:/network/physical"),
        ("require_all", "svc:/system/filesystem/local"),
        ("optional_all", "svc:/smartdc/application/config-agent"),
    }


@pytest.mark.parametrize("daemon", DAEMONS)
def test_the_start_method_runs_the_console_script_on_the_settings_in_the_property(daemon: str) -> None:
    import tomllib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    command, option, argument = method(daemon, "start").split()
    assert command in scripts
    assert command == f"manatee-{daemon}"
    assert (option, argument) == ("-c", "%{config/file}")
    assert attribute(daemon, "//property_group[@name='config']/propval[@name='file']", "value").endswith(".toml")


@pytest.mark.parametrize("daemon", DAEMONS)
def test_the_context_says_who_where_and_with_which_path(daemon: str) -> None:
    assert attribute(daemon, "//method_credential", "user") == "postgres"
    assert attribute(daemon, "//method_context", "working_directory").startswith("/")
    path = attribute(daemon, "//envvar[@name='PATH']", "value").split(":")
    assert {"/opt/manatee/bin", "/usr/bin"} <= set(path)


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_dying_postgresql_backend_does_not_restart_the_service(daemon: str) -> None:
    """smf_restarter: `child` watches the started process alone; core dumps and signals in the contract are ignored."""
    startd = "//property_group[@name='startd']/propval[@name='{}']"
    assert attribute(daemon, startd.format("duration"), "value") == "child"
    assert attribute(daemon, startd.format("ignore_error"), "value") == "core,signal"


@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.parametrize("name", ["stop", "refresh"])
def test_stop_and_refresh_have_a_timeout(daemon: str, name: str) -> None:
    seconds = int(attribute(daemon, f"//exec_method[@name='{name}']", "timeout_seconds"))
    # manatee-adm waits 90 seconds for a stop.
    assert 0 < seconds < 90


@pytest.mark.parametrize(
    ("daemon", "name", "number"),
    [("sitter", "stop", signal.SIGTERM), *((daemon, "refresh", signal.SIGHUP) for daemon in DAEMONS)],
)
def test_methods_signal_the_daemon_and_not_what_it_runs(
    tmp_path: Path, daemon: str, name: str, number: signal.Signals
) -> None:
    """A backend that is ended while it waits for the sync would acknowledge what only one peer has; a program that
    sends a snapshot does not know SIGHUP."""
    svcprop = tmp_path / "svcprop"
    svcprop.write_text('#!/bin/sh\n[ "$1 $2 $3" = "-p restarter/start_pid svc:/test:default" ] && echo "$SITTER"\n')
    svcprop.chmod(0o755)
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as sitter,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as postgresql,
    ):
        try:
            environment = {
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "SMF_FMRI": "svc:/test:default",
                "SITTER": str(sitter.pid),
            }
            # As svc.startd runs a method.
            subprocess.run(["/bin/sh", "-c", f"exec {method(daemon, name)}"], env=environment, check=True, timeout=10)
            assert sitter.wait(timeout=10) == -number
            assert postgresql.poll() is None
        finally:
            sitter.kill()
            postgresql.kill()


def test_tokens_are_those_that_smf_method_knows() -> None:
    for daemon in DAEMONS:
        for name in ("start", "stop", "refresh"):
            for token in re.findall(r"%(\{.*?\}|.)", method(daemon, name)):
                assert token == "{config/file}"
