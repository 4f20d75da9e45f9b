"""The longer SQL, one query a file, taken by name."""

from functools import cache
from importlib.resources import files


@cache
def load_query(name: str) -> str:
    """Reads the query that is kept in ``<name>.sql``."""
    return files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
