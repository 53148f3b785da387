"""Applications find the primary by themselves: followed in ZooKeeper, checked on the server, or asked of all hosts."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from manatee.client import (
    Address,
    Chain,
    NoPrimary,
    Topology,
    connect_primary,
    connect_writable,
    libpq_url,
    postgres_address,
    read_chain,
)
from manatee.coordination import Unreachable
from tests.admin.stage import PEERS, Coordinated, state_of_chain
from tests.admin.stage import Chain as Servers

A, B, C = PEERS


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs is waited for until the search itself is over."""
    monkeypatch.setattr("manatee.client._ATTEMPT", 300.0)


def test_a_peers_url_is_an_address() -> None:
    address = postgres_address("tcp://postgres@10.65.68.14:5432/postgres")
    assert address == Address("10.65.68.14", 5432, "postgres", "postgres")
    assert postgres_address("tcp://me:s%40crt@[fd00::1]:77/x").password == "s@crt"
    assert str(postgres_address("tcp://me@[fd00::1]:77/x")) == "[fd00::1]:77"
    assert "s@crt" not in repr(postgres_address("tcp://me:s%40crt@h:77/x"))
    with pytest.raises(ValueError, match="expected tcp://"):
        postgres_address("http://10.0.0.1:80/")


def test_a_multi_host_url_is_one_that_libpq_understands() -> None:
    url = libpq_url([Address("10.0.0.1"), Address("fd00::1", 5433)], user="a b", dbname="x/y")
    assert url == "postgresql://a%20b@10.0.0.1:5432,[fd00::1]:5433/x%2Fy?target_session_attrs=read-write"
    parsed = psycopg.conninfo.conninfo_to_dict(url)
    assert parsed["host"] == "10.0.0.1,fd00::1"
    assert parsed["port"] == "5432,5433"
    assert (parsed["user"], parsed["dbname"]) == ("a b", "x/y")
    with pytest.raises(ValueError, match="no host"):
        libpq_url([])


async def test_the_multi_host_url_finds_the_primary(chain: Servers) -> None:
    url = libpq_url([postgres_address(peer.pg_url) for peer in reversed(PEERS)])
    async with await psycopg.AsyncConnection.connect(url) as connection:
        assert connection.info.host == A.ip


async def test_a_topology_follows_the_shard(shard: Coordinated) -> None:
    seen: list[Chain] = []
    async with Topology(shard.zookeeper.servers, shard.name, on_change=seen.append) as topology:
        assert topology.chain is None
        await shard.write(state_of_chain())
        first = await asyncio.wait_for(topology.changed(None), 10)
        assert [peer.id for peer in first.peers] == [A.id, B.id, C.id]
        await shard.write(state_of_chain(freeze=True))  # not news for an application
        b, c = B.document(), C.document()
        await shard.write(state_of_chain(generation=2, primary=b, sync=c, **{"async": []}))
        second = await asyncio.wait_for(topology.changed(first), 10)
        assert (second.generation, second.primary, second.sync, second.asyncs) == (2, B, C, ())
        assert topology.chain == second
        assert seen == [first, second]
        assert [str(address) for address in second.addresses] == ["127.14.0.3:5432", "127.14.0.4:5432"]


async def test_what_was_known_stays_known_when_the_state_is_not_legible(shard: Coordinated) -> None:
    await shard.write(state_of_chain())
    async with Topology(shard.zookeeper.servers, shard.name) as topology:
        before = topology.chain
        assert before is not None
        await shard.raw("state", b"{}")
        await shard.write_after_garbage(state_of_chain(generation=2))
        after = await asyncio.wait_for(topology.changed(before), 10)
        assert after.generation == 2


async def test_what_was_known_stays_known_while_zookeeper_is_away(shard: Coordinated, chain: Servers) -> None:
    await shard.write(state_of_chain())
    async with Topology(shard.zookeeper.servers, shard.name) as topology:
        with shard.hanging():
            async with await connect_primary(topology, deadline=5) as connection:
                assert connection.info.host == A.ip
        first = topology.chain
        assert first is not None
        await shard.write(state_of_chain(generation=2))
        assert (await asyncio.wait_for(topology.changed(first), 20)).generation == 2


async def test_a_primary_without_a_legible_address_is_said_to_have_none(shard: Coordinated) -> None:
    await shard.write(state_of_chain(primary={**A.document(), "pgUrl": "nonsense"}))
    async with Topology(shard.zookeeper.servers, shard.name) as topology:
        with pytest.raises(NoPrimary, match="expected tcp://"):
            await connect_primary(topology, deadline=0.3)


async def test_programs_without_a_loop_read_it_once(shard: Coordinated) -> None:
    await shard.write(state_of_chain())
    chain = await asyncio.to_thread(read_chain, shard.zookeeper.servers, shard.name)
    assert chain is not None
    assert chain.primary == A


async def test_a_zookeeper_that_is_not_there_is_said_in_time() -> None:
    async with asyncio.timeout(60):
        with pytest.raises(Unreachable):
            async with Topology("127.14.0.99:1", "any", arrival=0.5):
                raise AssertionError


async def test_the_connection_is_to_the_primary_and_takes_writes(shard: Coordinated, chain: Servers) -> None:
    await shard.write(state_of_chain())
    async with (
        Topology(shard.zookeeper.servers, shard.name) as topology,
        await connect_primary(topology, deadline=20, application_name="app") as connection,
    ):
        assert connection.info.host == A.ip
        await connection.execute("CREATE TEMP TABLE t (n int)")


async def test_a_standby_that_the_state_names_is_not_believed(shard: Coordinated, chain: Servers) -> None:
    """Before the new primary is open it still is a standby: nobody writes to it, and nobody is told that he can."""
    b, a, c = B.document(), A.document(), C.document()
    await shard.write(state_of_chain(primary=b, sync=a, **{"async": [c]}))
    async with Topology(shard.zookeeper.servers, shard.name) as topology:
        with pytest.raises(NoPrimary, match=r"within 0.5 s: 127.14.0.3:5432: it is a standby"):
            await connect_primary(topology, deadline=0.5)
        searching = asyncio.create_task(connect_primary(topology, deadline=20))
        await asyncio.sleep(0)
        await shard.write(state_of_chain(generation=2))
        async with await searching as connection:
            assert connection.info.host == A.ip


async def test_a_read_only_primary_is_waited_for(shard: Coordinated, chain: Servers) -> None:
    await shard.write(state_of_chain())
    async with await psycopg.AsyncConnection.connect(
        host=A.ip, user="postgres", dbname="postgres", autocommit=True
    ) as admin:
        await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_reload_conf()")
        try:
            async with Topology(shard.zookeeper.servers, shard.name) as topology:
                with pytest.raises(NoPrimary, match="it is read-only"):
                    await connect_primary(topology, deadline=1)
                searching = asyncio.create_task(connect_primary(topology, deadline=20))
                await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
                await admin.execute("SELECT pg_reload_conf()")
                async with await searching as connection:
                    assert connection.info.host == A.ip
        finally:
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await admin.execute("SELECT pg_reload_conf()")


async def test_a_primary_that_hangs_is_left_when_the_shard_moves(
    shard: Coordinated, chain: Servers, patient: None
) -> None:
    b = B.document()
    await shard.write(state_of_chain(primary=b, sync=A.document()))
    async with Topology(shard.zookeeper.servers, shard.name) as topology:
        with chain[1].suspended():
            searching = asyncio.create_task(connect_primary(topology, deadline=30))
            await asyncio.sleep(0.2)  # let it try: what it waits for does not answer
            await shard.write(state_of_chain(generation=2))
            async with await searching as connection:
                assert connection.info.host == A.ip


async def test_without_zookeeper_all_hosts_are_asked_at_once(chain: Servers, patient: None) -> None:
    addresses = [postgres_address(peer.pg_url) for peer in (C, B, A)]
    with chain[2].suspended():
        async with await connect_writable([*addresses, Address("127.14.0.97", 1)], deadline=20) as connection:
            assert connection.info.host == A.ip
    with pytest.raises(NoPrimary) as error:
        await connect_writable(addresses[1:2], deadline=0.5)
    assert "127.14.0.3:5432: it is a standby" in str(error.value)


async def test_a_server_that_hangs_in_the_middle_of_an_answer_does_not_hold_us(chain: Servers) -> None:
    """psycopg alone would wait for the server to confirm that it has cancelled."""
    from manatee.client import within

    connection = await psycopg.AsyncConnection.connect(host=A.ip, user="postgres", dbname="postgres", autocommit=True)
    try:
        await connection.execute("SELECT 1")
        with chain[0].suspended():
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await within(connection, 0.3, connection.execute("SELECT 2"))
            assert time.monotonic() - began < 8
    finally:
        await connection.close()
