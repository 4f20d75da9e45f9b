"""Progress on a terminal: one bar for each client, with its table, rows and time left."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from migrator.logs import get_logger
from migrator.run import Watch

_EVENT_SECONDS = 5.0


class ProgressBars(Watch):
    """Draws the bars while it is entered as a context."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows of {task.fields[table]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "ProgressBars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, client: str, table: str, rows: int) -> None:
        """Starts a client's bar anew for its next table."""
        if client not in self._tasks:
            self._tasks[client] = self._progress.add_task(client, total=rows, table=table)
        self._progress.reset(self._tasks[client], total=rows, table=table)

    def advance(self, client: str, rows: int) -> None:
        """Moves a client's bar on."""
        self._progress.advance(self._tasks[client], rows)

    def finish(self, client: str) -> None:
        """Takes a client's bar away."""
        if client in self._tasks:
            self._progress.remove_task(self._tasks.pop(client))


class ProgressEvents(Watch):
    """Logs how far each client is, at most every few seconds."""

    def __init__(self) -> None:
        self._tables: dict[str, tuple[str, int, int]] = {}
        self._told: dict[str, float] = {}

    def begin(self, client: str, table: str, rows: int) -> None:
        """Remembers a client's next table."""
        self._tables[client] = (table, 0, rows)
        self._told.setdefault(client, time.monotonic())

    def advance(self, client: str, rows: int) -> None:
        """Logs an event where the last one is long enough ago."""
        table, done, total = self._tables[client]
        done += rows
        self._tables[client] = (table, done, total)
        if time.monotonic() - self._told[client] >= _EVENT_SECONDS:
            self._told[client] = time.monotonic()
            get_logger().info("table_progress", client=client, table=table, rows=done, of=total)

    def finish(self, client: str) -> None:
        """Forgets a client."""
        self._tables.pop(client, None)
        self._told.pop(client, None)
