"""A small bot on the project's own adapter: it books, moves and cancels, and logs what was acknowledged.

Each line of the log is on the disk before the next statement: ADD n, MOVE n minutes, DROP n. A line
TRY before it tells of a statement whose answer may never have come.
"""

import asyncio
import os
import pathlib
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from dotenv import dotenv_values

from migrator.database import Database, DatabaseSettings, open_database, run_until_stopped

DATA = pathlib.Path("/data")
LOG = DATA / "acknowledged.log"
PAUSE = 0.1


def read_number() -> int:
    lines = LOG.read_text().split("\n") if LOG.exists() else []
    return max((int(line.split()[-2 if "MOVE" in line else -1]) for line in lines if line.strip()), default=0)


def say(text: str) -> None:
    with LOG.open("a") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def beat() -> None:
    """Shows the health check that a booking has just gone through."""
    pathlib.Path("/tmp/beat").touch()


async def work(database: Database) -> None:
    number = read_number()
    while True:
        number += 1
        day, clock = date(2030, 1, 1) + timedelta(days=number // 1440), time(number // 60 % 24, number % 60)
        say(f"TRY ADD {number}")
        await database.execute(
            "INSERT INTO bookings (date, time, user_id, username, created_at) VALUES ($1, $2, $3, $4, $5)",
            day, clock, number, f"booking {number}", datetime.now(UTC),
        )  # fmt: skip
        say(f"ADD {number}")
        if number % 5 == 0:
            say(f"TRY MOVE {number - 2} {number}")
            await database.execute(
                "UPDATE bookings SET duration_minutes = $1 WHERE username = $2", number, f"booking {number - 2}"
            )
            say(f"MOVE {number - 2} {number}")
        if number % 7 == 0:
            say(f"TRY DROP {number - 3}")
            await database.execute("DELETE FROM bookings WHERE username = $1", f"booking {number - 3}")
            say(f"DROP {number - 3}")
        beat()
        await asyncio.sleep(PAUSE)


async def main() -> None:
    values: dict[str, Any] = {name.lower(): value for name, value in dotenv_values(DATA / ".env").items() if value}
    values.setdefault("database_path", DATA / "bookings.db")
    names = set(DatabaseSettings.model_fields)
    settings = DatabaseSettings(**{name: value for name, value in values.items() if name in names})
    print(f"bot starts on {settings.db_type}", flush=True)
    await run_until_stopped(await open_database(settings), work)


asyncio.run(main())
