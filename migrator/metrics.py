"""The latest runs as OpenMetrics text, for a node exporter's textfile collector.

Names, units and the closing line follow https://prometheus.io/docs/specs/om/open_metrics_spec/; gauges
throughout, since each speaks of the latest run and not of a sum over runs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from migrator.report import Report, replace_file

METRICS_FILE = "metrics.prom"
_STATUSES = ("ok", "rejected_rows", "verify_failed", "failed")
_OUTCOMES = ("inserted", "already_present", "conflicting", "rejected")


def publish_metrics(reports_dir: Path, reports: Sequence[Report]) -> Path:
    """Writes ``metrics.prom``, whole or not at all, so that a collector never reads half of it.

    Args:
        reports_dir: where it goes.
        reports: each client's latest.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    path = reports_dir / METRICS_FILE
    replace_file(path, render_metrics(reports), reports_dir)
    return path


def render_metrics(reports: Sequence[Report]) -> str:
    """Renders the metrics of clients' latest runs."""
    return "\n".join([*_list_lines(reports), "# EOF"]) + "\n"


def _list_lines(reports: Sequence[Report]) -> Iterator[str]:
    yield from _declare("migrator_run_status", "Which status the client's latest run has.")
    for report in reports:
        for status in _STATUSES:
            yield _sample("migrator_run_status", int(report.status == status), report, status=status)
    yield from _declare("migrator_run_verified", "Whether every table's digests were equal.")
    for report in reports:
        yield _sample("migrator_run_verified", int(report.totals.verified), report)
    yield from _declare("migrator_run_duration_seconds", "How long the latest run took.", "seconds")
    for report in reports:
        yield _sample("migrator_run_duration_seconds", report.duration_seconds, report)
    yield from _declare("migrator_run_finished_timestamp_seconds", "When the latest run ended.", "seconds")
    for report in reports:
        yield _sample("migrator_run_finished_timestamp_seconds", report.finished_at.timestamp(), report)
    yield from _declare("migrator_rows_read", "Rows that the latest run read from SQLite.")
    for report in reports:
        for table in report.tables:
            yield _sample("migrator_rows_read", table.rows_read, report, table=table.name)
    yield from _declare("migrator_rows", "What became of the rows that the latest run read.")
    for report in reports:
        for table in report.tables:
            for outcome in _OUTCOMES:
                number = getattr(table, f"rows_{outcome}")
                yield _sample("migrator_rows", number, report, table=table.name, outcome=outcome)


def _declare(name: str, text: str, unit: str | None = None) -> Iterator[str]:
    yield f"# TYPE {name} gauge"
    if unit:
        yield f"# UNIT {name} {unit}"
    yield f"# HELP {name} {text}"


def _sample(name: str, value: float, report: Report, **labels: str) -> str:
    pairs = {"client": report.client, "command": report.command, **labels}
    return f"{name}{{{','.join(f'{key}={_quote(text)}' for key, text in pairs.items())}}} {value}"


def _quote(text: str) -> str:
    r"""Quotes a label's value.

    >>> print(_quote('a"b\\c' + chr(10)))
    "a\"b\\c\n"
    """
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
