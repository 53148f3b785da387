"""What a stream is agreed to hold and how much room it needs: by what both ends have said, without a ZFS."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from manatee.storage import NoSpace, Offer, ReceiveFailed
from manatee.storage.zfs import receiving
from manatee.storage.zfs.command import Dataset, Value
from manatee.storage.zfs.interface import Option
from manatee.storage.zfs.names import Names
from manatee.storage.zfs.picture import Picture
from manatee.storage.zfs.sending import options_for
from tests.storage.stage import IDENTITY

ALL: frozenset[Option] = frozenset(("large", "embedded", "compressed", "raw"))
WANTED = {"accepts": "large,embedded,compressed,raw", "ivsets": "7,8"}


def dataset(name: str, **properties: str) -> Dataset:
    return Dataset(name, {key: Value(value, "local") for key, value in properties.items()})


@pytest.mark.parametrize(
    ("encryption", "base", "raw"),
    [("off", None, False), ("aes-256-gcm", None, True), ("aes-256-gcm", "8", True), ("aes-256-gcm", "9", False)],
    ids=["not encrypted", "full", "on a base received raw", "on a base that was encrypted anew"],
)
def test_encrypted_data_travel_as_they_lie_on_the_disk_where_that_can_be_received(
    encryption: str, base: str | None, raw: bool
) -> None:
    live = dataset("a", encryption=encryption, compression="lz4")
    builds_on = dataset("a@1", ivsetguid=base) if base else None
    assert options_for(WANTED, live, builds_on, ALL) == (frozenset({"raw"}) if raw else ALL - {"raw"})
    assert "raw" not in options_for({"accepts": "large"}, live, builds_on, ALL)


def seen(*datasets: Dataset, **parent: str) -> Picture:
    here = (dataset("tank/a", **parent), *datasets)
    return Picture(Names("tank/a/manatee"), {each.name: each for each in here})


async def test_only_the_rest_of_a_stream_needs_room() -> None:
    place: Any = SimpleNamespace(names=Names("tank/a/manatee"))
    here = seen(available=str(10 << 20), compression="on")
    detail = {"form": "rest", "space": str(1 << 40)}
    await receiving.check_room(place, here, Offer("zfs", "1", IDENTITY, 5 << 20, detail, continues=True))
    await receiving.check_room(place, here, Offer("zfs", "1", IDENTITY, None, detail, continues=True))
    with pytest.raises(NoSpace):
        await receiving.check_room(place, here, Offer("zfs", "1", IDENTITY, 5 << 20, {**detail, "form": "full"}))


@pytest.mark.parametrize("where", ["tank/a/manatee", "tank/a/isolated/rebuild-1700000000001"])
async def test_encrypted_data_are_not_replaced_by_data_that_are_not(where: str) -> None:
    key = {"encryption": "aes-256-gcm", "encryptionroot": where, "keylocation": "prompt"}
    before = dataset(where, **key, **{"manatee:of": "tank/a/manatee"})
    place: Any = SimpleNamespace(names=Names("tank/a/manatee"), suitable=_nothing)
    offer = Offer("zfs", "1700000000009", IDENTITY, None, {"form": "full"})
    with pytest.raises(ReceiveFailed, match="below an encrypted parent"):
        await receiving.prepare(place, seen(before, encryption="off"), offer, "tank/a/x", Path())
    below = await receiving.prepare(
        place, seen(before, **{**key, "encryptionroot": "tank/a"}), offer, "tank/a/x", Path()
    )
    raw = Offer("zfs", "1700000000009", IDENTITY, None, {"form": "full", "raw": "yes"})
    assert (
        below.over
        is (await receiving.prepare(place, seen(before, encryption="off"), raw, "tank/a/x", Path())).over
        is False
    )


async def _nothing(_: Picture) -> dict[str, str]:
    return cast(dict[str, str], {})


@pytest.mark.parametrize(
    ("where", "root", "builds"),
    [
        ("tank/a/manatee", "-", True),
        ("tank/a/manatee", "tank/a", True),
        ("tank/a/manatee", "tank/a/manatee", False),
        ("tank/a/isolated/rebuild-1700000000001", "tank/a/isolated/rebuild-1700000000001", True),
    ],
)
def test_live_data_with_a_key_of_their_own_are_not_built_upon_before_they_are_put_aside(
    where: str, root: str, builds: bool
) -> None:
    """ZFS would not let them make way for what has taken their key over."""
    holder = dataset(where, **{"encryptionroot": root, "manatee:of": "tank/a/manatee"})
    assert len(seen(holder, dataset(f"{where}@1700000000001")).bases()) == int(builds)
