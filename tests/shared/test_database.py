import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from sqlalchemy import bindparam, func, literal_column, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from stylequeue_shared import database as database_module
from stylequeue_shared import postgresql_engine
from stylequeue_shared.database import OUTAGE, Database, now
from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.models import Counter, Lease, Trash
from tests.tls import speaking_tls


def count(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(Trash)) or 0


def add(database: Database, prefix: str) -> None:
    with database.write() as connection:
        connection.execute(Trash.__table__.insert().values(prefix=prefix))


def test_the_clock_of_the_database_gives_seconds_since_1970(database: Database) -> None:
    with database.read() as connection:
        found = connection.scalar(select(now()))
    assert isinstance(found, float)
    assert abs(found - time.time()) < 5


def test_the_clock_goes_on_inside_a_transaction(database: Database) -> None:
    with database.write() as connection:
        first = connection.scalar(select(now()))
        time.sleep(0.05)
        second = connection.scalar(select(now()))
    assert first is not None
    assert second is not None
    assert 0.01 < second - first < 20


def test_a_time_is_kept_to_the_millisecond(database: Database) -> None:
    kept = 1_795_000_000.123
    with database.write() as connection:
        lease = {"name": "a", "holder": "b", "until": kept}
        connection.execute(Lease.__table__.insert().values(lease))
        assert connection.scalar(select(Lease.until)) == pytest.approx(kept, abs=5e-4)


def test_a_write_lands_at_its_end_or_not_at_all(database: Database) -> None:
    def break_off() -> None:
        with database.write() as connection:
            connection.execute(Trash.__table__.insert().values(prefix="jobs/1/"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert count(database) == 0
    add(database, "jobs/1/")
    assert count(database) == 1


def test_writers_that_read_first_wait_for_each_other(database: Database) -> None:
    failed: list[Exception] = []

    def write(number: int) -> None:
        try:
            for turn in range(10):
                with database.write() as connection:
                    connection.scalar(select(func.count()).select_from(Trash))
                    connection.execute(
                        Trash.__table__.insert().values(prefix=f"jobs/{number}-{turn}/")
                    )
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert count(database) == 60


def test_readers_and_polls_do_not_wait_for_a_writer(database: Database) -> None:
    began = time.monotonic()
    with database.write() as connection:
        connection.execute(Trash.__table__.insert().values(prefix="jobs/1/"))
        assert count(database) == 0
        with database.autocommit() as other:
            assert other.scalar(select(func.count()).select_from(Trash)) == 0
    assert time.monotonic() - began < 10


NAMED = select(Trash.prefix).where(Trash.prefix == bindparam("prefix"))


def test_the_first_row_is_found_as_soon_as_it_is_committed(database: Database) -> None:
    assert database.first(NAMED, prefix="jobs/1/") is None
    add(database, "jobs/1/")
    assert tuple(database.first(NAMED, prefix="jobs/1/")) == ("jobs/1/",)
    assert database.first(NAMED, prefix="jobs/2/") is None


def test_asking_for_the_first_row_keeps_nothing_open(database: Database) -> None:
    add(database, "jobs/1/")
    add(database, "jobs/2/")
    database.first(select(Trash.prefix))
    if database.engine.dialect.name == "sqlite":
        with database.autocommit() as connection:
            # Its log can be emptied only while nobody reads.
            done = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        assert done == (0, 0, 0)
    else:
        with database.read() as connection:
            waiting = connection.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND state LIKE 'idle in%%'"
            )
            assert waiting.scalar() == 0


def test_each_poll_sees_what_was_committed_before_it(database: Database) -> None:
    with database.autocommit() as connection:
        wanted = select(func.count()).select_from(Trash)
        assert connection.scalar(wanted) == 0
        add(database, "jobs/1/")
        assert connection.scalar(wanted) == 1


def test_a_reference_to_nothing_is_refused_by_the_database(database: Database) -> None:
    orphan = text(
        "INSERT INTO job_styles (job_id, position, sha256) VALUES ('a', 0, 'b')"
    )
    with (
        pytest.raises(Exception, match=r"(?i)foreign key"),
        database.write() as connection,
    ):
        connection.execute(orphan)


def test_an_unpooled_database_leaves_no_connection_open(database_url: str) -> None:
    database = Database(database_url, pooled=False)
    database.check()
    assert database.engine.pool.status() == "NullPool"
    database.close()


def test_sqlite_is_set_up_for_many_processes(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'deep' / 'down' / 'a.db'}")
    with database.read() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert found == {
        "journal_mode": "wal",
        "synchronous": 1,
        "foreign_keys": 1,
        "busy_timeout": 20_000,
    }


@pytest.mark.parametrize(
    "url",
    ["nonsense", "", "sqlite//a", "://", "mysql://a/b", "postgresql+psycopg2://a/b"],
)
def test_an_address_that_is_none_is_refused_by_name(url: str) -> None:
    with pytest.raises(BadConfiguration, match=r"^STYLEQUEUE_DATABASE: "):
        Database(url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_addresses_of_postgresql_may_leave_out_the_driver(
    postgresql_url: str, scheme: str
) -> None:
    _, _, rest = postgresql_url.partition("://")
    database = Database(f"{scheme}://{rest}")
    database.check()
    database.close()


def test_an_error_does_not_tell_the_password() -> None:
    with pytest.raises(BadConfiguration) as refused:
        Database("mysql://user:hunter2@host/name")
    assert "hunter2" not in refused.value.message


def test_a_server_that_is_down_is_an_outage(tmp_path: Path) -> None:
    database = Database(f"postgresql://root@/name?host={tmp_path}")
    with pytest.raises(OUTAGE):
        database.check()
    with pytest.raises(OUTAGE):
        database.first(NAMED, prefix="jobs/1/")
    database.close()


@pytest.mark.parametrize("fresh_seconds", [0.0, 60.0])
def test_a_server_that_restarted_is_found_again(
    postgresql_url: str, fresh_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_engine, "FRESH_SECONDS", fresh_seconds)
    database, other = Database(postgresql_url), Database(postgresql_url)
    database.check()
    database.first(select(literal_column("1")))
    # What a restart does to the connections of a pool.
    with other.read() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    database.check()
    assert database.first(select(literal_column("1"))) == (1,)
    database.close()
    other.close()


def test_a_connection_is_tried_before_its_use_unless_it_was_just_used(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(postgresql_url)
    tried: list[object] = []
    monkeypatch.setattr(database.engine.dialect, "do_ping", tried.append)
    for _ in range(3):
        database.check()
    assert tried == []
    monkeypatch.setattr(postgresql_engine, "FRESH_SECONDS", 0.0)
    database.check()
    assert len(tried) == 1
    database.close()


def test_a_connection_that_breaks_is_an_outage(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    with pytest.raises(OUTAGE), database.read() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    database.check()
    database.close()


def make_read_only(url: str, *, read_only: bool) -> None:
    """Have sessions that begin from now on refuse to write, or take writes again."""
    name = make_url(url).database
    value = "on" if read_only else "off"
    admin = Database(url)
    with admin.write() as connection:
        connection.execute(text("SET LOCAL transaction_read_only = off"))
        connection.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}")
        )
    admin.close()


@pytest.fixture
def after_failover(postgresql_url: str) -> Iterator[Database]:
    """A database all of whose three sessions are read-only, unlike new ones."""
    make_read_only(postgresql_url, read_only=True)
    database = Database(postgresql_url, connections=3)
    with database.read(), database.read(), database.read():
        pass
    make_read_only(postgresql_url, read_only=False)
    yield database
    database.close()


def write_once(database: Database) -> None:
    add(database, "jobs/1/")


def renew_once(database: Database) -> None:
    with database.autocommit() as connection:
        connection.execute(Trash.__table__.insert().values(prefix="jobs/1/"))


@pytest.mark.parametrize("write", [write_once, renew_once, Database.check])
def test_sessions_that_became_read_only_are_replaced_after_one_outage(
    after_failover: Database, write: Callable[[Database], None]
) -> None:
    with pytest.raises(OUTAGE, match="read-only"):
        write(after_failover)
    # All three sessions are new, not only the one that failed.
    with after_failover.write(), after_failover.write(), after_failover.write():
        pass
    write(after_failover)
    assert count(after_failover) == (0 if write is Database.check else 1)


ENDING = "57P01 57P02 57P03 57P05 08006 08P01 25P03 25P04"


@pytest.mark.parametrize("code", ENDING.split())
def test_an_error_that_ends_a_session_has_all_sessions_opened_anew(
    postgresql_url: str, code: str
) -> None:
    database = Database(postgresql_url)
    pid = select(func.pg_backend_pid())
    before = database.first(pid)
    # The code alone: the session itself lives on, and would be used again.
    fails = text(f"DO $$ BEGIN RAISE EXCEPTION SQLSTATE '{code}'; END $$")
    with pytest.raises(DBAPIError) as failed, database.write() as connection:
        connection.execute(fails)
    assert failed.value.connection_invalidated
    assert database.first(pid) != before
    database.close()


def test_an_error_of_a_statement_keeps_its_session(postgresql_url: str) -> None:
    database = Database(postgresql_url)
    pid = select(func.pg_backend_pid())
    before = database.first(pid)
    with pytest.raises(DBAPIError), database.write() as connection:
        connection.execute(text("SELECT 1 / 0"))
    assert database.first(pid) == before
    database.close()


def test_limits_hold_for_a_transaction_and_leave_nothing_in_the_session(
    postgresql_url: str,
) -> None:
    """Another client of PgBouncer may get the session next."""
    database = Database(postgresql_url, connections=1)
    shown = text("SELECT current_setting('lock_timeout')")
    with database.write() as connection:
        assert connection.scalar(shown) == "8s"
    with database.autocommit() as connection:
        assert connection.scalar(shown) == "0"
    database.close()


def test_a_process_opens_as_many_connections_as_it_may_and_no_more(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "POOL_SECONDS", 0.1)
    database = Database(postgresql_url, connections=2)
    with database.write() as connection, database.autocommit():
        with pytest.raises(OUTAGE), database.read():
            pass
        with pytest.raises(OUTAGE):
            database.first(NAMED, prefix="jobs/1/")
        ours = text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend'"
        )
        assert connection.scalar(ours) == 2
    database.close()


def test_seeing_whether_it_can_be_written_to_leaves_nothing(
    database: Database,
) -> None:
    database.check()
    with database.read() as connection:
        rows = select(func.count()).select_from(Counter)
        assert connection.scalar(rows) == 0


def test_on_sqlite_what_was_promised_is_flushed_and_progress_is_not(
    tmp_path: Path,
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}", connections=1)
    asked = text("PRAGMA synchronous")
    full, normal = 2, 1
    # Both orders: a connection that was set for the one is used for the other.
    for _ in range(2):
        with database.write() as connection:
            assert connection.scalar(asked) == full
        with database.write(durable=False) as connection:
            assert connection.scalar(asked) == normal
        with database.write() as connection:
            assert connection.scalar(asked) == full
        with database.autocommit() as connection:
            assert connection.scalar(asked) == normal
    database.close()


def test_tls_is_checked_against_the_authority_that_the_address_names(
    postgresql_url: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    server = make_url(postgresql_url)
    behind = Path(str(server.query["host"]), ".s.PGSQL.5432")

    def ask(host: str, authority_file: str) -> None:
        wanted = {
            "sslmode": "verify-full",
            "sslrootcert": str(tmp_path / authority_file),
        }
        url = server.set(host=host, port=port, query=wanted)
        database = Database(url.render_as_string(hide_password=False))
        try:
            database.check()
        finally:
            database.close()

    with speaking_tls(authority, behind, asked_first=True) as port:
        ask("localhost", "ca.pem")
        with pytest.raises(OUTAGE, match="certificate verify failed"):
            ask("localhost", "other.pem")
        with pytest.raises(OUTAGE, match="does not match host name"):
            ask("127.0.0.1", "ca.pem")
