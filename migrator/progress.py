"""Progress: in logs an event every few seconds, and from worker processes messages to the one that draws."""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any

from migrator.logs import get_logger
from migrator.run import Watch

_EVENT_SECONDS = 5.0
_MESSAGE_SECONDS = 0.1


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
