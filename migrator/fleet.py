"""Several clients at a time, each in a process of its own, since the work is bound by processors.

On SIGINT or SIGTERM the clients in hand are finished, no further one is begun, and those that remain
are named; the next run goes on with them.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from migrator.clients import Client
from migrator.logs import configure_logs, get_logger
from migrator.progress import ProgressEvents
from migrator.report import Report
from migrator.run import JobOptions, Watch

Command = Callable[[Client, JobOptions, Watch], Awaitable[Report]]


@dataclass(frozen=True, slots=True)
class FleetResult:
    """The reports of the clients that were worked on, in the order asked for, and who remains."""

    reports: tuple[Report, ...]
    remaining: tuple[str, ...]


def count_jobs(clients: int) -> int:
    """Chooses how many clients are worked on at a time: as many as there are processors."""
    return max(1, min(clients, len(os.sched_getaffinity(0))))


def run_fleet(clients: Sequence[Client], options: JobOptions, command: Command, jobs: int) -> FleetResult:
    """Runs a command for several clients, ``jobs`` of them at a time.

    Args:
        clients: in the order in which they are begun.
        options: the same for all.
        command: a coroutine function of a module, so that another process can find it.
        jobs: how many processes, each with one connection.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker) as pool, _stoppable() as stop:
        waiting = {pool.submit(_work, client, options, command): client for client in clients}
        watcher = threading.Thread(target=_cancel_waiting, args=(stop, waiting), daemon=True)
        watcher.start()
        found: dict[str, Report] = {}
        for future in as_completed(waiting):
            if not future.cancelled():
                found[waiting[future].id] = future.result()
        stop.set()
        watcher.join()
    remaining = tuple(client.id for client in clients if client.id not in found)
    if remaining:
        get_logger().warning("fleet_interrupted", done=len(found), remaining=list(remaining))
    return FleetResult(tuple(found[client.id] for client in clients if client.id in found), remaining)


def _cancel_waiting(stop: threading.Event, waiting: "dict[Future[Report], Client]") -> None:
    stop.wait()
    for future in waiting:
        future.cancel()


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Turns the two signals that ask for an end into an event."""
    stop = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        get_logger().info("stop_requested", signal=signal.Signals(number).name)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _begin_worker() -> None:
    # A terminal sends SIGINT to all processes of a job; who ends it is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logs()


def _work(client: Client, options: JobOptions, command: Command) -> Report:
    async def run() -> Report:
        return await command(client, options, ProgressEvents())

    return asyncio.run(run())
