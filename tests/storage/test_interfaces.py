"""How ZFS is reached: found out, forced, and said; and what zfs(8) says is read right."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import structlog

from manatee.log import Logger
from manatee.storage.zfs import by_library, command
from manatee.storage.zfs.errors import Busy, Denied, Exists, HasClones, Missing, Unusable, ZfsError, from_words
from manatee.storage.zfs.interface import choose
from manatee.storage.zfs.names import Names
from tests.storage.conftest import NewPeer

LOG: Logger = structlog.get_logger()


class ZFSError(Exception):
    """As libzfs_core's."""


class ZFSInitializationFailed(ZFSError):
    pass


@pytest.mark.parametrize(
    "failure", [ZFSInitializationFailed("[Errno 2] no /dev/zfs"), OSError("libzfs_core.so.3: cannot open")]
)
@pytest.mark.usefixtures("interface")
async def test_a_library_that_fails_at_its_first_call_makes_way_for_the_command(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, pool: tuple[str, Any]
) -> None:
    def fail(_: bytes) -> bool:
        raise failure

    module: Any = types.ModuleType("libzfs_core")
    module.lzc_exists = fail
    monkeypatch.setitem(sys.modules, "libzfs_core", module)
    names = Names(f"{pool[0]}/none")
    assert (await choose("auto", names, LOG)).name == "zfs"
    with pytest.raises(Unusable):
        await choose("libzfs_core", names, LOG)


async def test_neither_library_nor_command_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_library, "_DISTRIBUTION", ())
    monkeypatch.setitem(sys.modules, "libzfs_core", None)
    monkeypatch.setattr(command, "_SYSTEM", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unusable, match="there is no zfs command here"):
        await choose("auto", Names("tank/none"), LOG)


async def test_the_state_says_how_it_is_reached(new_peer: NewPeer, interface: str) -> None:
    peer = new_peer()
    await peer.storage.open()
    assert peer.storage.detail["interface"] == interface
    assert peer.storage.detail["dataset"] == peer.dataset


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("cannot open 'a/b': dataset does not exist", Missing),
        ("cannot destroy 'a': filesystem has dependent clones use '-R' to destroy ...", HasClones),
        ("cannot create 'a/b': dataset already exists", Exists),
        ("cannot destroy 'a@1': dataset is busy", Busy),
        ("umount: /x: target is busy. cannot unmount '/x': umount failed", Busy),
        ("cannot mount 'a/b': Insufficient privileges", Denied),
        ("cannot create 'a/b': permission denied", Denied),
        ("cannot receive: invalid stream (bad magic number)", ZfsError),
    ],
)
def test_what_zfs_refuses_is_told_apart(words: str, kind: type[ZfsError]) -> None:
    assert type(from_words(words)) is kind


def test_options_are_read_from_the_usage_of_every_zfs() -> None:
    openzfs = """missing snapshot argument usage: send [-DLPbcehnpsVvw] [-i|-I snapshot]
        [-R [-X dataset[,dataset]...]] <snapshot> send [-nVvPe] -t <receive_resume_token>"""
    illumos = "usage: send [-DnPpRvLecwhb] [-[i|I] snapshot] <snapshot> send [-nvPe] -t <receive_resume_token>"
    fuse = "usage: send [-RDp] [-[iI] snapshot] <snapshot>"
    assert [set("Lecw") <= command.letters(usage) for usage in (openzfs, illumos, fuse)] == [True, True, False]
    assert "s" in command.letters("receive [-vMnsFhu] [-o <property>=<value>] ... [-x <property>]")
    assert "s" not in command.letters("receive [-vnF] <filesystem|volume|snapshot> receive [-vnF] -d <filesystem>")
