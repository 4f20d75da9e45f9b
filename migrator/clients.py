"""Which clients there are: their SQLite files, their databases and their passwords."""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from migrator.errors import ConfigurationError
from migrator.settings import Settings

DATABASE_FILE = "bookings.db"
CLIENT_ID = re.compile(r"[a-z][a-z0-9_]{0,47}")


@dataclass(frozen=True, slots=True)
class Database:
    """One PostgreSQL database and the role that owns the client's tables in it."""

    host: str
    port: int
    name: str
    role: str
    password: SecretStr | None

    @property
    def address(self) -> str:
        """The database as a URL without its password, fit for messages and reports."""
        return f"postgresql://{self.role}@{self.host}:{self.port}/{self.name}"


@dataclass(frozen=True, slots=True)
class Client:
    """One client: where its rows are now and where they are to go.

    ``problem`` is set where the client cannot be worked on at all, so that it fails by itself and
    not the others with it.
    """

    id: str
    sqlite_path: Path
    database: Database
    problem: str | None = None


def name_database(client: str) -> str:
    """Names the client's database.

    >>> name_database("client_001")
    'client_001_db'
    """
    return f"{client}_db"


def name_role(client: str) -> str:
    """Names the client's role.

    >>> name_role("client_001")
    'client_001_user'
    """
    return f"{client}_user"


def discover_clients(settings: Settings) -> list[str]:
    """Lists the ids of all clients: the folders in ``CLIENTS_DIR`` that hold a database file.

    A folder that this process may not look into counts as a client, so that it fails by name
    later instead of being passed over in silence.

    Raises:
        ConfigurationError: the folder is missing or holds no client.
    """
    folder = settings.clients_dir
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder} is not a folder: set CLIENTS_DIR to the folder that holds one folder per "
            f"client, each with a {DATABASE_FILE}"
        )
    found = [
        entry.name
        for entry in sorted(folder.iterdir())
        if CLIENT_ID.fullmatch(entry.name) and entry.is_dir() and _may_hold_database(entry)
    ]
    if not found:
        raise ConfigurationError(f"no client in {folder}: expected <client>/{DATABASE_FILE}")
    return found


def _may_hold_database(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if not os.access(folder, os.X_OK):
        return True
    return (folder / DATABASE_FILE).exists()


def select_clients(settings: Settings, ids: Sequence[str]) -> list[Client]:
    """Turns client ids into clients, each with its file and the address of its database.

    Args:
        settings: where files, secrets and the server are.
        ids: the clients asked for; repeated ids count once.

    Raises:
        ConfigurationError: an id is not a client's, or has no database file.
    """
    return [_select_client(settings, client) for client in dict.fromkeys(ids)]


def _select_client(settings: Settings, client: str) -> Client:
    if not CLIENT_ID.fullmatch(client):
        raise ConfigurationError(
            f"{client!r} cannot be a client id: lower-case letters, digits and _, such as client_001"
        )
    folder = settings.clients_dir / client
    path = folder / DATABASE_FILE
    if not _may_hold_database(folder):
        raise ConfigurationError(
            f"{client}: {path} does not exist. Clients are the folders of CLIENTS_DIR "
            f"({settings.clients_dir}) that hold a {DATABASE_FILE}"
        )
    password, problem = None, None
    try:
        password = _read_password(settings, client)
    except ConfigurationError as error:
        problem = str(error)
    return Client(
        id=client,
        sqlite_path=path,
        database=Database(
            host=settings.postgres_host,
            port=settings.postgres_port,
            name=name_database(client),
            role=name_role(client),
            password=password,
        ),
        problem=problem,
    )


def _read_password(settings: Settings, client: str) -> SecretStr:
    variable = f"{client.upper()}_PASSWORD"
    if value := os.environ.get(variable):
        return SecretStr(value)
    path = settings.secrets_dir / f"{client}_password"
    try:
        password = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ConfigurationError(
            f"{client}: no password. Expected the file {path} (SECRETS_DIR) or the variable "
            f"{variable}; 'make secrets' makes the files"
        ) from None
    except PermissionError:
        raise ConfigurationError(f"{client}: {path} cannot be read. {explain_owner(path)}") from None
    if not password:
        raise ConfigurationError(f"{client}: {path} is empty; 'make secrets' fills it")
    return SecretStr(password)


def explain_owner(path: Path) -> str:
    """Says whose an unreadable file is and which setting lets the job read it.

    Returns:
        A sentence or two for an error message.
    """
    mine = f"this job runs as uid {os.geteuid()}"
    for place in (path, *path.parents):
        try:
            found = place.stat()
        except OSError:
            continue
        if os.access(place, os.R_OK | (os.X_OK if place.is_dir() else 0)):
            continue
        mode = stat.filemode(found.st_mode)
        return (
            f"{place} belongs to uid {found.st_uid}, gid {found.st_gid} ({mode}) and {mine}: "
            f"set MIGRATOR_UID={found.st_uid} and MIGRATOR_GID={found.st_gid} in .env, "
            f"then run 'make secrets' again so that the job can read its passwords too"
        )
    return f"It is not readable: {mine}"


def parse_url(url: str, *, from_argument: bool) -> Database:
    """Reads a ``postgresql://`` URL; the password comes from it, from PGPASSWORD or PGPASSFILE.

    Args:
        url: ``postgresql://role@host:port/database``.
        from_argument: the URL stood on the command line, where a password would be visible to
            every user of the machine (``ps``) and is therefore refused.

    Raises:
        ConfigurationError: the URL lacks a part, or carries a password where it must not.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
        raise ConfigurationError("--postgres-url must look like postgresql://role@host:5432/database")
    if parts.password and from_argument:
        raise ConfigurationError(
            "--postgres-url holds a password, which every user of this machine can see. Leave it "
            "out and set PGPASSWORD or PGPASSFILE, or put the whole URL into POSTGRES_URL"
        )
    name = unquote(parts.path.lstrip("/"))
    if not parts.username or not name:
        raise ConfigurationError("--postgres-url needs a role and a database: postgresql://role@host/database")
    password = unquote(parts.password) if parts.password else os.environ.get("PGPASSWORD")
    return Database(
        host=parts.hostname,
        port=parts.port or 5432,
        name=name,
        role=unquote(parts.username),
        password=SecretStr(password) if password else None,
    )
