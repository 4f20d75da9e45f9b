"""Writes client databases as the bots leave them: eleven tables, later ones, old schemas and dirt.

The same seed and row count give the same rows on every machine.
"""

import json
import random
import sqlite3
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path

DATABASE_FILE = "bookings.db"
_FIRST_DAY = date(2024, 1, 1)
_SLOTS = [f"{hour:02d}:{minute:02d}" for hour in range(8, 21) for minute in range(0, 60, 5)]
_NAMES = ["Анна", "Борис", "Olga", "John", "Екатерина", "Пётр", "Mary", "Ольга", "Zoë", "Ильдар 🙂"]
_SERVICES = [
    ("Стрижка", "Мужская и женская", 60, "1 500 ₽"),
    ("Маникюр", "С покрытием «гель»", 90, "1500"),
    ("Massage", "Back & neck", 45, ""),
    ("Консультация", None, 30, "от 2 000 ₽"),
    ("Colouring", 'It\'s "new"', 120, None),
]

_TABLES = """
CREATE TABLE users (user_id INTEGER PRIMARY KEY, first_seen TEXT NOT NULL);
CREATE TABLE services (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, description TEXT,
    duration_minutes INTEGER NOT NULL, price TEXT, color TEXT DEFAULT '#4CAF50',
    is_active BOOLEAN DEFAULT 1, display_order INTEGER DEFAULT 0,
    created_at TEXT DEFAULT CURRENT_TIMESTAMP{service_columns}
);
CREATE TABLE admins (
    user_id INTEGER PRIMARY KEY, username TEXT, added_by INTEGER, added_at TEXT NOT NULL,
    role TEXT DEFAULT 'moderator'
);
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE text_templates (
    id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL, text_ru TEXT NOT NULL, text_en TEXT,
    category TEXT DEFAULT 'general', description TEXT, is_custom BOOLEAN DEFAULT 0,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_by INTEGER,
    FOREIGN KEY (updated_by) REFERENCES users(id)
);
CREATE TABLE blocked_slots (
    id INTEGER PRIMARY KEY AUTOINCREMENT, date TEXT NOT NULL, time TEXT NOT NULL, reason TEXT,
    blocked_by INTEGER NOT NULL, blocked_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, UNIQUE(date, time)
);
CREATE TABLE bookings (
    id INTEGER PRIMARY KEY AUTOINCREMENT, date TEXT NOT NULL, time TEXT NOT NULL, user_id INTEGER NOT NULL,
    username TEXT, created_at TEXT NOT NULL{booking_columns}, UNIQUE(date, time){booking_constraints}
);
CREATE TABLE booking_history (
    id INTEGER PRIMARY KEY AUTOINCREMENT, booking_id INTEGER NOT NULL, action TEXT NOT NULL,
    changed_by INTEGER NOT NULL, changed_by_type TEXT NOT NULL, old_date TEXT, old_time TEXT, new_date TEXT,
    new_time TEXT, old_service_id INTEGER, new_service_id INTEGER, reason TEXT,
    changed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP{history_constraints}
);
CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT, admin_id INTEGER NOT NULL, action TEXT NOT NULL, target_id TEXT,
    details TEXT, timestamp TEXT NOT NULL
);
CREATE TABLE broadcast_messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, admin_id INTEGER NOT NULL, text TEXT NOT NULL,
    sent_count INTEGER DEFAULT 0, failed_count INTEGER DEFAULT 0, created_at TEXT NOT NULL
);
CREATE TABLE feedback (
    id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL, booking_id INTEGER NOT NULL,
    rating INTEGER NOT NULL, timestamp TEXT NOT NULL
);
CREATE TABLE analytics (id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER, event TEXT, data TEXT, timestamp TEXT);
CREATE TABLE admin_sessions (user_id INTEGER PRIMARY KEY, message_id INTEGER, updated_at TIMESTAMP);
CREATE TABLE schedule_settings (id INTEGER PRIMARY KEY, setting_key TEXT UNIQUE, setting_value TEXT);
CREATE TABLE work_schedule (
    weekday INTEGER PRIMARY KEY, is_working INTEGER, shift1_start TEXT, shift1_end TEXT, shift2_start TEXT, shift2_end TEXT
);
CREATE TABLE blocked_date_ranges (
    id INTEGER PRIMARY KEY AUTOINCREMENT, start_date TEXT NOT NULL, end_date TEXT NOT NULL, reason TEXT
);
CREATE TABLE text_changes_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT, template_key TEXT, old_text TEXT, new_text TEXT, changed_by INTEGER, changed_at TEXT
);
CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, description TEXT, applied_at TEXT);
CREATE INDEX idx_bookings_date_time ON bookings(date, time);
CREATE INDEX idx_bookings_user ON bookings(user_id);
CREATE UNIQUE INDEX idx_user_active_bookings ON bookings(user_id, date, time);
CREATE INDEX idx_history_booking ON booking_history(booking_id);
CREATE INDEX idx_audit_timestamp ON audit_log(timestamp);
"""


@dataclass(frozen=True, slots=True)
class Age:
    """How old the bot is that wrote a database."""

    has_services: bool
    enforces_services: bool
    has_history_key: bool
    has_late_tables: bool


NEW = Age(True, True, True, True)
MIDDLE = Age(True, False, False, True)
OLD = Age(False, False, False, False)
_LATE_TABLES = (
    "broadcast_messages",
    "analytics",
    "admin_sessions",
    "schedule_settings",
    "work_schedule",
    "blocked_date_ranges",
    "text_changes_log",
)


def write_fleet(folder: Path, *, seed: int = 1, rows: int = 3000, clients: int = 3) -> list[str]:
    """Writes ``clients`` clients, the first three of them with bots of three ages.

    Args:
        folder: becomes CLIENTS_DIR.
        seed: the same seed gives the same rows.
        rows: about how many rows a client has in all its tables.
        clients: how many.

    Returns:
        The clients' ids.
    """
    ids = [f"client_{number:03d}" for number in range(1, clients + 1)]
    for number, client in enumerate(ids):
        path = folder / client / DATABASE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        age = (NEW, OLD, MIDDLE)[number % 3]
        write_client(path, seed=seed + number, rows=rows, age=age, dirty=number % 3 == 2)
    return ids


def write_client(path: Path, *, seed: int, rows: int, age: Age = NEW, dirty: bool = False) -> None:
    """Writes one client's database.

    Args:
        path: the file; one that exists is replaced.
        seed: the same seed gives the same rows.
        rows: about how many rows in all tables.
        age: which columns and tables the bot knew.
        dirty: some rows hold what no PostgreSQL type takes: a day that does not exist, U+0000.
    """
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.executescript(_render_tables(age))
    writer = _Writer(connection, random.Random(seed), age)
    writer.write(rows)
    if dirty:
        writer.soil()
    if not age.has_late_tables:
        for table in _LATE_TABLES:
            connection.execute(f"DROP TABLE {table}")
    connection.commit()
    connection.close()


def _render_tables(age: Age) -> str:
    service = ", service_id INTEGER DEFAULT 1, duration_minutes INTEGER DEFAULT 60" if age.has_services else ""
    if age.enforces_services:
        service = ", service_id INTEGER NOT NULL DEFAULT 1, duration_minutes INTEGER DEFAULT 60"
    return _TABLES.format(
        service_columns=", slot_interval_minutes INTEGER DEFAULT 60 NOT NULL" if age.has_services else "",
        booking_columns=service,
        booking_constraints=", FOREIGN KEY (service_id) REFERENCES services(id) ON DELETE RESTRICT ON UPDATE CASCADE"
        if age.enforces_services
        else "",
        history_constraints=", FOREIGN KEY(booking_id) REFERENCES bookings(id) ON DELETE CASCADE"
        if age.has_history_key
        else "",
    )


class _Writer:
    def __init__(self, connection: sqlite3.Connection, chance: random.Random, age: Age) -> None:
        self._connection = connection
        self._chance = chance
        self._age = age
        self._people: list[int] = []

    def write(self, rows: int) -> None:
        bookings = max(rows * 4 // 10, 5)
        self._write_people(max(rows // 10, 5))
        self._write_services()
        self._write_texts()
        self._write_bookings(bookings)
        self._write_history(max(rows * 3 // 10, 5), bookings)
        self._write_logs(max(rows // 20, 5), bookings)
        self._write_schedule()

    def _insert(self, table: str, columns: str, rows: list[tuple[object, ...]]) -> None:
        marks = ", ".join("?" * len(columns.split(",")))
        self._connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)

    def _moment(self) -> str:
        """Gives a moment in one of the forms that bots of different ages wrote."""
        moment = datetime(2024, 1, 1) + timedelta(seconds=self._chance.randrange(60_000_000))  # noqa: DTZ001
        form = self._chance.randrange(5)
        if form == 0:
            return moment.strftime("%Y-%m-%d %H:%M:%S")
        if form == 1:
            return moment.isoformat()
        if form == 2:
            return moment.replace(microsecond=self._chance.randrange(1_000_000)).isoformat()
        if form == 3:
            return moment.isoformat() + "+03:00"
        return moment.isoformat() + "Z"

    def _person(self) -> int:
        return self._chance.choice(self._people)

    def _write_people(self, count: int) -> None:
        self._people = sorted({self._chance.randrange(10**6, 2**52) for _ in range(count)})
        self._insert("users", "user_id, first_seen", [(person, self._moment()) for person in self._people])
        self._insert(
            "admins",
            "user_id, username, added_by, added_at, role",
            [
                (person, self._chance.choice([*_NAMES, None]), None, self._moment(), "owner")
                for person in self._people[:3]
            ],
        )

    def _write_services(self) -> None:
        self._insert(
            "services",
            "name, description, duration_minutes, price, is_active, created_at",
            [(*service, self._chance.randrange(2), self._moment()) for service in _SERVICES],
        )
        # Its id must not be handed out again.
        self._connection.execute("INSERT INTO services (name, duration_minutes) VALUES ('Удалённая', 10)")
        self._connection.execute("DELETE FROM services WHERE name = 'Удалённая'")

    def _write_texts(self) -> None:
        self._insert(
            "settings",
            "key, value, updated_at",
            [
                ("language", "ru", self._moment()),
                ("greeting", "Привет, 'друг'!", self._moment()),
                ("empty", "", None),
            ],
        )
        self._insert(
            "text_templates",
            "key, text_ru, text_en, is_custom, updated_at, updated_by",
            [
                (
                    f"text_{n}",
                    f"Здравствуйте, {{name}}! №{n}\nСтрока",
                    f"Hello {n}\ttab",
                    n % 2,
                    self._moment(),
                    self._person(),
                )
                for n in range(20)
            ],
        )

    def _write_bookings(self, count: int) -> None:
        places = self._chance.sample(range(max(count * 2, 200)), count + 3)
        rows: list[tuple[object, ...]] = []
        for place in places:
            day = _FIRST_DAY + timedelta(days=place // len(_SLOTS))
            row: tuple[object, ...] = (
                day.isoformat(),
                _SLOTS[place % len(_SLOTS)],
                self._person(),
                self._chance.choice([*_NAMES, None]),
                self._moment(),
            )
            if self._age.has_services:
                row += (self._chance.randrange(1, len(_SERVICES) + 1), self._chance.choice([30, 60, 90]))
            rows.append(row)
        columns = "date, time, user_id, username, created_at"
        if self._age.has_services:
            columns += ", service_id, duration_minutes"
        self._insert("bookings", columns, rows)
        self._connection.execute(f"DELETE FROM bookings WHERE id > {count}")
        self._insert(
            "blocked_slots",
            "date, time, reason, blocked_by, blocked_at",
            [(f"2026-03-{day:02d}", "12:00", "Обед", self._person(), self._moment()) for day in range(1, 29)],
        )

    def _write_history(self, count: int, bookings: int) -> None:
        rows: list[tuple[object, ...]] = [
            (
                # One in twenty speaks of a booking that is gone.
                self._chance.randrange(1, bookings + max(bookings // 20, 2)),
                self._chance.choice(["created", "moved", "cancelled"]),
                self._person(),
                self._chance.choice(["user", "admin"]),
                "2025-01-10" if self._chance.random() < 0.5 else None,
                "10:30",
                "2025-01-11",
                None,
                self._chance.choice([None, "по просьбе", "no show"]),
                self._moment(),
            )
            for _ in range(count)
        ]
        self._insert(
            "booking_history",
            "booking_id, action, changed_by, changed_by_type, old_date, old_time, new_date, new_time, reason, changed_at",
            rows,
        )

    def _write_logs(self, count: int, bookings: int) -> None:
        details = [json.dumps({"ключ": [1, 2.5, None]}, ensure_ascii=False), "free text", None, "{broken"]
        self._insert(
            "audit_log",
            "admin_id, action, target_id, details, timestamp",
            [(self._person(), "edit", str(n), self._chance.choice(details), self._moment()) for n in range(count)],
        )
        self._insert(
            "broadcast_messages",
            "admin_id, text, sent_count, created_at",
            [(self._person(), "Скидки! <b>-20%</b>", n, self._moment()) for n in range(count)],
        )
        self._insert(
            "feedback",
            "user_id, booking_id, rating, timestamp",
            [
                (
                    self._person(),
                    self._chance.randrange(1, bookings + 1),
                    self._chance.randrange(1, 6),
                    self._moment(),
                )
                for _ in range(count)
            ],
        )
        self._insert(
            "analytics",
            "user_id, event, data, timestamp",
            [(self._person(), "open", '{"page": 1}', self._moment()) for _ in range(count)],
        )
        self._insert(
            "text_changes_log",
            "template_key, old_text, new_text, changed_by, changed_at",
            [("text_1", "было", "стало", self._person(), self._moment()) for _ in range(5)],
        )

    def _write_schedule(self) -> None:
        self._insert(
            "admin_sessions",
            "user_id, message_id, updated_at",
            [(p, 7, self._moment()) for p in self._people[:3]],
        )
        self._insert("schedule_settings", "setting_key, setting_value", [("step", "30"), ("lunch", "да")])
        self._insert(
            "work_schedule",
            "weekday, is_working, shift1_start, shift1_end, shift2_start, shift2_end",
            [(day, int(day < 6), "09:00", "13:00", "14:00" if day < 5 else None, None) for day in range(7)],
        )
        self._insert("blocked_date_ranges", "start_date, end_date, reason", [("2026-01-01", "2026-01-08", "Каникулы")])
        self._insert(
            "schema_migrations",
            "version, description, applied_at",
            [(n, f"step {n}", self._moment()) for n in range(1, 6)],
        )

    def soil(self) -> None:
        """Adds values that occur in real files and that no typed column takes."""
        execute = self._connection.execute
        execute("UPDATE blocked_slots SET reason = 'x' || char(0) || 'y' WHERE id = 1")
        execute("UPDATE bookings SET date = '2025-02-30' WHERE id = 3")
        execute("UPDATE audit_log SET timestamp = 'вчера' WHERE id = 2")
        execute("UPDATE booking_history SET changed_at = '' WHERE id = 4")
        execute("UPDATE feedback SET rating = 'пять' WHERE id = 1")
