"""What a run has to say for itself: the accounting of every row, as values and JSON."""

import json
import os
import tempfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from migrator.errors import ConfigurationError, ExitCode
from migrator.owners import adopt

SCHEMA_VERSION = 1
Status = Literal["ok", "rejected_rows", "verify_failed", "failed"]
EXIT_CODES: dict[str, ExitCode] = {
    "ok": ExitCode.OK,
    "rejected_rows": ExitCode.REJECTED_ROWS,
    "verify_failed": ExitCode.VERIFY_FAILED,
}
# The more serious a code, the further to the front; a fleet answers with its most serious one.
_SEVERITY = (
    ExitCode.USAGE,
    ExitCode.FAILED,
    ExitCode.VERIFY_FAILED,
    ExitCode.REJECTED_ROWS,
    ExitCode.OK,
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Counts(_Frozen):
    """The accounting of some rows: what was read is the sum of the four that follow."""

    rows_read: int = 0
    rows_inserted: int = 0
    rows_already_present: int = 0
    rows_conflicting: int = 0
    rows_rejected: int = 0

    @property
    def adds_up(self) -> bool:
        """Whether no row left the sum."""
        return self.rows_read == (
            self.rows_inserted + self.rows_already_present + self.rows_conflicting + self.rows_rejected
        )


class TableReport(Counts):
    """One table's accounting; the digests are equal where it is ``verified``."""

    name: str
    duration_seconds: float = 0.0
    verified: bool = False
    digest_source: str | None = None
    digest_target: str | None = None


class Totals(Counts):
    """The sum over all tables; ``verified`` only where every table is."""

    duration_seconds: float = 0.0
    verified: bool = False


class SourceReport(_Frozen):
    """The SQLite file as it was when the snapshot was taken."""

    path: str
    size_bytes: int | None = None
    sha256: str | None = None
    journal_mode: str | None = None


class TargetReport(_Frozen):
    """The database that the rows went to."""

    database: str
    server_version: str | None = None


class Report(_Frozen):
    """One run over one client; ``unchanged_since`` names the run whose outcome still stood."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    client: str
    command: Literal["migrate", "verify", "retry-rejected", "cutover", "rollback"] = "migrate"
    dry_run: bool = False
    status: Status
    source: SourceReport
    target: TargetReport
    started_at: datetime
    finished_at: datetime
    tables: tuple[TableReport, ...] = ()
    notes: tuple[str, ...] = ()
    unchanged_since: str | None = None
    downtime_seconds: float | None = None
    error: str | None = None
    failure_code: ExitCode = Field(default=ExitCode.FAILED, exclude=True)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def duration_seconds(self) -> float:
        """From the first look at the file to the commit."""
        return round((self.finished_at - self.started_at).total_seconds(), 3)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def totals(self) -> Totals:
        """The sum over all tables."""
        return Totals(
            rows_read=sum(t.rows_read for t in self.tables),
            rows_inserted=sum(t.rows_inserted for t in self.tables),
            rows_already_present=sum(t.rows_already_present for t in self.tables),
            rows_conflicting=sum(t.rows_conflicting for t in self.tables),
            rows_rejected=sum(t.rows_rejected for t in self.tables),
            duration_seconds=round(sum(t.duration_seconds for t in self.tables), 3),
            verified=bool(self.tables) and all(t.verified for t in self.tables),
        )

    @property
    def exit_code(self) -> ExitCode:
        """What the process answers for this client alone."""
        return self.failure_code if self.status == "failed" else EXIT_CODES[self.status]


def choose_exit_code(codes: Iterable[ExitCode]) -> ExitCode:
    """Chooses the most serious of several exit codes.

    >>> choose_exit_code([ExitCode.OK, ExitCode.REJECTED_ROWS, ExitCode.FAILED]).name
    'FAILED'
    """
    found = set(codes)
    return next((code for code in _SEVERITY if code in found), ExitCode.OK)


def locate_run(reports_dir: Path, client: str, run_id: str) -> Path:
    """Names the folder of one run's report."""
    return reports_dir / client / run_id


def write_report(report: Report, reports_dir: Path) -> Path:
    """Writes a run's report and makes it the client's latest.

    Returns:
        The path of ``report.json``.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    folder = locate_run(reports_dir, report.client, report.run_id)
    text = report.model_dump_json(indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "report.json", text)
        _replace(folder.parent / "latest.json", text)
        adopt(folder.parent, reports_dir)
    except OSError as error:
        raise _explain(folder, error) from error
    return folder / "report.json"


def replace_file(path: Path, text: str, reports_dir: Path) -> None:
    """Writes a file within the folder of reports, whole or not at all.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)
        adopt(path, reports_dir)
    except OSError as error:
        raise _explain(path.parent, error) from error


def _explain(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"the report cannot be written to {folder}: {error.strerror}. REPORTS_DIR must be a folder that "
        f"uid {os.geteuid()} may write; 'make secrets' prepares it"
    )


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_latest(reports_dir: Path, client: str) -> Report:
    """Reads a client's latest report.

    Raises:
        ConfigurationError: there is none, or it cannot be read.
    """
    path = reports_dir / client / "latest.json"
    try:
        return Report.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigurationError(f"{client} has no report yet: {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as a report: {error}") from error


def find_latest(reports_dir: Path, client: str) -> Report | None:
    """Reads a client's latest report; None where there is none."""
    return read_latest(reports_dir, client) if (reports_dir / client / "latest.json").exists() else None


def list_latest(reports_dir: Path) -> tuple[tuple[Report, ...], tuple[tuple[str, str], ...]]:
    """Reads the latest report of every client, in the order of their names.

    Returns:
        The reports, and which clients' cannot be read, each with the reason.
    """
    reports: list[Report] = []
    unreadable: list[tuple[str, str]] = []
    for path in sorted(reports_dir.glob("*/latest.json")):
        try:
            reports.append(read_latest(reports_dir, path.parent.name))
        except ConfigurationError as error:
            unreadable.append((path.parent.name, str(error)))
    return tuple(reports), tuple(unreadable)
