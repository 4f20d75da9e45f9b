"""Logging: one event name per fact, JSON lines for machines, readable lines on a terminal."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def _hide(name: str) -> Iterator[None]:
    """Lets a module seem not to be installed, unless it is imported already."""
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]


# structlog imports rich, for coloured tracebacks, wherever it finds it; that takes longer than all else of structlog.
with _hide("rich"):
    import structlog

Logger = Any


def configure_logs(*, verbose: bool = False, stream: TextIO | None = None) -> None:
    """Sends the log to stdout: JSON lines, or text where stdout is a terminal.

    Args:
        verbose: debug events too.
        stream: takes the place of stdout, as a terminal's.
    """
    terminal = stream is not None or sys.stdout.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if terminal:
        shared.append(structlog.dev.ConsoleRenderer())
    else:
        shared += [
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        # One write a line, so that the lines of several processes do not mix.
        logger_factory=lambda *_: structlog.WriteLogger(stream or sys.stdout),
        cache_logger_on_first_use=False,
    )


def get_logger() -> Logger:
    """Gives the logger; client and table are bound by whoever works on them."""
    return structlog.get_logger()
