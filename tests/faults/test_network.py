"""A connection that is cut, a server that restarts, two jobs at once, a disk that is full."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import CLIENT, ROUNDS, Bench


class CuttingProxy:
    """Passes a server on, and cuts each of the first connections after some bytes from the client."""

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._target = port
        self._cuts = cuts
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "CuttingProxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._pass, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limit = self._cuts.pop(0) if self._cuts else None
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        back = asyncio.ensure_future(self._pump(upstream_reader, writer))
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(8192):
                passed += len(data)
                if limit is not None and passed > limit:
                    break
                upstream_writer.write(data)
                await upstream_writer.drain()
        back.cancel()
        writer.transport.abort()
        upstream_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


def test_connection_cut_in_the_middle_is_mended_by_the_job(bench: Bench) -> None:
    chance = random.Random(3)
    rounds = max(ROUNDS // 5, 1)
    for _ in range(rounds):
        with CuttingProxy(bench.server.port, [chance.randrange(2_000, 1_000_000)]) as proxy:
            bench.port = proxy.port
            outcome = bench.run()
            bench.port = bench.server.port
        assert outcome.code == 3, outcome.events[-1]
        assert bench.check_all_or_nothing()
        bench.reset()
    print(f"connection cut {rounds} times: each run ended right by itself")


def test_connection_that_is_always_cut_fails_with_nothing_done(bench: Bench) -> None:
    with CuttingProxy(bench.server.port, [300_000] * 50) as proxy:
        bench.port = proxy.port
        outcome = bench.run()
        bench.port = bench.server.port
    assert outcome.code == 1
    assert len(outcome.find("client_retried")) == 2
    assert "the connection was lost" in str(outcome.find("client_failed")[0]["error"])
    assert not bench.check_all_or_nothing()
    bench.check_next_run(already_there=False)


def test_server_restart_in_the_middle(bench: Bench) -> None:
    for share in (0.4, 0.6, 0.8):
        job = bench.start()
        time.sleep(bench.seconds * share)
        bench.server.stop()
        bench.server.start()
        assert bench.finish(job).code == 3
        assert bench.check_all_or_nothing()
        bench.reset()


def test_second_job_waits_or_leaves_with_a_message(bench: Bench) -> None:
    first = bench.start()
    assert first.stdout is not None
    lines = []
    for line in first.stdout:
        lines.append(line.rstrip("\n"))
        if '"plan_made"' in line:
            break
    first.send_signal(signal.SIGSTOP)
    try:
        refused = bench.run("--lock-timeout", "0.5")
        assert refused.code == 1
        assert "another run is at work on this client (server process" in str(refused.find("client_failed")[0]["error"])
        second = bench.start("--lock-timeout", "60")
        time.sleep(2)
    finally:
        first.send_signal(signal.SIGCONT)
    assert bench.finish(first, lines).code == 3
    waited = bench.finish(second)
    assert waited.code == 3
    assert waited.find("lock_awaited")
    assert waited.find("client_finished")[0]["rows_inserted"] == 0
    assert bench.check_all_or_nothing()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=777", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk needs the right to mount one: run as root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_disk_of_the_job_is_full(bench: Bench, small_disk: Path) -> None:
    outcome = bench.run(BACKUPS_DIR=str(small_disk))
    assert outcome.code == 1
    error = str(outcome.find("client_failed")[0]["error"])
    assert "bookings.db" in error and "no space left" in error
    assert "BACKUPS_DIR" in error
    assert list(small_disk.iterdir()) == []
    assert not bench.check_all_or_nothing()
    bench.check_next_run(already_there=False)


def test_disk_of_the_reports_is_full(bench: Bench, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (1 << 20))
    outcome = bench.run(REPORTS_DIR=str(small_disk))
    assert outcome.code in (1, 2)
    assert "REPORTS_DIR" in str(outcome.events[-1].get("error", outcome.events))
    assert not bench.check_all_or_nothing()


def test_disk_of_the_server_is_full(bench: Bench, small_disk: Path) -> None:
    if os.geteuid() == 0:
        os.chown(small_disk, 65534, 65534)
    for place in small_disk.parents:
        if place not in (Path("/"), Path("/tmp")):
            place.chmod(place.stat().st_mode | 0o011)
    bench.server.run_sql(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    bench.server.run_sql(f"GRANT CREATE ON TABLESPACE small TO {CLIENT}_user")
    bench.sql(f"ALTER ROLE {CLIENT}_user SET default_tablespace = small")
    try:
        outcome = bench.run()
        assert outcome.code == 1
        assert "(SQLSTATE 53100)" in str(outcome.find("client_failed")[0]["error"])
        assert not bench.check_all_or_nothing()
    finally:
        bench.sql(f"ALTER ROLE {CLIENT}_user RESET default_tablespace")
        bench.server.run_sql("DROP TABLESPACE small")
    bench.check_next_run(already_there=False)
