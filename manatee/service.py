"""Starting and stopping this peer's daemons, whoever does that here: the small supervisor, SMF or systemd.

The interface is three questions wide: `start`, `stop` and `state` of a service by the name that its keeper knows.
`start` and `stop` return when it is done, not when it was asked for: after `stop` the daemon and its children are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from manatee.config import Service

DEADLINE = 90.0
"""Seconds for one start or stop: a sitter that stops lets PostgreSQL end first."""
_ANSWER = 10.0
"""Seconds for a question that changes nothing."""


class ServiceError(Exception):
    """A service could not be started, stopped or asked about; the message says which, and what was answered."""


class State(StrEnum):
    """What a service is doing."""

    RUNNING = "running"
    STOPPED = "stopped"
    CHANGING = "changing"
    """On its way from the one to the other."""
    FAILED = "failed"
    """Given up by its keeper: SMF's maintenance, systemd's failed."""
    UNKNOWN = "unknown"


class Services(Protocol):
    """Who keeps the services of this machine."""

    async def start(self, name: str) -> None:
        """Start it, if it does not run; clears a failure that its keeper remembers. Raises ServiceError."""

    async def stop(self, name: str) -> None:
        """Stop it until the machine's next start, and wait until it is gone. Raises ServiceError."""

    async def state(self, name: str) -> State:
        """What it is doing now. Raises ServiceError, also when there is no such service."""


def services(settings: Service, *, deadline: float = DEADLINE) -> Services:
    """The services that the settings file speaks of; `deadline` in seconds for each start or stop."""
    if settings.manager == "supervisor":
        assert settings.supervisor_socket is not None  # the settings are validated so
        return Supervisor(settings.supervisor_socket, deadline=deadline)
    return Smf(deadline=deadline) if settings.manager == "smf" else Systemd(deadline=deadline)


class Supervisor:
    """The small supervisor of the demo, the local cluster and the tests: JSON lines over a Unix socket."""

    def __init__(self, path: Path, *, deadline: float = DEADLINE) -> None:
        self._path = path
        self._deadline = deadline

    async def start(self, name: str) -> None:
        await self._ask("start", name, self._deadline)

    async def stop(self, name: str) -> None:
        await self._ask("stop", name, self._deadline)

    async def state(self, name: str) -> State:
        answer = await self._ask("status", name, _ANSWER)
        said = str(answer.get("state"))
        known = {"running": State.RUNNING, "stopped": State.STOPPED, "waiting": State.CHANGING}
        return known.get(said, State.UNKNOWN)

    async def _ask(self, command: str, name: str, deadline: float) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(deadline):
                line = await self._exchange(json.dumps({"command": command, "service": name}).encode() + b"\n")
            answer = json.loads(line)
        except TimeoutError:
            raise ServiceError(f"the supervisor at {self._path} did not {command} {name} in {deadline:g} s") from None
        except OSError as error:
            raise ServiceError(
                f"the supervisor at {self._path} cannot be reached: {error.strerror or error}"
            ) from error
        except ValueError:
            raise ServiceError(
                f"the supervisor at {self._path} hung up instead of answering {command} {name}"
            ) from None
        if not isinstance(answer, dict) or not answer.get("ok"):
            said = answer.get("error") if isinstance(answer, dict) else None
            raise ServiceError(f"the supervisor cannot {command} {name}: {said or line.decode(errors='replace')}")
        return answer

    async def _exchange(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        try:
            writer.write(request)
            await writer.drain()
            return await reader.readline()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class Smf:
    """The illumos Service Management Facility (svcadm(8), svcs(1)).

    Both ways are temporary (`-t`): after a reboot the service is what the operator made of it.
    """

    def __init__(self, *, deadline: float = DEADLINE) -> None:
        self._deadline = deadline

    async def start(self, name: str) -> None:
        if await self.state(name) is State.FAILED:
            await _run(["svcadm", "clear", name], self._deadline)
        await _run(["svcadm", "enable", "-st", name], self._deadline)

    async def stop(self, name: str) -> None:
        await _run(["svcadm", "disable", "-st", name], self._deadline)

    async def state(self, name: str) -> State:
        said = (await _run(["svcs", "-H", "-o", "state,nstate", name], _ANSWER)).split()
        if len(said) != 2:
            raise ServiceError(f"svcs says of {name}: {' '.join(said) or 'nothing'}")
        now, becoming = said[0].rstrip("*"), said[1]
        if now == "maintenance":
            return State.FAILED
        if becoming != "-" or said[0].endswith("*"):
            return State.CHANGING
        known = {
            "online": State.RUNNING,
            "degraded": State.RUNNING,
            "disabled": State.STOPPED,
            "offline": State.CHANGING,  # enabled, and waiting for what it depends on
            "uninitialized": State.CHANGING,
        }
        return known.get(now, State.UNKNOWN)


class Systemd:
    """systemd (systemctl(1)). A unit's name may go without `.service`."""

    def __init__(self, *, deadline: float = DEADLINE) -> None:
        self._deadline = deadline

    async def start(self, name: str) -> None:
        if await self.state(name) is State.FAILED:
            await _run(["systemctl", "reset-failed", name], _ANSWER)
        await _run(["systemctl", "start", name], self._deadline)

    async def stop(self, name: str) -> None:
        await _run(["systemctl", "stop", name], self._deadline)

    async def state(self, name: str) -> State:
        said = await _run(["systemctl", "show", "--property=LoadState,ActiveState", name], _ANSWER)
        properties = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        if properties.get("LoadState") not in ("loaded", None):
            raise ServiceError(f"systemd has no unit {name} that it can start: {properties['LoadState']}")
        known = {
            "active": State.RUNNING,
            "reloading": State.RUNNING,
            "inactive": State.STOPPED,
            "failed": State.FAILED,
            "activating": State.CHANGING,
            "deactivating": State.CHANGING,
        }
        return known.get(properties.get("ActiveState", ""), State.UNKNOWN)


async def _run(command: list[str], deadline: float) -> str:
    """What the command printed; raises ServiceError with what it complained of."""
    words = " ".join(command)
    if shutil.which(command[0]) is None:
        raise ServiceError(f"{command[0]} is not installed here: is service.manager right in the settings file?")
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(deadline):
            output, complaint = await child.communicate()
    except TimeoutError:
        raise ServiceError(f"{words} did not end within {deadline:g} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        said = " ".join((complaint or output).decode(errors="replace").split())
        raise ServiceError(f"{words} failed with status {child.returncode}: {said or 'no message'}")
    return output.decode(errors="replace")
