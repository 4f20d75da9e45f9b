"""Which clients there are, and how their passwords are found."""

from pathlib import Path

import pytest

from migrator.clients import discover_clients, parse_url, select_clients
from migrator.errors import ConfigurationError
from migrator.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for client in ("client_001", "client_002"):
        (tmp_path / "clients" / client).mkdir(parents=True)
        (tmp_path / "clients" / client / "bookings.db").touch()
    (tmp_path / "clients" / "notes").mkdir()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "client_001_password").write_text("a b\n")
    return Settings(clients_dir=tmp_path / "clients", secrets_dir=tmp_path / "secrets")


def test_clients_are_the_folders_with_a_database(settings: Settings) -> None:
    assert discover_clients(settings) == ["client_001", "client_002"]


def test_client_has_its_database_role_and_password(settings: Settings) -> None:
    (client,) = select_clients(settings, ["client_001", "client_001"])
    assert (client.database.name, client.database.role) == ("client_001_db", "client_001_user")
    assert client.database.password is not None
    assert client.database.password.get_secret_value() == "a b"
    assert "a b" not in repr(client)


def test_password_from_the_environment(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_002_PASSWORD", "from outside")
    (client,) = select_clients(settings, ["client_002"])
    assert client.database.password is not None
    assert client.database.password.get_secret_value() == "from outside"


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ("client_009", "client_009: .*bookings.db does not exist"),
        ("Robert'); DROP", "cannot be a client id"),
        ("../etc", "cannot be a client id"),
    ],
)
def test_client_that_cannot_be_selected(settings: Settings, client: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        select_clients(settings, [client])


def test_client_without_a_password_fails_by_itself(settings: Settings) -> None:
    first, second = select_clients(settings, ["client_001", "client_002"])
    assert first.problem is None
    assert second.problem is not None
    assert "client_002: no password" in second.problem
    assert "make secrets" in second.problem


def test_no_clients(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="CLIENTS_DIR"):
        discover_clients(Settings(clients_dir=tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="no client in"):
        discover_clients(Settings(clients_dir=tmp_path))


def test_url() -> None:
    database = parse_url("postgresql://me%40home:p%2Fw@host:5433/my%20db", from_argument=False)
    assert (database.role, database.host, database.port, database.name) == ("me@home", "host", 5433, "my db")
    assert database.password is not None
    assert database.password.get_secret_value() == "p/w"
    assert "p/w" not in database.address


def test_url_on_the_command_line_holds_no_password() -> None:
    with pytest.raises(ConfigurationError, match="PGPASSWORD or PGPASSFILE"):
        parse_url("postgresql://me:secret@host/db", from_argument=True)


@pytest.mark.parametrize("url", ["mysql://host/db", "postgresql://host/db", "postgresql://me@host", "nonsense"])
def test_url_that_lacks_something(url: str) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://role@host"):
        parse_url(url, from_argument=True)
