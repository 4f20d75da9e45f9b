"""The time zone in which a client's moments without an offset are read.

It comes from the client's own ``settings`` table (``timezone``), else from the ``.env`` beside its
database (``TIMEZONE`` or ``TZ``), else it is UTC. A clock change makes some local times ambiguous:
one that occurs twice is read as the first, one that does not occur keeps the offset from before the
change (PEP 495 with fold=0); both are counted in the report's notes.
"""

import re
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import StrEnum
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values

from migrator.errors import ConfigurationError

_OFFSET = re.compile(r"(?:UTC|GMT)?\s*([+-])(\d{1,2})(?::?(\d\d))?", re.IGNORECASE)
_VARIABLES = ("TIMEZONE", "TZ")


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone, and where it was found."""

    info: tzinfo
    origin: str


class Clock(StrEnum):
    """What a clock change does to a local time."""

    PLAIN = "plain"
    REPEATED = "repeated"
    SKIPPED = "skipped"


def parse_zone(name: str, origin: str) -> Zone:
    """Reads a zone's name or a fixed offset.

    Args:
        name: such as Europe/Moscow, UTC or +03:00.
        origin: where the name stands, for the message.

    Raises:
        ConfigurationError: there is no such zone.

    >>> parse_zone("utc", "x").info is UTC, parse_zone("UTC+3", "x").info.utcoffset(None)
    (True, datetime.timedelta(seconds=10800))
    """
    text = name.strip()
    # Python's own UTC is the one that the verification has a short way for.
    if text.upper() in ("UTC", "Z", "GMT", "ETC/UTC"):
        return Zone(UTC, origin)
    offset = _OFFSET.fullmatch(text)
    if offset:
        minutes = int(offset[2]) * 60 + int(offset[3] or 0)
        return Zone(timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes)), origin)
    try:
        return Zone(ZoneInfo(text), origin)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(
            f"{origin}: {name!r} is no time zone; take one such as Europe/Moscow, or give --time-zone"
        ) from None


def find_zone(snapshot: sqlite3.Connection, sqlite_path: Path) -> Zone:
    """Finds a client's zone.

    Args:
        snapshot: the client's database.
        sqlite_path: where the original lies; a ``.env`` beside it counts.

    Raises:
        ConfigurationError: what is set is no zone.
    """
    try:
        row = snapshot.execute(
            "SELECT value FROM settings WHERE lower(key) = 'timezone' AND typeof(value) = 'text' AND value <> ''"
        ).fetchone()
    except sqlite3.DatabaseError:
        row = None
    if row:
        return parse_zone(row[0], f"{sqlite_path}: settings.timezone")
    path = sqlite_path.with_name(".env")
    try:
        values = dotenv_values(path) if path.is_file() else {}
    except OSError:
        values = {}
    for variable in _VARIABLES:
        if value := values.get(variable):
            return parse_zone(value, f"{path}: {variable}")
    return Zone(UTC, "default")


def judge_local(moment: datetime, zone: tzinfo) -> Clock:
    """Tells whether a local time occurs once, twice or not at all.

    >>> judge_local(datetime(2024, 10, 27, 2, 30), ZoneInfo("Europe/Berlin"))
    <Clock.REPEATED: 'repeated'>
    >>> judge_local(datetime(2024, 3, 31, 2, 30), ZoneInfo("Europe/Berlin"))
    <Clock.SKIPPED: 'skipped'>
    """
    first, second = (moment.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    if first is None or second is None or first == second:
        return Clock.PLAIN
    return Clock.REPEATED if first > second else Clock.SKIPPED
