"""The sample files in etc/ are what PostgreSQL and ZooKeeper accept, and let in whom they say they let in."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from demo.directory import user_name
from demo.postgresql import Installation
from demo.shard import PG_HBA_CONF, PG_IDENT_CONF, POSTGRESQL_CONF
from demo.zookeeper import ZooKeeperServer

ETC = Path(__file__).parents[2] / "etc"
ADDRESS = "127.15.2.1"


@pytest.fixture(scope="module")
def directory(
    postgresql: Installation, postgres_user: str | None, shared_directory: Path, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """An initialized database and a socket directory."""
    home = shared_directory / f"samples-{postgresql.major}"
    home.mkdir(mode=0o700)
    if postgres_user is not None:
        shutil.chown(home, postgres_user)
    initdb: list[str | Path] = [
        postgresql.bin_dir / "initdb",
        "-D",
        home / "data",
        "-U",
        "postgres",
        "--no-sync",
        "-A",
        "peer",
    ]
    subprocess.run(initdb, user=postgres_user, check=True, capture_output=True, cwd="/", timeout=60)
    yield home
    shutil.rmtree(home)


def serve(postgresql: Installation, user: str | None, home: Path, config: Path) -> subprocess.Popen[bytes]:
    shutil.copy(config, home / "postgresql.conf")
    (home / "postgresql.conf").chmod(0o644)
    settings = {
        "config_file": home / "postgresql.conf",
        "hba_file": home / "data" / "pg_hba.conf",
        "ident_file": home / "data" / "pg_ident.conf",
        "unix_socket_directories": home,
        "listen_addresses": ADDRESS,
        "shared_buffers": "16MB",
    }
    argv: list[str | Path] = [postgresql.bin_dir / "postgres", "-D", home / "data"]
    argv += [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    with (home / "log").open("wb") as log:
        return subprocess.Popen(argv, user=user, stdout=log, stderr=log, cwd="/")


def connect(**parameters: object) -> psycopg.Connection[tuple[object, ...]]:
    deadline = time.monotonic() + 30
    while True:
        try:
            return psycopg.connect(user="postgres", dbname="postgres", connect_timeout=5, **parameters)  # type: ignore[arg-type]
        except psycopg.OperationalError as error:
            starting = "starting up" in str(error) or "No such file" in str(error) or "refused" in str(error)
            if not starting or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("which", ["production", "demo"])
def test_postgresql_accepts_them_and_the_daemons_are_let_in(
    postgresql: Installation, postgres_user: str | None, directory: Path, tmp_path: Path, which: str
) -> None:
    config, data = ETC / "postgresql.conf", directory / "data"
    if which == "production":
        for name in ("pg_hba.conf", "pg_ident.conf"):
            shutil.copy(ETC / name, data / name)
    else:
        config = tmp_path / "postgresql.conf"
        config.write_text(POSTGRESQL_CONF)
        (data / "pg_hba.conf").write_text(PG_HBA_CONF)
        (data / "pg_ident.conf").write_text(PG_IDENT_CONF.format(owner=postgres_user or user_name()))
    server = serve(postgresql, postgres_user, directory, config)
    try:
        if os.getuid() != 0 and which == "production":
            pytest.skip("the sample names root and postgres, and we are neither")
        with connect(host=str(directory)) as connection:
            for view, good in (("pg_hba_file_rules", 5), ("pg_ident_file_mappings", 2)):
                rows = connection.execute(f"select error from {view}").fetchall()
                assert all(row == (None,) for row in rows)
                assert len(rows) >= good - (which == "demo")
            wrong = connection.execute("select name, error from pg_file_settings where error is not null").fetchall()
            # Given on the command line here, as by the sitter.
            assert {name for name, _ in wrong} <= {"shared_buffers"}
        if which == "demo":
            connect(host=ADDRESS).close()
        else:
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry|pg_hba\.conf rejects"):
                connect(host=ADDRESS)
    finally:
        server.terminate()
        server.wait(timeout=30)


async def test_zookeeper_accepts_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ETC / "zoo.cfg").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("server.", "dataDir", "clientPort"))]
    server = ZooKeeperServer(tmp_path / "zookeeper", address=ADDRESS)
    server.write_settings()
    ours = f"dataDir={tmp_path / 'zookeeper' / 'data'}\nclientPort=2181\nclientPortAddress={ADDRESS}\n"
    (server.directory / "zoo.cfg").write_text(ours + "\n".join(kept))
    monkeypatch.setattr(server, "write_settings", lambda: None)
    async with server:
        assert await server.serving()


def test_zookeeper_ticks_often_enough_for_a_prompt_takeover() -> None:
    """A session ends at the first tick after its timeout."""
    settings = dict(line.split("=", 1) for line in (ETC / "zoo.cfg").read_text().splitlines() if line[:1].isalpha())
    assert int(settings["tickTime"]) <= 500
