import subprocess
import sys

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text

from stylequeue_shared import migrate as migrate_module
from stylequeue_shared.database import Database
from stylequeue_shared.errors import BadConfiguration
from stylequeue_shared.migrate import check, migrate
from stylequeue_shared.models import Base, Worker

MIGRATE = "import sys; from stylequeue_shared.migrate import migrate; migrate({!r})"


def tables(database: Database) -> set[str]:
    with database.read() as connection:
        return set(inspect(connection).get_table_names())


def test_migrations_from_empty_make_exactly_the_tables_of_the_models(
    database: Database,
) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []
    assert tables(database) == {*Base.metadata.tables, "alembic_version"}


def test_a_second_migration_changes_nothing(database: Database) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    with database.write() as connection:
        connection.execute(text("INSERT INTO trash (prefix) VALUES ('jobs/1/')"))
    migrate(url)
    with database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM trash")) == 1


def test_what_an_earlier_version_wrote_is_kept(empty_url: str) -> None:
    database = Database(empty_url)
    with database.write() as connection:
        config = migrate_module._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text("INSERT INTO workers VALUES ('w1', 'here', 'CPU', 1024, 1, 2)")
        )
    migrate(empty_url)
    with database.read() as connection:
        row = connection.execute(select(Worker.__table__)).one()
    assert (row.name, row.memory_bytes, row.seen_at) == ("w1", 1024, 2)
    assert row.budget_bytes is row.gpu is row.bytes_per_second is None
    database.close()


def test_processes_that_migrate_at_once_wait_for_each_other(empty_url: str) -> None:
    command = [sys.executable, "-W", "error", "-c", MIGRATE.format(empty_url)]
    started = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert said == ["", "", ""]  # and quietly
    database = Database(empty_url)
    check(database)
    database.close()


def test_a_migration_that_fails_leaves_nothing_behind(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import op

    def broken(*names: str) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        # The last table of the first version.
        create = op.create_table
        patch.setattr(
            op,
            "create_table",
            lambda name, *columns: (
                broken() if name == "snapshots" else create(name, *columns)
            ),
        )
        with pytest.raises(RuntimeError, match="power cut"):
            migrate(empty_url)
    database = Database(empty_url)
    assert tables(database) == set()
    migrate(empty_url)
    check(database)
    database.close()


def test_the_right_tables_pass_the_check(database: Database) -> None:
    check(database)


def test_an_empty_database_is_refused_with_the_command_that_helps(
    empty_url: str,
) -> None:
    database = Database(empty_url)
    with pytest.raises(BadConfiguration, match="STYLEQUEUE_DATABASE") as refused:
        check(database)
    database.close()
    assert "version none" in refused.value.message
    assert refused.value.message.endswith("run: stylequeue migrate")


def test_tables_of_another_version_are_refused(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(BadConfiguration, match="version 0000, this program needs"):
        check(database)
