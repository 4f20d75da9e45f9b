"""Every command of the operator's guide, run in its order with a real bot."""

from collections.abc import Iterator

import pytest

from bench.samples import NEW, write_client
from tests.docker.conftest import Stack
from tests.docker.test_cutover import World
from tests.test_guide import GUIDES, list_blocks

CLIENT = "client_003"


@pytest.fixture(scope="module")
def world(stack: Stack) -> Iterator[World]:
    for client in ("client_001", "client_002", CLIENT):
        write_client(stack.folder / "clients" / client / "bookings.db", seed=3, rows=500, age=NEW)
    made = World(stack, CLIENT)
    made.let_it_book(2)
    yield made
    made.remove_bots()


def test_every_command_works_as_written(world: World) -> None:
    commands = [line for block in list_blocks(GUIDES[0], "sh") for line in block.splitlines()]
    assert len(commands) > 20
    for command in commands:
        done = world.stack.run("sh", "-c", command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_query_runs_as_the_watcher(world: World) -> None:
    password = (world.stack.folder / "secrets" / "monitoring_user_password").read_text().strip()
    assert world.stack.run("make", "migrate", "CLIENT=client_001").returncode == 0
    for query in list_blocks(GUIDES[0], "sql"):
        done = world.stack.compose(
            "exec", "-T", "-e", f"PGPASSWORD={password}", "postgres",
            "psql", "-X", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "monitoring_user", "-d", "client_001_db", "-c", query,
        )  # fmt: skip
        assert done.returncode == 0, f"{query}\n{done.stderr}"
