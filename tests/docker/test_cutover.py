"""Cutover and rollback of a real bot that writes all the while, and kill -9 at each line of the journal."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from bench.samples import NEW, write_client
from tests.docker.conftest import ROOT, Stack

CLIENT = "client_001"
CONTAINER = "bot-client-001"
ENV = "# the bot of client one\nBOT_TOKEN=123:abc\n\nDB_TYPE=sqlite # until the move\nADMIN=7\n"
KILLER = """
import os, signal, sys
from migrator import journal
from migrator.cli import main
left = [int(os.environ["KILL_AT"])]
save = journal.Journal._save
def save_and_die(self):
    save(self)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal._save = save_and_die
main()
"""


class World:
    """The stack with one client whose bot runs in a container."""

    def __init__(self, stack: Stack, client: str = CLIENT) -> None:
        self.stack = stack
        self.client = client
        self.container = "bot-" + client.replace("_", "-")
        self.folder = stack.folder / "clients" / client
        self.engine = docker.from_env()
        self.moves: list[float] = []
        write_client(self.folder / "bookings.db", seed=5, rows=3000, age=NEW)
        (self.folder / ".env").write_text(ENV)
        assert stack.run("make", "secrets").returncode == 0
        assert stack.run("make", "up").returncode == 0
        built = stack.run("docker", "build", "--target", "migrator", "--tag", "booking-migrator", ".")
        assert built.returncode == 0, built.stderr
        (stack.folder / "bot").mkdir()
        (stack.folder / "bot" / "bot.py").write_text((ROOT / "tests" / "docker" / "bot.py").read_text())
        self.run_bot()

    def run_bot(self, **changes: Any) -> Any:
        options: dict[str, Any] = {
            "name": self.container,
            "entrypoint": ["/app/bin/python", "/bot/bot.py"],
            "user": "0:0",
            "network": "booking-network",
            "detach": True,
            "volumes": {
                str(self.folder): {"bind": "/data", "mode": "rw"},
                str(self.stack.folder / "bot"): {"bind": "/bot", "mode": "ro"},
            },
            "healthcheck": {
                "test": [
                    "CMD",
                    "/app/bin/python",
                    "-c",
                    "import os, time; assert time.time() - os.path.getmtime('/tmp/beat') < 5",
                ],
                "interval": 500_000_000,
                "timeout": 5_000_000_000,
                "retries": 20,
            },
        }
        return self.engine.containers.run("booking-migrator", **{**options, **changes})

    def remove_bots(self) -> None:
        for container in self.engine.containers.list(all=True, filters={"name": "bot-client"}):
            container.remove(force=True)

    @property
    def bot(self) -> Any:
        return self.engine.containers.get(self.container)

    def migrator(
        self, *arguments: str, script: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs the command on the host, as ``HOST=1`` does."""
        head = ["-c", script] if script else ["-m", "migrator"]
        settings = {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": self.stack.environment["POSTGRES_PORT"],
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run(
            [sys.executable, *head, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.stack.folder,
            env={**os.environ, **settings, **environment},
            timeout=300,
        )

    def move(self, command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        limits = ("--healthy-within", "40") if command in ("cutover", "rollback") else ()
        return self.migrator(command, "--client", self.client, *limits, *arguments, **environment)

    def side(self) -> str:
        path = self.stack.folder / "backups" / self.client / "state.json"
        return str(json.loads(path.read_text())["side"]) if path.exists() else "sqlite"

    def let_it_book(self, count: int = 8) -> None:
        """Waits until the bot has acknowledged some more bookings."""
        start = self.acknowledged()["ADD"]
        deadline = time.monotonic() + 60
        while len(self.acknowledged()["ADD"]) < len(start) + count:
            assert time.monotonic() < deadline, self.bot.logs(tail=20).decode()
            time.sleep(0.05)

    def acknowledged(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {"ADD": set(), "DROP": set(), "TRY DROP": set()}
        path = self.folder / "acknowledged.log"
        for line in path.read_text().splitlines() if path.exists() else []:
            kind, number = line.rsplit(" ", 1)
            if kind in found:
                found[kind].add(int(number))
        return found

    def expected_minutes(self) -> dict[int, int]:
        """The last acknowledged length of each booking that no unanswered statement speaks of."""
        tried: dict[int, int] = {}
        minutes: dict[int, int] = {}
        for line in (self.folder / "acknowledged.log").read_text().splitlines():
            words = line.split()
            if words[:2] == ["TRY", "MOVE"]:
                tried[int(words[2])] = int(words[3])
            elif words[0] == "MOVE":
                minutes[int(words[1])] = int(words[2])
        return {number: value for number, value in minutes.items() if tried.get(number) == value}

    def read_bookings(self) -> list[tuple[int, int]]:
        """The bot's bookings on the side where it runs: number and minutes, each row of them."""
        query = "SELECT username, duration_minutes FROM bookings WHERE username LIKE 'booking %'"
        if self.side() == "postgresql":
            lines = [line.split("|") for line in self.stack.psql(f"{self.client}_db", query).splitlines()]
            return [(int(name.split()[1]), int(minutes)) for name, minutes in lines]
        connection = sqlite3.connect(self.folder / "bookings.db")
        rows = [(int(name.split()[1]), minutes) for name, minutes in connection.execute(query)]
        connection.close()
        return rows

    def check(self, side: str) -> None:
        """Checks with the bot stopped: each acknowledged booking is there once, each cancelled one is not."""
        assert self.side() == side
        assert not (self.stack.folder / "backups" / self.client / "journal.json").exists()
        environment = (self.folder / ".env").read_text()
        assert ("DB_TYPE=postgresql" in environment) == (side == "postgresql"), environment
        assert self.bot.status == "running"
        assert self.bot.logs().decode().rsplit("bot starts on ", 1)[1].startswith(side)
        self.bot.stop(timeout=10)
        said = self.acknowledged()
        rows = self.read_bookings()
        numbers = [number for number, _ in rows]
        assert len(numbers) == len(set(numbers))
        must = said["ADD"] - said["TRY DROP"]
        assert must <= set(numbers), sorted(must - set(numbers))
        assert not said["DROP"] & set(numbers)
        minutes = dict(rows)
        for number, value in self.expected_minutes().items():
            if number in minutes:
                assert minutes[number] == value, number
        self.bot.start()
        self.let_it_book(3)


@pytest.fixture(scope="module")
def world(stack: Stack) -> Iterator[World]:
    made = World(stack)
    made.let_it_book()
    yield made
    made.remove_bots()


def events(done: subprocess.CompletedProcess[str], name: str) -> list[dict[str, Any]]:
    found = []
    for line in done.stdout.splitlines():
        start = line.find("{")
        if start >= 0 and f'"event": "{name}"' in line:
            found.append(json.loads(line[start:]))
    return found


def test_cutover_and_rollback_under_load(world: World) -> None:
    # An earlier migration leaves rows that the bot moves and cancels before the cutover.
    assert world.migrator("migrate", "--client", CLIENT).returncode == 0
    world.let_it_book(16)
    for _ in range(3):
        done = world.move("cutover")
        assert done.returncode == 0, done.stdout[-3000:]
        world.moves.append(events(done, "cutover_done")[0]["downtime_seconds"])
        world.check("postgresql")
        environment = (world.folder / ".env").read_text()
        assert environment.startswith(
            "# the bot of client one\nBOT_TOKEN=123:abc\n\nDB_TYPE=postgresql\nADMIN=7\nDATABASE_URL="
        )
        assert (world.folder / ".env").stat().st_mode & 0o777 == 0o600
        for checksum in (world.stack.folder / "backups" / CLIENT).glob("bookings.db.backup_*.sha256"):
            digest, name = checksum.read_text().split()
            assert hashlib.sha256(checksum.with_name(name).read_bytes()).hexdigest() == digest
        done = world.move("rollback")
        assert done.returncode == 0, done.stdout[-3000:]
        world.moves.append(events(done, "rollback_done")[0]["downtime_seconds"])
        world.check("sqlite")
        assert (world.folder / ".env").read_text() == ENV
    report = json.loads((world.stack.folder / "reports" / CLIENT / "latest.json").read_text())
    assert report["command"] == "rollback" and report["downtime_seconds"] > 0
    print(
        f"six moves under load; seconds of downtime: {world.moves}; {len(world.acknowledged()['ADD'])} bookings acknowledged"
    )


def test_killed_at_each_line_of_the_journal(world: World) -> None:
    kills = 0
    for line in range(1, 15):
        for command, side in (("cutover", "postgresql"), ("rollback", "sqlite")):
            killed = world.migrator(
                command, "--client", CLIENT, "--healthy-within", "40", script=KILLER, KILL_AT=str(line)
            )
            kills += killed.returncode == -9
            if killed.returncode == -9:
                done = world.move(command)
                assert done.returncode in (0, 2), done.stdout[-3000:]
            world.check(side)
    print(f"killed {kills} times, {len(world.acknowledged()['ADD'])} bookings acknowledged")
    assert kills >= 22


def test_bot_that_does_not_come_up_is_put_back(world: World) -> None:
    done = world.move("cutover", BOT_POSTGRES_HOST="nowhere.invalid")
    assert done.returncode == 1
    error = events(done, "job_failed")[0]["error"]
    assert CONTAINER in error and "Its last lines:" in error and "DatabaseLost" in error
    world.check("sqlite")


def test_rollback_that_discards_what_is_new(world: World) -> None:
    assert world.move("cutover").returncode == 0
    world.let_it_book(3)
    world.bot.stop(timeout=10)
    before = {number for number, _ in world.read_bookings()}
    assert world.move("rollback", "--discard-new").returncode == 0
    world.bot.stop(timeout=10)
    after = {number for number, _ in world.read_bookings()}
    assert len(before - after) >= 3
    (world.folder / "acknowledged.log").write_text("".join(f"ADD {n}\n" for n in sorted(after)) or "ADD 100000\n")
    with (world.folder / "acknowledged.log").open("a") as file:
        file.write(f"TRY ADD {max(before) + 1}\n")
    world.bot.start()


def test_new_tables_and_columns_are_told_and_kept(world: World) -> None:
    assert world.move("cutover").returncode == 0
    world.stack.psql(
        f"{CLIENT}_db", f"SET ROLE {CLIENT}_user; CREATE TABLE novel (a int); ALTER TABLE users ADD COLUMN nick text"
    )
    assert world.move("rollback").returncode == 0
    notes = json.loads((world.stack.folder / "reports" / CLIENT / "latest.json").read_text())["notes"]
    assert any(note.startswith("novel: a table that SQLite does not have") for note in notes)
    assert any(note.startswith("users.nick: a column that SQLite does not have") for note in notes)
    world.check("sqlite")


def test_make_drives_both_ways_in_containers(world: World) -> None:
    done = world.stack.run("make", "cutover", f"CLIENT={CLIENT}", "ARGS=--healthy-within 40")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    world.check("postgresql")
    status = world.stack.run("make", "status")
    assert status.returncode == 0, status.stderr
    (line,) = [line for line in status.stdout.splitlines() if CLIENT in line]
    assert "postgresql" in line and "bookings.db.backup_" in line
    listed = world.stack.run("make", "rollback")
    assert listed.returncode != 0
    assert f"can be rolled back: {CLIENT} (since" in listed.stdout
    done = world.stack.run("make", "rollback", f"CLIENT={CLIENT}", "ARGS=--healthy-within 40")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    world.check("sqlite")
    owners = {path.stat().st_uid for path in (world.stack.folder / "reports").rglob("*")}
    assert 0 not in owners or os.geteuid() != 0


def test_what_is_wrong_is_told_before_anything_is_touched(world: World) -> None:
    running = world.bot.attrs["State"]["StartedAt"]
    unknown = world.migrator("cutover", "--client", "client_009")
    assert unknown.returncode == 2 and "client_009" in unknown.stdout
    lonely = world.migrator("cutover", "--client", "client_002")
    assert lonely.returncode == 2 and "no container bot-client-002" in lonely.stdout
    nothing = world.migrator("rollback", "--client", CLIENT)
    assert nothing.returncode == 2 and "is on SQLite; there is nothing to roll back" in nothing.stdout
    environment = world.folder / ".env"
    text = environment.read_bytes()
    environment.write_bytes(b"\xff\xfe broken")
    broken = world.move("cutover")
    environment.write_bytes(text)
    assert broken.returncode == 2 and ".env cannot be read" in broken.stdout
    world.bot.reload()
    assert world.bot.attrs["State"]["StartedAt"] == running
    assert world.move("cutover").returncode == 0
    state = json.loads((world.stack.folder / "backups" / CLIENT / "state.json").read_text())
    backup = world.stack.folder / state["backup"]
    content = backup.read_bytes()
    backup.write_bytes(content + b"x")
    damaged = world.move("rollback")
    assert damaged.returncode == 2 and "does not have its checksum" in damaged.stdout
    backup.unlink()
    missing = world.move("rollback")
    assert missing.returncode == 2 and "is missing; put it back first" in missing.stdout
    backup.write_bytes(content)
    assert world.move("purge").returncode == 2
    assert world.move("purge", "--yes").returncode == 2
    assert world.move("rollback").returncode == 0
    world.check("sqlite")
    assert world.move("purge", "--yes").returncode == 0
    assert world.stack.psql(f"{CLIENT}_db", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"
    assert world.move("cutover").returncode == 0
    world.check("postgresql")
    assert world.move("rollback").returncode == 0
