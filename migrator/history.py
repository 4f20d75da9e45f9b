"""What earlier runs did, kept in the client's database, so that a client with nothing new is passed over.

A client is passed over where its file, its tables and the way of loading are all as the last committed
run left them. That run compared every value, so what it found still holds.
"""

import json
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
from pydantic import TypeAdapter

from migrator import __version__
from migrator.load import LoadOptions
from migrator.queries import load_query
from migrator.report import TableReport
from migrator.target import Connection

_TABLES = TypeAdapter(tuple[TableReport, ...])


@dataclass(frozen=True, slots=True)
class PastRun:
    """The last committed run of a client.

    ``age_seconds`` is by the server's clock; ``target_mark`` is None where the run did not live to take it.
    """

    run_id: str
    finished_at: datetime
    age_seconds: float
    worker: str
    source_digest: str | None
    manner: str
    target_mark: str | None
    tables: tuple[TableReport, ...]
    notes: tuple[str, ...]

    def stands(self, source_digest: str | None, manner: str, target_mark: str | None) -> bool:
        """Tells whether another run would read, load and compare the very same."""
        known = None not in (source_digest, target_mark)
        return known and (source_digest, manner, target_mark) == (self.source_digest, self.manner, self.target_mark)


def describe_manner(load: LoadOptions, zone: str | None, *, add_columns: bool) -> str:
    """Describes everything besides the file and the tables that the outcome of a run depends on."""
    return json.dumps(
        {
            "version": __version__,
            "widen_above": load.widen_above,
            "max_rejected": load.max_rejected,
            "orphans": load.orphans,
            "zone": zone,
            "add_columns": add_columns,
        },
        sort_keys=True,
    )


async def read_last_run(connection: Connection) -> PastRun | None:
    """Reads the last committed run; None where there was none."""
    if not await connection.fetchval("SELECT to_regclass('migrator.runs') IS NOT NULL"):
        return None
    row = await connection.fetchrow(load_query("history_last"))
    if row is None:
        return None
    report: dict[str, Any] = json.loads(row["report"])
    return PastRun(
        run_id=row["run_id"],
        finished_at=row["finished_at"],
        age_seconds=row["age_seconds"],
        worker=row["worker"],
        source_digest=row["source_digest"],
        manner=row["manner"],
        target_mark=row["target_mark"],
        tables=_TABLES.validate_python(report["tables"]),
        notes=tuple(report["notes"]),
    )


async def read_mark(connection: Connection) -> str | None:
    """Reads the mark of the client's tables; None where the server does not count changes."""
    mark: str | None = await connection.fetchval(load_query("history_mark"))
    return mark


async def record_run(
    connection: Connection,
    run_id: str,
    source_digest: str | None,
    manner: str,
    tables: tuple[TableReport, ...],
    notes: tuple[str, ...],
) -> None:
    """Records a run in the transaction that commits its rows, after the ``migrator`` schema was made."""
    await connection.execute(load_query("history_schema"))
    await connection.execute(
        "INSERT INTO migrator.runs (run_id, worker, source_digest, manner, report) VALUES ($1, $2, $3, $4, $5)",
        run_id,
        socket.gethostname(),
        source_digest,
        manner,
        json.dumps({"tables": _TABLES.dump_python(tables, mode="json"), "notes": notes}),
    )


async def seal_run(connection: Connection, run_id: str) -> None:
    """Adds the mark of the tables to a run that was just committed.

    A run that ends before this stays without a mark, and the next one does everything anew.
    """
    try:
        # The server hands counters on at most once a second, unless it is asked to (PostgreSQL 15).
        await connection.execute("SELECT pg_stat_force_next_flush()")
    except asyncpg.UndefinedFunctionError:
        return
    await connection.execute(
        "UPDATE migrator.runs SET target_mark = $2 WHERE run_id = $1", run_id, await read_mark(connection)
    )
