"""Services are started, stopped and asked about in the same three words, whoever keeps them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from demo.supervisor import Program, Supervisor
from manatee.config import Service
from manatee.service import ServiceError, Services, Smf, State, Systemd, services
from manatee.service import Supervisor as Client
from tests.admin.stage import until

# Stands in for svcadm and svcs, or systemctl: remembers the state in a file and every call in another.
FAKE = """\
#!/bin/sh
echo "$(basename "$0") $*" >> {directory}/calls
cd {directory}
{body}
"""
SVCADM = """\
case "$1" in
enable) echo online - > state;;
disable) echo disabled - > state;;
clear) echo offline - > state;;
esac
"""
SVCS = """\
case "$4" in *nosuch) echo "svcs: Pattern 'nosuch' doesn't match any instances" >&2; exit 1;; esac
cat state
"""
SYSTEMCTL = """\
case "$1" in
start) echo active > state;;
stop) echo inactive > state;;
reset-failed) echo inactive > state;;
show)
    case "$3" in nosuch*) echo LoadState=not-found;; *) echo LoadState=loaded;; esac
    echo "ActiveState=$(cat state)";;
esac
"""


class Machine:
    """A machine whose service manager is a few lines of shell."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def install(self, name: str, body: str) -> None:
        path = self.directory / name
        path.write_text(FAKE.format(directory=self.directory, body=body))
        path.chmod(0o755)

    def says(self, state: str) -> None:
        (self.directory / "state").write_text(state + "\n")

    @property
    def calls(self) -> list[str]:
        return (self.directory / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    return Machine(tmp_path)


@pytest.fixture
def smf(machine: Machine) -> Smf:
    machine.install("svcadm", SVCADM)
    machine.install("svcs", SVCS)
    machine.says("online -")
    return Smf(deadline=5)


@pytest.fixture
def systemd(machine: Machine) -> Systemd:
    machine.install("systemctl", SYSTEMCTL)
    machine.says("active")
    return Systemd(deadline=5)


async def test_smf_is_asked_to_wait_and_to_forget_it_at_the_next_boot(smf: Smf, machine: Machine) -> None:
    await smf.stop("manta/application/manatee-sitter")
    assert await smf.state("manta/application/manatee-sitter") is State.STOPPED
    await smf.start("manta/application/manatee-sitter")
    assert await smf.state("manta/application/manatee-sitter") is State.RUNNING
    changing = [call for call in machine.calls if call.startswith("svcadm")]
    assert changing == [
        "svcadm disable -st manta/application/manatee-sitter",
        "svcadm enable -st manta/application/manatee-sitter",
    ]


async def test_a_service_in_maintenance_is_cleared_before_it_is_started(smf: Smf, machine: Machine) -> None:
    machine.says("maintenance -")
    assert await smf.state("sitter") is State.FAILED
    await smf.start("sitter")
    assert [call for call in machine.calls if call.startswith("svcadm")] == [
        "svcadm clear sitter",
        "svcadm enable -st sitter",
    ]


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("online -", State.RUNNING),
        ("degraded -", State.RUNNING),
        ("online offline", State.CHANGING),
        ("offline* online", State.CHANGING),
        ("offline -", State.CHANGING),
        ("disabled -", State.STOPPED),
        ("maintenance -", State.FAILED),
        ("legacy_run -", State.UNKNOWN),
    ],
)
async def test_smfs_states(smf: Smf, machine: Machine, said: str, state: State) -> None:
    machine.says(said)
    assert await smf.state("sitter") is state


async def test_a_service_that_smf_does_not_know_is_an_error_in_its_words(smf: Smf) -> None:
    with pytest.raises(ServiceError, match=r"svcs .* failed with status 1: svcs: Pattern 'nosuch' doesn't match"):
        await smf.state("nosuch")


async def test_systemd_starts_and_stops_and_clears_a_failure(systemd: Systemd, machine: Machine) -> None:
    await systemd.stop("manatee-sitter")
    assert await systemd.state("manatee-sitter") is State.STOPPED
    machine.says("failed")
    await systemd.start("manatee-sitter")
    assert await systemd.state("manatee-sitter") is State.RUNNING
    assert "systemctl reset-failed manatee-sitter" in machine.calls
    with pytest.raises(ServiceError, match="no unit nosuch"):
        await systemd.state("nosuch")


async def test_a_manager_that_hangs_or_is_not_there_is_an_error_in_time(machine: Machine) -> None:
    with pytest.raises(ServiceError, match="svcs is not installed here"):
        await Smf().state("sitter")
    machine.install("systemctl", "exec sleep 60")
    with pytest.raises(ServiceError, match="did not end within 0.2 s"):
        await Systemd(deadline=0.2).stop("sitter")


# --- The supervisor -----------------------------------------------------------------------------------------------


async def test_the_supervisor_stops_and_starts_over_its_socket(tmp_path: Path) -> None:
    program = Program("sitter-1", (sys.executable, "-c", "import time; time.sleep(600)"), tmp_path / "log")
    async with Supervisor([program], socket=tmp_path / "socket"):
        keeper: Services = Client(tmp_path / "socket", deadline=10)
        assert await keeper.state("sitter-1") is State.STOPPED
        await keeper.start("sitter-1")
        assert await keeper.state("sitter-1") is State.RUNNING
        await keeper.start("sitter-1")
        await keeper.stop("sitter-1")
        assert await keeper.state("sitter-1") is State.STOPPED
        await keeper.stop("sitter-1")
        with pytest.raises(ServiceError, match="cannot start nosuch: no program of that name"):
            await keeper.start("nosuch")


async def test_a_program_that_keeps_dying_is_on_its_way(tmp_path: Path) -> None:
    program = Program("dying", (sys.executable, "-c", "raise SystemExit(1)"), tmp_path / "log")
    async with Supervisor([program], socket=tmp_path / "socket") as supervisor:
        await supervisor.start("dying")
        keeper = Client(tmp_path / "socket")

        async def waiting() -> bool:
            return await keeper.state("dying") is State.CHANGING

        await until(waiting)


async def test_a_supervisor_that_is_not_there_hangs_up_or_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"cannot be reached: No such file"):
        await Client(tmp_path / "nothing").state("sitter")

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    for serve, said in ((hang_up, "hung up instead of answering"), (say_nothing, r"did not stop sitter in 0.2 s")):
        async with await asyncio.start_unix_server(serve, tmp_path / "socket"):
            with pytest.raises(ServiceError, match=said):
                await Client(tmp_path / "socket", deadline=0.2).stop("sitter")


def test_the_settings_say_who_keeps_the_services(tmp_path: Path) -> None:
    assert isinstance(services(Service(manager="smf")), Smf)
    assert isinstance(services(Service(manager="systemd")), Systemd)
    assert isinstance(services(Service(manager="supervisor", supervisor_socket=tmp_path / "s")), Client)
