"""Brings a target that was loaded before up to a newer snapshot by its changed rows alone.

Which rows differ is told by the hashes of the verification. Rows that are gone or changed in SQLite
are removed from PostgreSQL, changed and new ones are staged and inserted like all others. Foreign
keys are taken off meanwhile and put back, since their own actions (CASCADE) would take along rows
that SQLite still has.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from migrator.load import LoadOptions, load_stage
from migrator.plan import Plan, TablePlan
from migrator.quarantine import Quarantine, Verdict
from migrator.source import count_rows
from migrator.stage import Staged, settle_stages
from migrator.target import Connection, Target, quote_name, read_target
from migrator.verify import Change, digest_source, digest_target, exclude_mended, list_changes


@dataclass(frozen=True, slots=True)
class Renewed:
    """What became of one table: how many of its rows were there already, and what was done."""

    plan: TablePlan
    rows: int
    inserted: int
    removed: int


async def renew_tables(
    connection: Connection,
    snapshot: sqlite3.Connection,
    snapshot_path: Path,
    plan: Plan,
    target: Target,
    options: LoadOptions,
    quarantine: Quarantine,
    notes: list[str],
) -> list[Renewed]:
    """Makes the target's tables hold what the snapshot holds.

    Args:
        connection: within the client's transaction.
        snapshot: the newer snapshot, open.
        snapshot_path: the same, for the digests.
        plan: all tables, each of which exists in the target.
        target: the tables as they are.
        options: batch size, zone.
        quarantine: knows the rows that were mended, and takes those that cannot go in.
        notes: told of foreign keys that could not be kept valid.
    """
    changes: dict[str, list[Change]] = {}
    for table in plan.tables:
        kept = exclude_mended(table) if quarantine.count(table.table.name, Verdict.MENDED) else None
        ours, theirs = await asyncio.gather(
            asyncio.to_thread(digest_source, snapshot_path, table, options.zone, quarantine.path),
            digest_target(connection, table, kept),
        )
        if ours != theirs:
            changes[table.name] = await list_changes(
                connection, snapshot_path, table, options.zone, quarantine.path, kept
            )
    if not changes:
        return [Renewed(table, count_rows(snapshot, table.table), 0, 0) for table in plan.tables]
    changed = [table for table in plan.tables if table.name in changes]
    keys = await _take_off_keys(connection, plan, target)
    for table in changed:
        places = [change.place for change in changes[table.name] if change.place is not None]
        await connection.execute(f"DELETE FROM {table.qualified} WHERE ctid = ANY ($1::text[]::tid[])", places)
    inserted = await _insert_changes(connection, snapshot, changed, changes, options, quarantine, notes)
    await _put_back_keys(connection, keys, notes)
    return [
        Renewed(
            table,
            count_rows(snapshot, table.table),
            inserted.get(table.table.name, 0),
            sum(change.place is not None for change in changes.get(table.name, ())),
        )
        for table in plan.tables
    ]


async def _insert_changes(
    connection: Connection,
    snapshot: sqlite3.Connection,
    changed: Sequence[TablePlan],
    changes: dict[str, list[Change]],
    options: LoadOptions,
    quarantine: Quarantine,
    notes: list[str],
) -> dict[str, int]:
    target = await read_target(connection)
    stages: list[Staged] = []
    for place, table in enumerate(changed):
        stage = f"migrator_stage_{place}"
        numbers = [change.number for change in changes[table.name] if change.number is not None]
        await load_stage(connection, snapshot, table, stage, options, quarantine, lambda _: None, numbers)
        stages.append(Staged(table, stage, target.tables[table.name], (), fresh=False))
    settled = await settle_stages(connection, snapshot, stages, options, quarantine, notes)
    return {name: found.inserted for name, found in settled.items()}


@dataclass(frozen=True, slots=True)
class _Key:
    """A foreign key that was taken off, and how to put it back."""

    table: str
    statement: str
    validated: bool


async def _take_off_keys(connection: Connection, plan: Plan, target: Target) -> list[_Key]:
    keys: list[_Key] = []
    for table in plan.tables:
        for reference in target.tables[table.name].references:
            await connection.execute(f"ALTER TABLE {table.qualified} DROP CONSTRAINT {quote_name(reference.name)}")
            definition = reference.definition.removesuffix(" NOT VALID")
            statement = f"ALTER TABLE {table.qualified} ADD CONSTRAINT {quote_name(reference.name)} {definition}"
            keys.append(_Key(table.name, statement, reference.validated))
    return keys


async def _put_back_keys(connection: Connection, keys: Sequence[_Key], notes: list[str]) -> None:
    for key in keys:
        if not key.validated:
            await connection.execute(f"{key.statement} NOT VALID")
            continue
        try:
            async with connection.transaction():
                await connection.execute(key.statement)
        except asyncpg.ForeignKeyViolationError:
            await connection.execute(f"{key.statement} NOT VALID")
            notes.append(f"{key.table}: a foreign key is NOT VALID now, since orphans were kept")
