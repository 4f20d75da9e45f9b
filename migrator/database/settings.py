"""The bot's database settings, from the environment, refused by name where they cannot be used."""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from migrator.errors import ConfigurationError
from migrator.logs import get_logger

_ACCEPTED = {
    "DB_TYPE": "sqlite or postgresql",
    "DATABASE_URL": "postgresql://role:password@host:5432/database",
    "DATABASE_PATH": "the path of an SQLite file",
    "DB_POOL_MIN_SIZE": "a whole number from 1, at most DB_POOL_MAX_SIZE",
    "DB_POOL_MAX_SIZE": "a whole number from 1",
    "DB_POOL_TIMEOUT": "seconds, more than 0",
    "DB_COMMAND_TIMEOUT": "seconds, more than 0",
    "DB_SQLITE_FOREIGN_KEYS": "true or false",
}


class DatabaseSettings(BaseSettings):
    """Which database the bot uses and how; each field is the variable of the same name in upper case.

    Attributes:
        db_type: which of the two databases.
        database_url: where PostgreSQL is, with the password.
        database_path: where the SQLite file is.
        db_pool_min_size: connections that are kept open.
        db_pool_max_size: connections at most.
        db_pool_timeout: how long, in seconds, a free connection or a locked file is waited for.
        db_command_timeout: how long, in seconds, a statement may take.
        db_sqlite_foreign_keys: whether SQLite enforces foreign keys, as PostgreSQL always does. Off,
            as the bots have had it: old files hold rows and declarations that break them.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    db_type: Literal["sqlite", "postgresql"] = "sqlite"
    database_url: SecretStr | None = None
    database_path: Path | None = None
    db_pool_min_size: int = Field(default=5, ge=1)
    db_pool_max_size: int = Field(default=20, ge=1)
    db_pool_timeout: float = Field(default=30.0, gt=0)
    db_command_timeout: float = Field(default=60.0, gt=0)
    db_sqlite_foreign_keys: bool = False

    @model_validator(mode="after")
    def _check_together(self) -> "DatabaseSettings":
        if self.db_pool_min_size > self.db_pool_max_size:
            raise ValueError(
                f"DB_POOL_MIN_SIZE={self.db_pool_min_size} is more than DB_POOL_MAX_SIZE={self.db_pool_max_size}"
            )
        if self.db_type == "sqlite" and self.database_path is None:
            raise ValueError("DATABASE_PATH is not set, and DB_TYPE is sqlite")
        if self.db_type == "postgresql":
            _check_url(self.database_url)
        return self

    def describe(self) -> dict[str, Any]:
        """Gives the settings for a log, without the password."""
        shown: dict[str, Any] = {"db_type": self.db_type}
        if self.database_url is not None and self.db_type == "postgresql":
            shown["database_url"] = mask_url(self.database_url.get_secret_value())
        else:
            shown["database_path"] = str(self.database_path)
        names = ("db_pool_min_size", "db_pool_max_size", "db_pool_timeout", "db_command_timeout")
        return shown | {name: getattr(self, name) for name in names}


def _check_url(url: SecretStr | None) -> None:
    if url is None:
        raise ValueError("DATABASE_URL is not set, and DB_TYPE is postgresql")
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.path.strip("/"):
        raise ValueError("DATABASE_URL does not look like postgresql://role:password@host:5432/database")


def mask_url(url: str) -> str:
    """Takes the password out of a URL.

    >>> mask_url("postgresql://me:secret@host:5432/db")
    'postgresql://me:***@host:5432/db'
    """
    parts = urlsplit(url)
    if not parts.password:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))


def load_database_settings(**values: Any) -> DatabaseSettings:
    """Reads the settings from the environment and logs them, the password masked.

    Args:
        **values: settings that take precedence over the environment.

    Raises:
        ConfigurationError: a value cannot be used; the message names the variable and what it takes.
    """
    try:
        settings = DatabaseSettings(**values)
    except ValidationError as error:
        raise ConfigurationError(_describe(error)) from None
    get_logger().info("database_settings", **settings.describe())
    return settings


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=True)[0]
    if not first["loc"]:
        text = str(first["msg"]).removeprefix("Value error, ")
        name = text.split("=")[0].split(" ")[0]
        return f"{text}. {name} takes: {_ACCEPTED.get(name, 'another value')}"
    name = str(first["loc"][0]).upper()
    shown = "***" if name == "DATABASE_URL" else repr(first["input"])
    return f"{name}={shown} cannot be used. {name} takes: {_ACCEPTED.get(name, first['msg'])}"
