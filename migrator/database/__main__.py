"""``python -m migrator.database`` is a health check: exit code 0 where the bot's database answers."""

import asyncio
import sys

from migrator.database import DatabaseError, load_database_settings, open_database
from migrator.errors import ConfigurationError


async def check() -> int:
    """Opens one connection to the database of the environment and asks for an answer."""
    try:
        settings = load_database_settings(db_pool_min_size=1, db_pool_max_size=1)
        async with await open_database(settings) as database:
            health = await database.check_health()
    except (ConfigurationError, DatabaseError) as error:
        sys.stderr.write(f"unhealthy: {error}\n")
        return 1
    sys.stderr.write(f"{'healthy' if health.ok else 'unhealthy'}: {health.detail or health.database}\n")
    return 0 if health.ok else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(check()))
