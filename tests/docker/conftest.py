"""A copy of the project as from a fresh clone, run with the real Docker Engine."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException

from bench.samples import write_fleet

ROOT = Path(__file__).resolve().parent.parent.parent
_COPIED = (
    "Dockerfile", ".dockerignore", ".gitignore", "compose.yaml", "docker-compose.postgresql.yml",
    "docker-compose.migrate.yml", "Makefile", "requirements.lock", "requirements-cutover.lock", "initdb", "migrator", "deploy", "secrets/.gitignore",
)  # fmt: skip


def _find_reason() -> str | None:
    """Says why the stack cannot be driven here, or nothing."""
    try:
        docker.from_env().ping()
    except DockerException as error:
        return f"no Docker Engine answers here ({str(error)[:120]})"
    compose = subprocess.run(["docker", "compose", "version"], check=False, capture_output=True)
    return None if compose.returncode == 0 else "the docker command has no Compose v2"


_REASON = _find_reason()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/docker" in str(item.path):
            item.add_marker(pytest.mark.docker)
            if _REASON:
                item.add_marker(pytest.mark.skip(reason=_REASON))


class Stack:
    """The project's own files in a folder, with Compose, make and psql at hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.environment = {**os.environ, "POSTGRES_PORT": str(port), "COMPOSE_PROGRESS": "plain"}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **environment},
            timeout=600,
        )

    def compose(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("docker", "compose", *arguments)

    def psql(self, database: str, sql: str) -> str:
        """Runs SQL with psql in the server's container, as the admin."""
        done = self.compose("exec", "-T", "postgres", "psql", "-XqAt", "-U", "booking_admin", "-d", database, "-c", sql)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def copy_project(folder: Path) -> None:
    for name in _COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for name in ("clients", "reports", "backups", "secrets/clients"):
        (folder / name).mkdir(parents=True, exist_ok=True)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    copy_project(folder)
    write_fleet(folder / "clients", rows=2000)
    running = Stack(folder)
    yield running
    running.compose("--profile", "migrate", "--profile", "dev", "down", "--volumes", "--timeout", "5")
