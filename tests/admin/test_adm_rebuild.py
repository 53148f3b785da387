"""`manatee-adm rebuild` in its order, interrupted and gone on with, on real ZooKeeper, with a sitter's stand-in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog
from aiohttp import web

from demo.supervisor import Program, Supervisor
from demo.zookeeper import ZooKeeperServer
from manatee.cluster import ClusterState, Peer, PeerStatus
from manatee.config import Settings, ZooKeeper, load
from manatee.coordination import Conflict, Coordination
from manatee.storage import Dropped
from tests.admin.shapes import peer
from tests.admin.stage import PEERS, REPOSITORY, Coordinated, Run, environment, manatee_adm, state_of_chain, until

A, B, _ = PEERS
ME = peer("dddddddd-0000-4000-8000-000000000000", "127.14.0.5")

SETTINGS = """\
[shard]
name = "{shard}"
[peer]
ip = "127.14.0.5"
zone_id = "{zone}"
[zookeeper]
servers = "{zookeeper}"
session_timeout = 2
[postgres]
bin_dir = "/bin"
user = "root"
socket_dir = "{directory}"
[storage]
directory = "{directory}/store"
[backup]
token_file = "/token"
[sitter]
state_dir = "{directory}/state"
[service]
manager = "supervisor"
sitter = "sitter"
supervisor_socket = "{directory}/socket"
"""


@dataclass
class Local:
    """The local peer on its machine: settings, data, memory, and a supervisor that keeps its sitter."""

    directory: Path
    settings: Settings
    supervisor: Supervisor
    shard: Coordinated
    followed: asyncio.Event
    """While it is set the primary acts on every generation."""

    @property
    def data(self) -> Path:
        return self.directory / "store" / "data"

    @property
    def memory(self) -> Path:
        return self.directory / "state" / "memory.json"

    @property
    def isolated(self) -> list[str]:
        found = self.directory / "store" / "isolated"
        return sorted(path.name for path in found.iterdir()) if found.exists() else []

    def behave(self, how: str) -> None:
        (self.directory / "behaviour").write_text(how)

    def restored(self) -> bool:
        return (self.data / "global" / "pg_control").read_bytes() == b"restored"

    async def rebuild(self, *options: str, typed: str = "") -> Run:
        return await manatee_adm("rebuild", *options, "-c", self.directory / "manatee.toml", typed=typed)


@pytest.fixture
async def local(shard: Coordinated, tmp_path: Path) -> AsyncIterator[Local]:
    """A deposed peer with data and a memory, its sitter running; A and B serve, and A keeps the list."""
    for name in ("store/data/global", "state"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "store/data/PG_VERSION").write_text("15\n")
    (tmp_path / "store/data/global/pg_control").write_bytes(b"diverged")
    (tmp_path / "state/memory.json").write_text("{}")
    (tmp_path / "behaviour").write_text("well")
    path = tmp_path / "manatee.toml"
    path.write_text(
        SETTINGS.format(shard=shard.name, zone=ME.zone_id, zookeeper=shard.zookeeper.servers, directory=tmp_path)
    )
    argv = (sys.executable, "-m", "tests.admin.stand_in", path)
    program = Program("sitter", argv, tmp_path / "sitter.log", env=environment(), grace=5)
    await shard.write(state_of_chain(deposed=[ME.document()], freeze=True, kept="as it is", **{"async": []}))
    async with contextlib.AsyncExitStack() as stack:
        supervisor = await stack.enter_async_context(Supervisor([program], socket=tmp_path / "socket"))
        followed = asyncio.Event()
        followed.set()
        for each in (A, B):
            await stack.enter_async_context(playing(each, shard.zookeeper, shard.coordination.root, followed))
        await supervisor.start("sitter")
        here = Local(tmp_path, load(path), supervisor, shard, followed)
        await until(lambda: present(here))
        yield here


@contextlib.asynccontextmanager
async def playing(who: Peer, zookeeper: ZooKeeperServer, root: str, followed: asyncio.Event) -> AsyncIterator[None]:
    """A peer that serves, with a backup server that answers; the primary takes strangers into the list."""
    coordination = Coordination(ZooKeeper(servers=zookeeper.servers, session_timeout=2), root, structlog.get_logger())
    application = web.Application()
    application.router.add_get("/ping", ping)
    runner = web.AppRunner(application)
    await runner.setup()
    task = None
    try:
        await web.TCPSite(runner, who.ip, 12345).start()
        await coordination.start(within=20)
        await coordination.join(who)
        await coordination.publish(PeerStatus(initialized=True, serving=True, ready=True, generation=1))
        if who is A:
            task = asyncio.create_task(keep_list(coordination, followed))
        yield
    finally:
        if task is not None:
            task.cancel()
        await runner.cleanup()
        await coordination.close()


async def ping(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def keep_list(coordination: Coordination, followed: asyncio.Event) -> None:
    while True:
        view = await coordination.read()
        assert view.state is not None
        if followed.is_set():
            generation = view.state.generation
            await coordination.publish(PeerStatus(initialized=True, serving=True, ready=True, generation=generation))
        named = {each.id for each in (*view.state.assigned, *view.state.deposed)}
        strangers = [each.peer for each in view.active if each.peer.id not in named]
        if strangers:
            with contextlib.suppress(Conflict):
                new = view.state.replace(asyncs=[*view.state.asyncs, *strangers])
                await coordination.write_state(new, version=view.version)
        await asyncio.sleep(0.02)


async def present(local: Local) -> bool:
    view = await local.shard.coordination.read()
    return any(each.peer.id == ME.id and each.status is not None for each in view.active)


async def test_a_takeover_that_is_not_through_yet_is_waited_for(local: Local) -> None:
    """Right after a promote the new primary does not serve yet: in a moment there will be somebody to restore from."""
    local.followed.clear()
    await rewrite(local, {"generation": 2, "deposed": [ME.document()]})
    async with started(local) as child:
        assert child.stdout is not None
        line = (await asyncio.wait_for(child.stdout.readline(), 30)).decode()
        assert "Waiting up to 60 s: no other peer of the shard serves (aaaaaaaa has not acted on generation 2" in line
        assert local.memory.exists()
        local.followed.set()
        rest, _ = await asyncio.wait_for(child.communicate(), 60)
    assert "it is restored from aaaaaaaa (127.14.0.2)." in rest.decode()
    assert child.returncode == 0
    assert local.restored()


async def test_nobody_is_waited_for_for_ever(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("admin.rebuild.SOURCE", 0.5)
    local.followed.clear()
    await rewrite(local, {"generation": 2, "deposed": [ME.document()]})
    run = await local.rebuild("-y")
    assert run.status == 1
    assert "there is nobody to restore from, not within 0.5 s either: the data stay" in run.err
    assert local.memory.exists()
    assert local.supervisor.status("sitter").state == "running"


async def test_a_deposed_peer_is_rebuilt_step_by_step(local: Local) -> None:
    run = await local.rebuild("-y")
    assert run.status == 0, run
    assert steps(run.out) == [
        f"Rebuilding dddddddd (127.14.0.5), deposed in {local.shard.name}",
        "Stopping sitter.",
        "Set the data aside",
        "Took the peer off the deposed list.",
        "Starting sitter.",
        "Destroyed what had been set aside (1).",
        "Rebuild successful",
    ]
    assert "its data are set aside, and it is restored from aaaaaaaa (127.14.0.2) or bbbbbbbb (127.14.0.3)" in run.out
    assert "dddddddd is async 0 of generation 1, streaming." in run.out
    assert local.restored()
    assert local.isolated == []
    assert not local.memory.exists()
    state = await local.shard.state()
    assert (state.generation, state.frozen, state.document()["kept"]) == (1, True, "as it is")
    assert state.deposed == ()
    assert [each.id for each in state.asyncs] == [ME.id]


async def test_what_was_set_aside_and_cannot_be_destroyed_yet_is_named(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drop_isolated(*_: object) -> Dropped:
        return Dropped(0, {"tank/pg1/isolated/rebuild-1700000000001": "somebody's clone depends on it"})

    monkeypatch.setattr("manatee.storage.basebackup.BaseBackup.drop_isolated", drop_isolated)
    run = await local.rebuild("-y")
    assert run.status == 0, run
    assert "tank/pg1/isolated/rebuild-1700000000001 stays for now, and takes space: somebody's clone" in run.out


def steps(out: str) -> list[str]:
    """What it did, without what it waited for and what differs from run to run."""
    beginnings = ("Rebuil", "Stopping", "Set", "Took", "Starting", "Destroyed")
    lines = [line.split(":")[0] for line in out.splitlines() if line.startswith(beginnings)]
    return [line for line, before in zip(lines, ["", *lines], strict=False) if line != before]


async def test_what_was_set_aside_is_kept_when_the_restore_fails(local: Local) -> None:
    local.behave("fail")
    run = await local.rebuild("-y")
    assert run.status == 1
    assert "manatee-adm: the restore has failed: no space left on device" in run.err
    assert [name[:7] for name in local.isolated] == ["rebuild"]
    local.behave("well")
    again = await local.rebuild("-y")
    assert again.status == 0, again
    assert local.restored()
    assert local.isolated == []


async def test_no_progress_for_too_long_ends_it(local: Local) -> None:
    local.behave("stall")
    run = await local.rebuild("-y", "--patience", "8")
    assert run.status == 1
    assert "no progress for 8 s: restoring from http://127.14.0.2:12345" in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize(
    "after", ["Stopping sitter", "Set the data aside", "Took the peer", "Starting sitter", "restoring"]
)
async def test_interrupted_after_any_step_and_run_again_it_goes_on(local: Local, after: str) -> None:
    local.behave("stall")
    await killed_after(local, after)
    local.behave("well")
    again = await local.rebuild("-y")
    assert again.status == 0, again
    assert local.restored()
    assert local.isolated == []
    state = await local.shard.state()
    assert [each.id for each in state.asyncs] == [ME.id]
    assert (state.deposed, state.frozen) == ((), True)


async def killed_after(local: Local, line: str) -> None:
    """SIGKILL as soon as it has printed that line."""
    async with started(local) as child, asyncio.timeout(30):
        assert child.stdout is not None
        while not (printed := await child.stdout.readline()).decode().startswith(line):
            assert printed, f"it ended before it said: {line}"


@contextlib.asynccontextmanager
async def started(local: Local) -> AsyncIterator[asyncio.subprocess.Process]:
    """A rebuild as a process of its own; killed at the end, if it still runs."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-m", "admin.main", "rebuild", "-y", "-c", local.directory / "manatee.toml",
        stdout=asyncio.subprocess.PIPE, env=environment(), cwd=REPOSITORY,
    )  # fmt: skip
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def test_nothing_is_touched_without_a_yes(local: Local) -> None:
    run = await local.rebuild(typed="n\n")
    assert run.status == 1
    assert local.memory.exists()
    assert (local.data / "global" / "pg_control").read_bytes() == b"diverged"
    assert local.supervisor.status("sitter").state == "running"
    assert [each.id for each in (await local.shard.state()).deposed] == [ME.id]


async def test_a_primary_or_sync_keeps_its_data(local: Local) -> None:
    cases: tuple[tuple[dict[str, object], str], ...] = (
        ({"primary": ME.document(), "sync": B.document()}, "this peer is the primary"),
        ({"sync": ME.document(), "async": [B.document()]}, "this peer is the sync"),
    )
    for changes, said in cases:
        await rewrite(local, changes)
        run = await local.rebuild("-y")
        assert run.status == 1
        assert said in run.err
        assert run.err.count("\n") == 1
        assert local.memory.exists()
        assert local.supervisor.status("sitter").state == "running"


async def rewrite(local: Local, changes: dict[str, object]) -> None:
    async def write() -> bool:
        document = {**state_of_chain(**{"async": []}).document(), **changes}
        try:
            await local.shard.write(ClusterState.of(document))
        except Conflict:
            return False
        return True

    await until(write)


async def test_without_a_backup_server_the_data_stay(shard: Coordinated, local: Local) -> None:
    here = {**B.document(), "backupUrl": "http://127.14.0.96:1"}
    there = {**A.document(), "backupUrl": "http://127.14.0.96:2"}
    await rewrite(local, {"primary": there, "sync": here, "deposed": [ME.document()]})
    run = await local.rebuild("-y")
    assert run.status == 1
    assert "no backup server answers, so the data stay: aaaaaaaa: http://127.14.0.96:2" in run.err
    assert local.memory.exists()


async def test_a_sitter_that_nobody_stopped_is_not_robbed_of_its_data(local: Local) -> None:
    """Another sitter for the same peer, or one outside of the service manager: its election node stays."""
    settings = ZooKeeper(servers=local.shard.zookeeper.servers, session_timeout=2)
    other = Coordination(settings, local.shard.coordination.root, structlog.get_logger())
    await other.start(within=10)
    try:
        await other.join(ME)
        run = await local.rebuild("-y")
    finally:
        await other.close()
    assert run.status == 1
    assert "does another sitter run for this peer?" in run.err
    assert local.memory.exists()
    assert local.isolated == []


async def test_something_on_the_port_is_not_robbed_of_its_data(local: Local) -> None:
    server = await asyncio.start_server(lambda *_: None, ME.ip, 5432)
    try:
        run = await local.rebuild("-y")
    finally:
        server.close()
    assert run.status == 1
    assert "something still listens on 127.14.0.5:5432" in run.err
    assert local.memory.exists()


async def test_it_needs_the_settings_file_and_a_service_manager_that_answers(local: Local) -> None:
    without = await manatee_adm("rebuild", "-y", *local.shard.options)
    assert without.status == 2
    assert "option is required: --config" in without.err
    await local.supervisor.stop("sitter")
    (local.directory / "socket").unlink()
    run = await local.rebuild("-y")
    assert run.status == 1
    assert "manatee-adm: the supervisor at" in run.err
    assert "run rebuild again to go on" in run.err
    assert json.loads(local.memory.read_text()) == {}
