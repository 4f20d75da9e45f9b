"""Several clients at a time, each in a process of its own, since the work is bound by processors.

Workers on any number of machines may share a fleet. A client is claimed by its lock in PostgreSQL, which
goes with the worker's connection; who finds a client claimed comes back to it later, and then finds it
done, or takes it over from a worker that is gone.

On SIGINT or SIGTERM the clients in hand are finished, no further one is begun, and those that remain
are named; the next run goes on with them.
"""

import asyncio
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import Queue
from types import FrameType
from typing import Any

from migrator.clients import Client
from migrator.errors import LockedError
from migrator.logs import configure_logs, get_logger
from migrator.progress import LogMessages, ProgressEvents, ProgressMessages, forward_messages
from migrator.report import Report
from migrator.run import JobOptions, Watch

Command = Callable[[Client, JobOptions, Watch], Awaitable[Report]]
CLAIM_PAUSE_SECONDS = 1.0
CLAIM_TOLD_SECONDS = 30.0
_POLL_SECONDS = 0.2
_WORKER_LOST = (
    "a worker process was killed from outside, perhaps for want of memory; its client is unchanged. "
    "Run the same command again, with fewer --jobs if memory is short"
)
_GOLDEN_RATIO = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class FleetResult:
    """The reports of the clients that were worked on, in the order asked for, and who remains."""

    reports: tuple[Report, ...]
    remaining: tuple[str, ...]


def count_jobs(clients: int) -> int:
    """Chooses how many clients are worked on at a time: as many as there are processors."""
    return max(1, min(clients, len(os.sched_getaffinity(0))))


def spread_clients(clients: Sequence[Client], index: int | None = None) -> list[Client]:
    """Lets each of several workers begin at another place, so that they seldom want the same client.

    Args:
        clients: all of them, in the order that every worker knows.
        index: the worker's number where it has one, such as a Kubernetes Indexed Job's; else chance decides.

    >>> spread_clients([1, 2, 3, 4], 0), spread_clients([1, 2, 3, 4], 1)
    ([1, 2, 3, 4], [3, 4, 1, 2])
    """
    share = random.random() if index is None else index * _GOLDEN_RATIO % 1  # noqa: S311 - spreads, hides nothing
    start = int(share * len(clients))
    return [*clients[start:], *clients[:start]]


def run_fleet(
    clients: Sequence[Client], options: JobOptions, command: Command, jobs: int, watch: Watch | None = None
) -> FleetResult:
    """Runs a command for several clients, ``jobs`` of them at a time.

    Args:
        clients: in the order in which they are begun; shared ones are begun at a place of this worker's.
        options: the same for all.
        command: a coroutine function of a module, so that another process can find it.
        jobs: how many processes, each with one connection.
        watch: is told of the progress of all; without one, the processes log it.
    """
    context = multiprocessing.get_context("spawn")
    messages: Queue[Any] | None = context.Queue() if watch else None
    order = spread_clients(clients, _read_index()) if options.shared else list(clients)
    with (
        forward_messages(messages, watch),
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker, initargs=(messages,)) as pool,
        _stoppable() as stop,
    ):
        found = _collect_reports(pool, stop, order, options, command)
    remaining = tuple(client.id for client in clients if client.id not in found)
    if remaining:
        get_logger().warning("fleet_interrupted", done=len(found), remaining=list(remaining))
    return FleetResult(tuple(found[client.id] for client in clients if client.id in found), remaining)


def _read_index() -> int | None:
    index = os.environ.get("JOB_COMPLETION_INDEX", "")
    return int(index) if index.isdigit() else None


def _collect_reports(
    pool: ProcessPoolExecutor,
    stop: threading.Event,
    clients: Sequence[Client],
    options: JobOptions,
    command: Command,
) -> dict[str, Report]:
    found: dict[str, Report] = {}
    claimed: dict[str, tuple[Client, float]] = {}
    told: dict[str, float] = {}
    waiting: dict[Future[Report], Client] = {pool.submit(_work, c, options, command): c for c in clients}
    while waiting or (claimed and not stop.is_set()):
        done, _ = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        if not waiting:
            time.sleep(_POLL_SECONDS)
        for future in done:
            client = waiting.pop(future)
            if future.cancelled():
                continue
            try:
                found[client.id] = future.result()
            except LockedError as error:
                claimed[client.id] = (client, time.monotonic() + CLAIM_PAUSE_SECONDS)
                if time.monotonic() - told.get(client.id, -CLAIM_TOLD_SECONDS) >= CLAIM_TOLD_SECONDS:
                    told[client.id] = time.monotonic()
                    get_logger().info("client_claimed_elsewhere", client=client.id, holder=str(error))
            except BrokenProcessPool:
                get_logger().error("worker_lost", error=_WORKER_LOST, clients=[client.id])
                return found
        if stop.is_set():
            for future in waiting:
                future.cancel()
            continue
        for name in [name for name, (_, due) in claimed.items() if due <= time.monotonic()]:
            client, _ = claimed.pop(name)
            waiting[pool.submit(_work, client, options, command)] = client
    return found


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


_watch: Watch = ProgressEvents()


def _begin_worker(messages: "Queue[Any] | None") -> None:
    global _watch
    # A terminal sends SIGINT to all processes of a job; who ends it is the parent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if messages is None:
        configure_logs()
    else:
        _watch = ProgressMessages(messages)
        configure_logs(stream=LogMessages(messages))


def _work(client: Client, options: JobOptions, command: Command) -> Report:
    async def run() -> Report:
        return await command(client, options, _watch)

    return asyncio.run(run())
