"""Decides, before a row moves, which table goes where, in which order and as which types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from migrator.datatypes import BIGINT, INTEGER_BITS, TEXT, DataType, Kind, wish_type
from migrator.errors import TargetError
from migrator.source import Column, ForeignKey, Source, Table
from migrator.target import Target, TargetColumn, TargetTable, quote_name

# The first release's order; other tables follow in the file's own order.
FIRST_RELEASE = (
    "users",
    "services",
    "admins",
    "settings",
    "text_templates",
    "blocked_slots",
    "bookings",
    "booking_history",
    "audit_log",
    "broadcast_messages",
    "feedback",
)
MAX_NAME_BYTES = 63


class Orphans(StrEnum):
    """What happens to rows whose foreign key points at no row."""

    KEEP = "keep"
    QUARANTINE = "quarantine"
    NULL = "null"


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """One column on its way: ``place`` is its place in a source row.

    ``datatype`` is None while only the stored values can decide it. ``computed`` marks a column
    that the target computes by itself, which is verified but not loaded.
    """

    source: Column
    place: int
    name: str
    datatype: DataType | None
    not_null: bool
    identity: bool = False
    computed: bool = False
    added: bool = False

    @property
    def type(self) -> DataType:
        """The decided type."""
        if self.datatype is None:
            raise AssertionError(f"the type of {self.name} was not decided")
        return self.datatype


@dataclass(frozen=True, slots=True)
class TablePlan:
    """One table on its way; ``existing`` is the target's own table where there is one."""

    table: Table
    schema: str
    name: str
    columns: tuple[ColumnPlan, ...]
    existing: TargetTable | None

    @property
    def qualified(self) -> str:
        """The target table's name, ready for SQL."""
        return f"{quote_name(self.schema)}.{quote_name(self.name)}"

    @property
    def loaded(self) -> tuple[ColumnPlan, ...]:
        """The columns that are loaded; the others are computed by the target."""
        return tuple(column for column in self.columns if not column.computed)

    @property
    def primary_key(self) -> tuple[str, ...]:
        """The source's primary key in the target's names."""
        return tuple(self.find_column(name).name for name in self.table.primary_key)

    def find_column(self, source_name: str) -> ColumnPlan:
        """Finds a column by its name in the source, whatever its case."""
        return next(c for c in self.columns if c.source.name.lower() == source_name.lower())

    def with_types(self, types: Mapping[str, DataType]) -> "TablePlan":
        """Gives the plan with other types for some columns, named as in the source."""
        columns = tuple(replace(c, datatype=types.get(c.source.name, c.datatype)) for c in self.columns)
        return replace(self, columns=columns)

    def translate_names(self) -> dict[str, tuple[str, DataType]]:
        """Maps lower-case source names to the target's names and types, for expressions."""
        return {c.source.name.lower(): (c.name, c.type) for c in self.columns if c.datatype}


# In which storage class a type's values usually lie; None where any number will do.
_STORAGES = {
    **dict.fromkeys((*INTEGER_BITS, Kind.BOOLEAN), None),
    Kind.REAL: "real",
    Kind.DOUBLE: "real",
    Kind.BYTEA: "blob",
}


def list_classes(columns: Sequence[ColumnPlan]) -> dict[str, str]:
    """Tells which storage class the columns of text, reals and blobs should hold, to be read by columns."""
    storages = {column.source.name: _STORAGES.get(column.type.kind, "text") for column in columns}
    return {name: storage for name, storage in storages.items() if storage}


@dataclass(frozen=True, slots=True)
class Plan:
    """The tables in the order in which they are loaded, parents before children."""

    tables: tuple[TablePlan, ...]
    notes: tuple[str, ...] = field(default=())

    def find_table(self, source_name: str) -> TablePlan | None:
        """Finds a table by its name in the source, whatever its case."""
        return next((t for t in self.tables if t.table.name.lower() == source_name.lower()), None)


def make_plan(source: Source, target: Target, *, add_columns: bool = False) -> Plan:
    """Plans all tables of a source.

    Args:
        source: what the snapshot declares.
        target: what the target schema holds.
        add_columns: columns that an existing table lacks are added instead of refused.

    Raises:
        TargetError: an existing table cannot take the rows; the message says what to run.
    """
    notes = list(source.notes)
    taken: set[str] = set()
    plans: list[TablePlan] = []
    for table in order_tables(source.tables):
        existing = _find_existing(table, target)
        name = existing.name if existing else _shorten_name(table.name, taken, notes, "table")
        taken.add(name)
        if existing:
            plans.append(_plan_existing(table, target, existing, add_columns=add_columns, notes=notes))
        else:
            plans.append(_plan_fresh(table, target, name, notes))
    return Plan(tuple(plans), tuple(notes))


def order_tables(tables: Sequence[Table]) -> list[Table]:
    """Puts parents before children; in a cycle the first release's order decides who comes first."""
    rank = {name: place for place, name in enumerate(FIRST_RELEASE)}
    left = sorted(tables, key=lambda table: rank.get(table.name.lower(), len(rank)))
    names = {table.name.lower() for table in tables}
    done: set[str] = set()
    ordered: list[Table] = []
    while left:
        ready = next((t for t in left if _list_parents(t, names) <= done), left[0])
        left.remove(ready)
        done.add(ready.name.lower())
        ordered.append(ready)
    return ordered


def _list_parents(table: Table, names: set[str]) -> set[str]:
    parents = {key.parent.lower() for key in table.foreign_keys}
    return (parents & names) - {table.name.lower()}


def _find_existing(table: Table, target: Target) -> TargetTable | None:
    if table.name in target.tables:
        return target.tables[table.name]
    alike = [t for name, t in target.tables.items() if name.lower() == table.name.lower()]
    return alike[0] if len(alike) == 1 else None


def _shorten_name(name: str, taken: set[str], notes: list[str], what: str) -> str:
    """Keeps a name within PostgreSQL's limit of 63 bytes, which it would cut without a word."""
    if len(name.encode("utf-8")) <= MAX_NAME_BYTES and name not in taken:
        return name
    number = 1
    while True:
        suffix = f"_{number}"
        room = MAX_NAME_BYTES - len(suffix)
        short = name.encode("utf-8")[:room].decode("utf-8", "ignore") + suffix
        if short not in taken:
            notes.append(f"{name}: {what} renamed to {short}, since PostgreSQL's names end at {MAX_NAME_BYTES} bytes")
            return short
        number += 1


def _plan_fresh(table: Table, target: Target, name: str, notes: list[str]) -> TablePlan:
    taken: set[str] = set()
    columns: list[ColumnPlan] = []
    for place, column in enumerate(table.columns):
        short = _shorten_name(column.name, taken, notes, f"{table.name}: column")
        taken.add(short)
        alias = column.name == table.rowid_alias
        columns.append(
            ColumnPlan(
                source=column,
                place=place,
                name=short,
                datatype=BIGINT if alias else wish_type(column.name, column.declared_type),
                not_null=column.not_null or column.key_position > 0,
                identity=alias and not table.virtual,
                computed=column.generated is not None and column.generated != "",
            )
        )
    return TablePlan(table, target.schema, name, tuple(columns), None)


def _plan_existing(
    table: Table, target: Target, existing: TargetTable, *, add_columns: bool, notes: list[str]
) -> TablePlan:
    where = f"{existing.name} in {target.schema}"
    if not existing.writable:
        raise TargetError(
            f"table {where} belongs to {existing.owner} and may not be written. "
            f"Run: GRANT SELECT, INSERT ON {quote_name(target.schema)}.{quote_name(existing.name)} TO <role>"
        )
    columns: list[ColumnPlan] = []
    missing: list[Column] = []
    for place, column in enumerate(table.columns):
        found = _find_column(column, existing)
        if found:
            columns.append(
                ColumnPlan(
                    source=column,
                    place=place,
                    name=found.name,
                    datatype=found.datatype,
                    not_null=found.not_null,
                    computed=found.generated,
                )
            )
            continue
        missing.append(column)
        columns.append(
            ColumnPlan(
                source=column,
                place=place,
                name=column.name,
                datatype=wish_type(column.name, column.declared_type),
                not_null=False,
                added=True,
            )
        )
    if missing and not add_columns:
        raise TargetError(_describe_missing(table, target, existing, missing))
    notes.extend(f"{existing.name}: column {column.name} was missing and is added" for column in missing)
    _refuse_unfilled(existing, columns)
    return TablePlan(table, target.schema, existing.name, tuple(columns), existing)


def _find_column(column: Column, existing: TargetTable) -> TargetColumn | None:
    exact = next((c for c in existing.columns if c.name == column.name), None)
    if exact:
        return exact
    alike = [c for c in existing.columns if c.name.lower() == column.name.lower()]
    return alike[0] if len(alike) == 1 else None


def _describe_missing(table: Table, target: Target, existing: TargetTable, missing: Sequence[Column]) -> str:
    statements = "; ".join(
        f"ALTER TABLE {quote_name(target.schema)}.{quote_name(existing.name)} ADD COLUMN {quote_name(column.name)} "
        f"{(wish_type(column.name, column.declared_type) or _WIDEST).sql}"
        for column in missing
    )
    return (
        f"table {existing.name} lacks columns that {table.name} has in SQLite. Run: {statements}; "
        f"or repeat with --add-columns"
    )


_WIDEST = TEXT


def _refuse_unfilled(existing: TargetTable, columns: Sequence[ColumnPlan]) -> None:
    filled = {column.name for column in columns}
    for column in existing.columns:
        if column.not_null and not column.has_default and not column.generated and column.name not in filled:
            raise TargetError(
                f"table {existing.name}: column {column.name} is NOT NULL without a default, and SQLite has no "
                f"such column. Run: ALTER TABLE {quote_name(existing.name)} ALTER COLUMN {quote_name(column.name)} "
                f"SET DEFAULT …, or DROP NOT NULL"
            )


def resolve_parent(key: ForeignKey, plan: Plan) -> tuple[TablePlan, tuple[str, ...]] | None:
    """Finds what a foreign key points at.

    Returns:
        The parent's plan and its columns in the target's names; None where the table or a column
        does not exist, which SQLite never checks until it enforces the key.
    """
    parent = plan.find_table(key.parent)
    if parent is None:
        return None
    wanted = key.parent_columns or parent.table.primary_key
    if len(wanted) != len(key.columns) or any(parent.table.find_column(name) is None for name in wanted):
        return None
    return parent, tuple(parent.find_column(name).name for name in wanted)
