"""Progress: on a terminal a bar for each client with its table, rows, rate and time left; in logs an event."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
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
from rich.text import Text

from migrator.logs import get_logger
from migrator.run import Watch

_EVENT_SECONDS = 5.0
_MESSAGE_SECONDS = 0.1


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

    def tell(self, line: str) -> None:
        """Writes a line of a worker's log above the bars."""
        self.console.print(Text.from_ansi(line), soft_wrap=True)


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


class ProgressMessages(Watch):
    """Sends a worker's progress to the process that draws the bars."""

    def __init__(self, messages: "Queue[Any]") -> None:
        self._messages = messages
        self._waiting = 0
        self._sent = 0.0

    def begin(self, client: str, table: str, rows: int) -> None:
        """Passes a table's beginning on."""
        self._waiting = 0
        self._messages.put(("begin", client, table, rows))

    def advance(self, client: str, rows: int) -> None:
        """Passes rows on, several batches at a time."""
        self._waiting += rows
        if time.monotonic() - self._sent >= _MESSAGE_SECONDS:
            self._messages.put(("advance", client, self._waiting))
            self._waiting, self._sent = 0, time.monotonic()

    def finish(self, client: str) -> None:
        """Passes a client's end on."""
        self._messages.put(("finish", client))


class LogMessages(io.StringIO):
    """The file that a worker's log goes to, where another process draws bars on the terminal."""

    def __init__(self, messages: "Queue[Any]") -> None:
        super().__init__()
        self._messages = messages

    def write(self, line: str) -> int:
        """Sends a line to the process that has the terminal."""
        if line.strip():
            self._messages.put(("tell", line.rstrip("\n")))
        return len(line)


@contextmanager
def forward_messages(messages: "Queue[Any] | None", watch: Watch | None) -> Iterator[None]:
    """Hands the workers' messages to ``watch`` while it is entered."""
    if messages is None or watch is None:
        yield
        return

    def forward() -> None:
        while message := messages.get():
            getattr(watch, message[0])(*message[1:])

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        messages.put(None)
        thread.join()
