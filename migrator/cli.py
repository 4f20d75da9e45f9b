"""The command line: it reads arguments, calls the stages and answers with an exit code."""

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from migrator import __version__
from migrator.clients import Client, discover_clients, parse_url, select_clients
from migrator.comparison import verify_client
from migrator.container import Patience
from migrator.cutover import Move, cut_over, describe_client, purge, read_state, roll_back
from migrator.errors import ConfigurationError, ExitCode, MigratorError
from migrator.fleet import FleetResult, count_jobs, run_fleet
from migrator.load import LoadOptions
from migrator.logs import configure_logs, get_logger
from migrator.metrics import publish_metrics
from migrator.migration import migrate_client
from migrator.pages import publish_fleet
from migrator.plan import Orphans
from migrator.progress import ProgressEvents
from migrator.report import (
    Report,
    choose_exit_code,
    find_latest,
    list_latest,
    read_latest,
)
from migrator.retry import retry_client
from migrator.run import JobOptions
from migrator.settings import Settings, load_settings
from migrator.zones import parse_zone

if TYPE_CHECKING:
    from migrator.terminal import ProgressBars

Command = Callable[..., Any]


def _catch(command: Command) -> Command:
    """Turns the project's errors into one line and an exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except MigratorError as error:
            get_logger().error("job_failed", error=str(error))
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            get_logger().error("job_interrupted", error="interrupted; nothing was committed for the client in hand")
            sys.exit(130)

    return wrapped


def _stack_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Makes one decorator of several options."""

    def stack(command: Command) -> Command:
        for option in options:
            command = option(command)
        return command

    return stack


def _seconds_option(name: str, default: float, help_text: str, *, least: float = 0) -> Callable[[Command], Command]:
    return click.option(name, type=click.FloatRange(min=least), default=default, show_default=True, help=help_text)


_client_option = click.option("--client", "ids", multiple=True, metavar="ID", help="A client; may be repeated.")
_SHARED_OPTIONS = (
    click.option("--time-zone", help="The zone of moments without an offset, instead of the client's own."),
    _seconds_option("--connect-timeout", 60.0, "Seconds to wait for the server."),
    _seconds_option("--source-timeout", 30.0, "Seconds to wait for a locked SQLite file."),
)


_client_options = _stack_options(
    _client_option,
    click.option("--all", "everyone", is_flag=True, help="All clients found in CLIENTS_DIR."),
)


_source_options = _stack_options(
    click.option(
        "--sqlite-path",
        type=click.Path(path_type=Path),
        help="Any one SQLite file instead of a client's.",
    ),
    click.option(
        "--postgres-url",
        envvar="POSTGRES_URL",
        help="Where it goes; the password comes from PGPASSWORD or PGPASSFILE.",
    ),
    *_SHARED_OPTIONS,
)


_jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), help="Clients at a time; as many as there are processors if left out."
)


def _orphans_option(default: Orphans) -> Callable[[Command], Command]:
    return click.option(
        "--orphans",
        type=click.Choice([str(choice) for choice in Orphans]),
        default=str(default),
        show_default=True,
        help="What happens to rows whose foreign key points nowhere.",
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="migrator")
@click.option("-v", "--verbose", is_flag=True, help="Log debug events too.")
def main(verbose: bool) -> None:
    """Moves SQLite databases into PostgreSQL, one commit per client, and proves that no row was lost."""
    configure_logs(verbose=verbose)


@main.command()
@_client_options
@_source_options
@click.option("--dry-run", is_flag=True, help="Load and check everything, then roll it back.")
@click.option("--batch-size", type=click.IntRange(min=1), default=10_000, show_default=True, help="Rows in one COPY.")
@_orphans_option(Orphans.KEEP)
@click.option("--max-rejected", type=click.IntRange(min=0), help="Fail the client above this many rejected rows.")
@click.option(
    "--widen-above",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of unfit values above which a new column gets a wider type.",
)
@click.option("--add-columns", is_flag=True, help="Add columns that an existing table lacks.")
@_seconds_option("--lock-timeout", 10.0, "Seconds to wait for another run on the same client.")
@click.option(
    "--accept-rejected",
    is_flag=True,
    help="Answer 0 instead of 3 where rows were rejected, for schedulers that begin again on any other code.",
)
@click.option("--again", is_flag=True, help="Also do clients of which nothing has changed since their last run.")
@_jobs_option
@_catch
def migrate(jobs: int | None, accept_rejected: bool, **arguments: Any) -> None:
    """Load clients into PostgreSQL, verify them and commit.

    With --all, any number of these may run at the same time, on any number of machines: each client is
    claimed in PostgreSQL by one of them.
    """
    settings = load_settings()
    clients = _choose_clients(settings, arguments)
    options = replace(_make_options(settings, arguments), shared=arguments["everyone"])
    _run_clients(clients, options, migrate_client, jobs, accept_rejected=accept_rejected)


@main.command()
@_client_options
@_source_options
@_jobs_option
@_catch
def verify(jobs: int | None, **arguments: Any) -> None:
    """Compare clients with PostgreSQL as both are now; nothing is changed."""
    settings = load_settings()
    clients = _choose_clients(settings, arguments)
    _run_clients(clients, _make_options(settings, arguments), verify_client, jobs)


@main.command("retry-rejected")
@_client_options
@_source_options
@_orphans_option(Orphans.QUARANTINE)
@_catch
def retry_command(**arguments: Any) -> None:
    """Load rejected rows that were mended, or whose cause is gone.

    To mend a row, write it whole into the column "mended" of migrator.rejected_rows.
    """
    settings = load_settings()
    clients = _choose_clients(settings, arguments)
    _run_clients(clients, _make_options(settings, arguments), retry_client)


@main.command()
@_client_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as it is stored.")
@_catch
def report(ids: Sequence[str], everyone: bool, as_json: bool) -> None:
    """Show the latest report of clients."""
    settings = load_settings()
    if not ids and not everyone:
        raise ConfigurationError("name a client with --client ID, or --all")
    chosen = list(ids) or discover_clients(settings)
    reports = [read_latest(settings.reports_dir, client) for client in chosen]
    if as_json:
        for found in reports:
            click.echo(found.model_dump_json(indent=2))
    else:
        from migrator.terminal import make_console, print_reports

        print_reports(reports, make_console(), tables=True)
        _print_notes(reports)
    sys.exit(choose_exit_code(found.exit_code for found in reports))


_move_options = _stack_options(
    _client_option,
    _seconds_option(
        "--healthy-within", 60.0, "Seconds within which a started bot must pass its health check.", least=1
    ),
    _seconds_option("--settled-after", 5.0, "Seconds that a bot without a health check must run without a restart."),
    *_SHARED_OPTIONS,
)


@main.command()
@_move_options
@click.option("--refuse-rejected", is_flag=True, help="Leave the bot where it is if rows would be quarantined.")
@_catch
def cutover(refuse_rejected: bool, **arguments: Any) -> None:
    """Move running bots to PostgreSQL: stop, load the rest, verify, switch .env, start, wait until healthy."""
    settings = load_settings()
    if not arguments["ids"]:
        raise ConfigurationError("name the client with --client ID; a cutover stops its bot for a moment")
    moves = _make_moves(settings, arguments, accept_rejected=not refuse_rejected)
    _finish_moves([asyncio.run(cut_over(move)) for move in moves], settings)


@main.command()
@_move_options
@click.option(
    "--discard-new", is_flag=True, help="Back to the file as it was; what came since stays in PostgreSQL alone."
)
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal and no client is named.")
@_catch
def rollback(discard_new: bool, yes: bool, **arguments: Any) -> None:
    """Move bots back to SQLite with everything that was booked in between."""
    settings = load_settings()
    arguments["ids"] = arguments["ids"] or [_ask_client(settings, yes=yes)]
    moves = _make_moves(settings, arguments)
    _finish_moves([asyncio.run(roll_back(move, discard_new=discard_new)) for move in moves], settings)


def _ask_client(settings: Settings, *, yes: bool) -> str:
    """Lists what can be rolled back and asks which; it never guesses."""
    found = [c for c in discover_clients(settings) if read_state(settings, c).side == "postgresql"]
    if not found:
        raise ConfigurationError("no client is on PostgreSQL; there is nothing to roll back")
    listed = "; ".join(f"{c} (since {read_state(settings, c).changed_at})" for c in found)
    if yes and len(found) == 1:
        return found[0]
    if yes or not sys.stdin.isatty():
        raise ConfigurationError(
            f"can be rolled back: {listed}. Name one with --client ID (make rollback CLIENT=ID)"
            + ("" if yes else ", or give --yes if it is the only one")
        )
    click.echo(f"Can be rolled back: {listed}")
    return str(click.prompt("Which one", type=click.Choice(found)))


@main.command("purge")
@_move_options
@click.option("--yes", is_flag=True, help="Really drop the tables.")
@_catch
def purge_command(yes: bool, **arguments: Any) -> None:
    """Drop clients' tables from PostgreSQL after a rollback."""
    settings = load_settings()
    if not arguments["ids"]:
        raise ConfigurationError("name the client with --client ID")
    if not yes:
        raise ConfigurationError("this drops all of the client's tables in PostgreSQL; say so with --yes")
    for move in _make_moves(settings, arguments):
        tables = asyncio.run(purge(move))
        get_logger().info("client_purged", client=move.client.id, tables=tables)


@main.command()
@_catch
def status() -> None:
    """Show on which side each client is, its last run, its rows and its backup."""
    from migrator.terminal import make_console, print_status

    settings = load_settings()
    clients = discover_clients(settings)
    print_status([describe_client(settings, c, find_latest(settings.reports_dir, c)) for c in clients], make_console())


def _make_moves(settings: Settings, arguments: dict[str, Any], *, accept_rejected: bool = True) -> list[Move]:
    patience = Patience(healthy=arguments["healthy_within"], settled=arguments["settled_after"])
    return [
        Move(client, settings, _make_options(settings, arguments), patience, accept_rejected=accept_rejected)
        for client in select_clients(settings, arguments["ids"])
    ]


def _publish_outcome(reports_dir: Path, remaining: Sequence[str] = ()) -> None:
    latest, unreadable = list_latest(reports_dir)
    page = publish_fleet(reports_dir, latest, unreadable, remaining)
    metrics = publish_metrics(reports_dir, latest)
    get_logger().info("fleet_reported", page=str(page), metrics=str(metrics))


def _finish_moves(reports: Sequence[Report], settings: Settings) -> None:
    _publish_outcome(settings.reports_dir)
    code = choose_exit_code(found.exit_code for found in reports)
    get_logger().info("job_finished", clients=len(reports), exit_code=int(code))
    sys.exit(int(code))


def _print_notes(reports: Sequence[Report]) -> None:
    for found in reports:
        for note in found.notes:
            click.echo(f"{found.client}: {note}")


def _choose_clients(settings: Settings, arguments: dict[str, Any]) -> list[Client]:
    path, url = arguments["sqlite_path"], arguments["postgres_url"]
    ids, everyone = arguments["ids"], arguments["everyone"]
    if path is not None:
        if ids or everyone:
            raise ConfigurationError("--sqlite-path takes the place of --client and --all; give one of them")
        if url is None:
            raise ConfigurationError(
                "--sqlite-path needs --postgres-url postgresql://role@host/database, or POSTGRES_URL"
            )
        source = click.get_current_context().get_parameter_source("postgres_url")
        database = parse_url(url, from_argument=source is ParameterSource.COMMANDLINE)
        if not path.is_file():
            raise ConfigurationError(f"{path} does not exist")
        return [Client(id=path.stem, sqlite_path=path, database=database)]
    if ids and everyone:
        raise ConfigurationError("--client and --all exclude each other")
    if not ids and not everyone:
        raise ConfigurationError("name a client with --client ID, or --all, or give --sqlite-path and --postgres-url")
    return select_clients(settings, ids or discover_clients(settings))


def _make_options(settings: Settings, arguments: dict[str, Any]) -> JobOptions:
    zone = parse_zone(arguments["time_zone"], "--time-zone") if arguments["time_zone"] else None
    load = LoadOptions(
        batch_size=arguments.get("batch_size", 10_000),
        widen_above=arguments.get("widen_above", 0.05),
        max_rejected=arguments.get("max_rejected"),
        orphans=Orphans(arguments.get("orphans", "keep")),
    )
    return JobOptions(
        load=load,
        work_dir=settings.backups_dir / ".work",
        reports_dir=settings.reports_dir,
        dry_run=arguments.get("dry_run", False),
        add_columns=arguments.get("add_columns", False),
        lock_timeout=arguments.get("lock_timeout", 10.0),
        again=arguments.get("again", False),
        connect_timeout=arguments["connect_timeout"],
        source_timeout=arguments["source_timeout"],
        zone=zone,
    )


def _draw_bars(clients: int) -> "ProgressBars":
    from migrator.terminal import ProgressBars, make_console

    return ProgressBars(make_console(), clients)


def _run_clients(
    clients: Sequence[Client],
    options: JobOptions,
    command: Callable[..., Any],
    jobs: int | None = None,
    *,
    accept_rejected: bool = False,
) -> None:
    chosen = min(jobs, len(clients)) if jobs else count_jobs(len(clients))
    bars = _draw_bars(len(clients)) if sys.stdout.isatty() else None
    with bars or nullcontext():
        if len(clients) > 1 or options.shared:
            result = run_fleet(clients, options, command, chosen, bars)
        else:
            report = asyncio.run(command(clients[0], options, bars or ProgressEvents()))
            result = FleetResult((report,), ())
    _publish_outcome(options.reports_dir, result.remaining)
    codes = [found.exit_code for found in result.reports]
    code = choose_exit_code([*codes, *([ExitCode.FAILED] if result.remaining else [])])
    if accept_rejected and code is ExitCode.REJECTED_ROWS:
        code = ExitCode.OK
    if bars:
        bars.print_reports(result.reports)
    get_logger().info("job_finished", clients=len(result.reports), exit_code=int(code))
    sys.exit(int(code))
