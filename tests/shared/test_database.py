import threading
import time
from pathlib import Path

import pytest
import trustme
from sqlalchemy import bindparam, func, literal_column, select, text
from sqlalchemy.engine import make_url

from stylequeue_shared.database import OUTAGE, Database, now
from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.models import Lease, Trash
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
    postgresql: str, scheme: str
) -> None:
    _, _, rest = postgresql.partition("://")
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


def test_a_server_that_restarted_is_found_again(postgresql: str) -> None:
    database, other = Database(postgresql), Database(postgresql)
    database.check()
    database.first(select(literal_column("1")))
    # What a restart does to the connections of a pool.
    with other.read() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    database.check()
    assert database.first(select(literal_column("1"))) == (1,)
    database.close()
    other.close()


def test_a_connection_that_breaks_is_an_outage(postgresql: str) -> None:
    database = Database(postgresql)
    with pytest.raises(OUTAGE), database.read() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    database.check()
    database.close()


def test_tls_is_checked_against_the_authority_that_the_address_names(
    postgresql: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    server = make_url(postgresql)
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
