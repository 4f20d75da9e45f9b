"""The bot's container, through the Docker SDK: found, stopped within its grace period, started, watched."""

import time
from dataclasses import dataclass
from typing import Any

from migrator.errors import ConfigurationError, MigratorError

NETWORK = "booking-network"
LABEL = "booking.client"
_POLL_SECONDS = 0.2
_LOG_LINES = 20


class ContainerError(MigratorError):
    """The bot's container does not do what it should."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a started bot is waited for, in seconds.

    ``healthy`` is for a container with a health check; one without must run for ``settled`` seconds
    without a restart.
    """

    healthy: float = 60.0
    settled: float = 5.0


def name_container(client: str) -> str:
    """Names a client's container.

    >>> name_container("client_003")
    'bot-client-003'
    """
    return "bot-" + client.replace("_", "-")


class Bot:
    """The container that runs a client's bot."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self._raw.name)

    def is_running(self) -> bool:
        """Whether it runs now."""
        self._raw.reload()
        return bool(self._raw.status == "running")

    def fixes_database(self) -> bool:
        """Whether DB_TYPE stands in the container's own environment, where no file can change it."""
        environment = self._raw.attrs["Config"].get("Env") or []
        return any(line.startswith("DB_TYPE=") for line in environment)

    def is_on_network(self) -> bool:
        """Whether it can reach the server by its name."""
        self._raw.reload()
        return NETWORK in self._raw.attrs["NetworkSettings"]["Networks"]

    def stop(self) -> None:
        """Stops it; the grace period is the container's own, or Docker's ten seconds."""
        grace = self._raw.attrs["Config"].get("StopTimeout") or 10
        self._raw.stop(timeout=grace)
        if self.is_running():
            raise ContainerError(f"container {self.name} still runs after it was stopped")

    def start(self) -> None:
        """Starts it, if it does not run."""
        if not self.is_running():
            self._raw.start()

    def await_healthy(self, patience: Patience) -> None:
        """Waits until it is healthy.

        Raises:
            ContainerError: it stopped, turned unhealthy or took too long; its last lines are shown.
        """
        self._raw.reload()
        restarts = self._raw.attrs["RestartCount"]
        checked = "Health" in self._raw.attrs["State"]
        deadline = time.monotonic() + (patience.healthy if checked else patience.settled)
        while True:
            self._raw.reload()
            state = self._raw.attrs["State"]
            if not state["Running"] or self._raw.attrs["RestartCount"] != restarts:
                raise ContainerError(self._describe(f"ended with exit code {state['ExitCode']}"))
            status = state.get("Health", {}).get("Status")
            if status == "healthy":
                return
            if status == "unhealthy":
                raise ContainerError(self._describe("is unhealthy"))
            if time.monotonic() > deadline:
                if not checked:
                    return
                raise ContainerError(self._describe(f"is not healthy after {patience.healthy:g} s"))
            time.sleep(_POLL_SECONDS)

    def _describe(self, what: str) -> str:
        lines = self._raw.logs(tail=_LOG_LINES).decode("utf-8", "replace").strip().splitlines()
        return f"container {self.name} {what}. Its last lines: " + " | ".join(lines or ["(none)"])


def find_bot(client: str) -> Bot:
    """Finds a client's container, by its name or by its label.

    Raises:
        ConfigurationError: no engine answers, or there is no such container, or several.
    """
    try:
        import docker
        from docker.errors import DockerException
    except ImportError:
        raise ConfigurationError(
            "the package docker is not installed: use the cutover service or 'make setup'"
        ) from None
    name = name_container(client)
    try:
        engine = docker.from_env(timeout=300)
        found = engine.containers.list(all=True, filters={"label": f"{LABEL}={client}"})
        found += [c for c in engine.containers.list(all=True, filters={"name": f"^/{name}$"}) if c not in found]
    except DockerException as error:
        raise ConfigurationError(
            f"no Docker Engine answers ({error}). The cutover service mounts its socket; on the host, "
            f"run 'make cutover HOST=1' as a user who may use Docker"
        ) from error
    if not found:
        raise ConfigurationError(f"{client}: no container {name}, and none with the label {LABEL}={client}")
    if len(found) > 1:
        names = ", ".join(sorted(str(c.name) for c in found))
        raise ConfigurationError(f"{client}: several containers could be its bot: {names}")
    return Bot(found[0])
