"""The reports as pages for people: one a run, one for the fleet; no script, no network, nothing to install.

Everything a page shows may come from a client's rows, so templates escape whatever they are given, and the
pages' own policy forbids a browser to run or fetch anything.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from migrator.report import Counts, Report, locate_run, replace_file, write_report
from migrator.target import quote_literal

if TYPE_CHECKING:
    from jinja2 import Environment

SHOWN_ROWS = 200


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run is judged: a sign and a word besides the colour, so that neither is needed alone."""

    tone: str
    sign: str
    word: str
    sentence: str


_VERDICTS = {
    "ok": Verdict("good", "✓", "verified", "Every row is in PostgreSQL, and every value was compared."),
    "rejected_rows": Verdict(
        "warn", "!", "rows kept aside", "Verified; some rows are kept aside and wait for a person."
    ),
    "verify_failed": Verdict("bad", "✗", "differs", "SQLite and PostgreSQL differ; nothing was committed."),
    "failed": Verdict("bad", "✗", "failed", "Failed; nothing was changed."),
}
_REHEARSED = Verdict("good", "✓", "rehearsed", "Everything was loaded, compared and rolled back; nothing was changed.")
_REMEDIES = {
    "rejected": ("warn", "Mend the values in this statement, and run it as the client's role (make psql CLIENT={}):"),
    "conflicting": (
        "bad",
        "PostgreSQL has another row with this key. To keep that one, there is nothing to do. To have the one from "
        "SQLite, delete the one in PostgreSQL and migrate {} again.",
    ),
    "nulled": (
        "warn",
        "The row is in PostgreSQL; its foreign key pointed at no row of {} and is NULL there. Set it to a row that "
        "exists, if there is one.",
    ),
    "mended": ("good", "Loaded since by retry-rejected into the database of {}."),
}


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A kept row as a page shows it; ``statement`` is SQL to be edited and run, where that mends it."""

    table: str
    number: int
    verdict: str
    tone: str
    column: str | None
    value: str | None
    reason: str
    sqlstate: str | None
    row: str
    target_row: str | None
    remedy: str
    statement: str | None


@dataclass(frozen=True, slots=True)
class FleetLine:
    """One client on the fleet's page."""

    report: Report
    verdict: Verdict


def publish_report(report: Report, reports_dir: Path) -> Path:
    """Writes a run's report for machines and for people.

    Returns:
        The path of ``report.json``; ``report.html`` lies beside it.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    path = write_report(report, reports_dir)
    rejected, left_out = read_rejected(report, reports_dir)
    text = render_report(report, rejected, left_out)
    replace_file(path.with_name("report.html"), text, reports_dir)
    return path


def publish_fleet(
    reports_dir: Path,
    reports: Sequence[Report],
    unreadable: Sequence[tuple[str, str]] = (),
    remaining: Sequence[str] = (),
) -> Path:
    """Writes ``index.html`` and ``fleet.json`` about the latest run of every client.

    Args:
        reports_dir: where the clients' reports lie; other workers may write there at the same time.
        reports: each client's latest.
        unreadable: clients whose latest report cannot be read, each with the reason.
        remaining: clients that an interrupted job has not come to.

    Returns:
        The path of the page.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    now = datetime.now(UTC)
    replace_file(reports_dir / "index.html", render_fleet(reports, unreadable, remaining, now), reports_dir)
    fleet = {
        "schema_version": 1,
        "as_of": now.isoformat(),
        "totals": _sum_counts(reports).model_dump(),
        "remaining": list(remaining),
        "unreadable": [{"client": client, "problem": problem} for client, problem in unreadable],
        "clients": [
            report.model_dump(mode="json", include={"client", "run_id", "command", "status", "totals", "error"})
            | {"finished_at": report.finished_at.isoformat(), "duration_seconds": report.duration_seconds}
            for report in reports
        ],
    }
    replace_file(reports_dir / "fleet.json", json.dumps(fleet, indent=2) + "\n", reports_dir)
    return reports_dir / "index.html"


def read_rejected(report: Report, reports_dir: Path) -> tuple[tuple[RejectedRow, ...], int]:
    """Reads the rows that a run kept aside.

    Returns:
        The first of them, and how many more there are.
    """
    path = locate_run(reports_dir, report.client, report.run_id) / "rejected.jsonl"
    if not path.exists():
        return (), 0
    with path.open(encoding="utf-8") as lines:
        shown = tuple(_make_row(report.client, json.loads(line)) for line in itertools.islice(lines, SHOWN_ROWS))
        return shown, sum(1 for _ in lines)


def _make_row(client: str, entry: dict[str, Any]) -> RejectedRow:
    tone, remedy = _REMEDIES[entry["verdict"]]
    row = json.dumps(entry["row"], ensure_ascii=False)
    statement = (
        f"UPDATE migrator.rejected_rows\n   SET mended = {quote_literal(row)}\n"
        f" WHERE table_name = {quote_literal(entry['table'])} AND row_number = {entry['rowid']}\n"
        f"   AND resolved_at IS NULL;"
    )
    return RejectedRow(
        table=entry["table"],
        number=entry["rowid"],
        verdict=entry["verdict"],
        tone=tone,
        column=entry["column"],
        value=None if entry["value"] is None else json.dumps(entry["value"], ensure_ascii=False),
        reason=entry["reason"],
        sqlstate=entry["sqlstate"],
        row=json.dumps(entry["row"], ensure_ascii=False, indent=2),
        target_row=json.dumps(entry["target_row"], ensure_ascii=False, indent=2) if entry["target_row"] else None,
        remedy=remedy.format(client),
        statement=statement if entry["verdict"] == "rejected" else None,
    )


def judge_run(report: Report) -> Verdict:
    """Judges a run for a person."""
    return _REHEARSED if report.dry_run and report.status == "ok" else _VERDICTS[report.status]


def render_report(report: Report, rejected: Sequence[RejectedRow], left_out: int = 0) -> str:
    """Renders one run's page."""
    return (
        _open_templates()
        .get_template("report.html")
        .render(report=report, verdict=judge_run(report), rejected=rejected, left_out=left_out)
    )


def render_fleet(
    reports: Sequence[Report], unreadable: Sequence[tuple[str, str]], remaining: Sequence[str], now: datetime
) -> str:
    """Renders the fleet's page; clients that need a person come first."""
    order = list(_VERDICTS)[::-1]
    lines = [
        FleetLine(report, judge_run(report))
        for report in sorted(reports, key=lambda found: (order.index(found.status), found.client))
    ]
    counts = {status: sum(report.status == status for report in reports) for status in order}
    worst = next((_VERDICTS[status] for status in order if counts[status]), _VERDICTS["ok"])
    if unreadable or remaining:
        worst = _VERDICTS["failed"]
    parts = [f"{_VERDICTS[status].word}: {count}" for status, count in counts.items() if count]
    return (
        _open_templates()
        .get_template("index.html")
        .render(
            lines=lines,
            unreadable=unreadable,
            remaining=remaining,
            worst=worst,
            sentence=", ".join(parts) or "No client has a report yet.",
            totals=_sum_counts(reports),
            now=now,
        )
    )


def _sum_counts(reports: Sequence[Report]) -> Counts:
    totals = [report.totals for report in reports]
    return Counts(**{name: sum(getattr(total, name) for total in totals) for name in Counts.model_fields})


def prepare_pages() -> None:
    """Reads the templates ahead of their use, while the server is at work."""
    for name in ("report.html", "index.html"):
        _open_templates().get_template(name)


@cache
def _open_templates() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("migrator"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = lambda number: f"{number:,}"
    templates.filters["seconds"] = describe_seconds
    templates.filters["moment"] = lambda moment: f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    return templates


def describe_seconds(seconds: float) -> str:
    """Describes a duration.

    >>> describe_seconds(0.0123), describe_seconds(75.4), describe_seconds(3700)
    ('12 ms', '1 min 15 s', '1 h 1 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
