"""An operator at a whole shard: real sitters, real data, real handing over."""

from __future__ import annotations

import pytest

from demo.shard import LocalShard
from manatee.client import Topology, connect_primary
from tests.admin.stage import manatee_adm


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_peers_are_promoted_up_the_chain_and_the_old_primary_rebuilt() -> None:
    """Nothing that was written is lost on the way, and the history tells all of it."""
    async with LocalShard(
        ["127.14.1.2", "127.14.1.3", "127.14.1.4"], zookeeper=("127.14.1.1", 2181), session_timeout=4
    ) as shard:
        options = ("-z", shard.zookeeper.servers, "-s", shard.name)
        before = (await shard.wait_for(lambda seen: seen.complete(3), timeout=120)).state
        assert before is not None
        first, last = shard.peer(before.primary.id), shard.peer(before.asyncs[0].id)
        async with Topology(shard.zookeeper.servers, shard.name) as topology:
            async with await connect_primary(topology, deadline=30) as connection:
                await connection.execute("CREATE TABLE kept (n int)")
                await connection.execute("INSERT INTO kept VALUES (42)")

            up = await manatee_adm("promote", "-y", "-n", last.label, "-r", "async", "-i", "0", *options)
            assert f"{last.label} is now the sync." in up.out, up
            await shard.wait_for(lambda seen: seen.complete(3), timeout=60)
            top = await manatee_adm("promote", "-y", "-n", last.label, "-r", "sync", *options)
            assert f"{last.label} is now the primary." in top.out, top

            # A peer that serves is needed to restore from: the new primary has to be through with its takeover.
            await shard.wait_for(lambda seen: seen.complete(3), timeout=60)
            refused = await manatee_adm("rebuild", "-y", "-c", last.settings_file)
            assert "this peer is the primary" in refused.err
            rebuilt = await manatee_adm("rebuild", "-y", "-c", first.settings_file)
            assert rebuilt.status == 0, rebuilt
            assert f"Rebuild successful: {first.label} is async 0" in rebuilt.out
            assert list((first.directory / "store" / "isolated").iterdir()) == []

            await shard.wait_for(lambda seen: seen.complete(3), timeout=60)
            assert (await manatee_adm("verify", *options)).out == ""
            async with await connect_primary(topology, deadline=30) as connection:
                assert connection.info.host == last.ip
                assert await (await connection.execute("SELECT n FROM kept")).fetchall() == [(42,)]
        told = (await manatee_adm("history", "-v", *options)).out
        assert f"made {last.label} its sync" in told
        assert f"{last.label} took over from {first.label} (deposed)" in told
        assert told.count("as an operator asked") == 2
        assert f"{first.label} no longer deposed" in told
