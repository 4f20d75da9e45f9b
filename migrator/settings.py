"""What the environment says: folders and the server, by the names in ``.env.example``."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from migrator.errors import ConfigurationError

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseModel):
    """The job's settings; each field is read from the variable of the same name in upper case, unless that is empty.

    Nothing here has to be set for the usual case, in which the folders lie beside the compose file.
    """

    model_config = ConfigDict(frozen=True)

    clients_dir: Path = Path("clients")
    reports_dir: Path = Path("reports")
    backups_dir: Path = Path("backups")
    secrets_dir: Path = Path("secrets/clients")
    postgres_host: str = "127.0.0.1"
    postgres_port: Port = 5432
    bot_postgres_host: str = "postgres-shared"
    bot_postgres_port: Port = 5432


def load_settings() -> Settings:
    """Reads the settings from the environment.

    Raises:
        ConfigurationError: a variable has a value that cannot be used; the message names it.
    """
    values = {name: os.environ.get(name.upper()) for name in Settings.model_fields}
    try:
        return Settings.model_validate({name: value for name, value in values.items() if value})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        raise ConfigurationError(
            f"{name}={first['input']!r} cannot be used: {first['msg']}. Set {name} in the environment or in .env."
        ) from error
