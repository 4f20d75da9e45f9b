"""What a person at a terminal sees: a bar for each client with its table, rows, rate and time left, and tables.

Only commands that draw import this, since rich takes longer to import than a small client takes to migrate.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable
from rich.text import Text

from migrator.report import Counts, Report
from migrator.run import Watch


def make_console() -> Console:
    """Makes the console for tables; one that is no terminal is wide, so that nothing is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=160, soft_wrap=True)


class _RateColumn(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} rows/s" if speed else "", style="progress.data.speed")


class ProgressBars(Watch):
    """Draws the bars while it is entered as a context; of several clients, also how many are done."""

    def __init__(self, console: Console, clients: int = 1) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[table]}"),
            _RateColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._fleet = self._progress.add_task("all", total=clients, table="clients") if clients > 1 else None

    def __enter__(self) -> "ProgressBars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, client: str, table: str, rows: int) -> None:
        """Starts a client's bar anew for its next table."""
        name = f"rows of {table}"
        if client not in self._tasks:
            self._tasks[client] = self._progress.add_task(client, total=rows, table=name)
        self._progress.reset(self._tasks[client], total=rows, table=name)

    def advance(self, client: str, rows: int) -> None:
        """Moves a client's bar on."""
        self._progress.advance(self._tasks[client], rows)

    def finish(self, client: str) -> None:
        """Takes a client's bar away."""
        if client in self._tasks:
            self._progress.remove_task(self._tasks.pop(client))
        if self._fleet is not None:
            self._progress.advance(self._fleet, 1)

    def print_reports(self, reports: Sequence[Report]) -> None:
        """Prints the table of all clients where the bars were."""
        print_reports(reports, self.console)

    def tell(self, line: str) -> None:
        """Writes a line of a worker's log above the bars."""
        self.console.print(Text.from_ansi(line), soft_wrap=True)


def print_status(clients: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints one line for each client: where it is, its last run, its rows, its backup."""
    shown = RichTable(show_edge=False, pad_edge=False, header_style="bold")
    for name in ("client", "bot on", "last run", "rows", "rejected", "verified", "backup", "open journal"):
        shown.add_column(name, no_wrap=True, justify="right" if name in ("rows", "rejected") else "left")
    for found in clients:
        shown.add_row(
            found["client"],
            found["side"],
            found["last_run"],
            f"{found['rows']:,}",
            f"{found['rejected']:,}",
            _tick(found["verified"]),
            found["backup"] or "-",
            found["journal"] or "-",
        )
    console.print(shown)


def print_reports(reports: Sequence[Report], console: Console, *, tables: bool = False) -> None:
    """Prints reports as a table that a person can read.

    Args:
        reports: one for each client.
        console: where to.
        tables: a line for each table, besides the one for each client.
    """
    shown = RichTable(show_edge=False, pad_edge=False, header_style="bold")
    for name in ("client", "table") if tables else ("client",):
        shown.add_column(name, no_wrap=True)
    for name in ("read", "inserted", "present", "conflicting", "rejected", "seconds"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("verified", no_wrap=True)
    shown.add_column("status", no_wrap=True)
    for report in reports:
        if tables:
            for table in report.tables:
                shown.add_row(
                    report.client,
                    table.name,
                    *_list_cells(table, table.duration_seconds),
                    _tick(table.verified),
                    "",
                )
        totals = report.totals
        cells = _list_cells(totals, report.duration_seconds)
        first = (report.client, "total") if tables else (report.client,)
        shown.add_row(
            *first,
            *cells,
            _tick(totals.verified),
            report.status,
            style="bold" if tables else None,
            end_section=tables,
        )
    console.print(shown)
    for report in reports:
        if report.error:
            console.print(f"{report.client}: {report.error}", markup=False, highlight=False, soft_wrap=True)


def _list_cells(counts: Counts, seconds: float) -> list[str]:
    numbers = (
        counts.rows_read,
        counts.rows_inserted,
        counts.rows_already_present,
        counts.rows_conflicting,
        counts.rows_rejected,
    )
    return [f"{number:,}" for number in numbers] + [f"{seconds:.2f}"]


def _tick(verified: bool) -> str:
    return "yes" if verified else "no"
