"""Brings the tables up to date, and tells whether they are."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from stylequeue_shared.database import Database
from stylequeue_shared.errors import BadConfiguration

FOLDER = Path(__file__).parent / "migrations"
# Any number that nothing else locks: two processes that migrate wait for each other.
ADVISORY_LOCK = 0x57_59_4C_51


def migrate(url: str) -> None:
    """Upgrade the tables of the database to the newest version."""
    database = Database(url, pooled=False, patient=True)
    # On SQLite this transaction is immediate, so that a second process waits here.
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK}
            )
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check(database: Database) -> None:
    """Raise BadConfiguration unless the tables are of the version this code needs."""
    found = revision(database)
    wanted = ScriptDirectory.from_config(_config()).get_current_head()
    if found != wanted:
        raise BadConfiguration(
            "STYLEQUEUE_DATABASE: the tables are of version "
            f"{found or 'none'}, this program needs {wanted}; run: stylequeue migrate"
        )


def revision(database: Database) -> str | None:
    """Return the version of the tables, None where there are none."""
    with database.read() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def is_known(found: str) -> bool:
    """Whether this program can migrate tables of that version."""
    revisions = ScriptDirectory.from_config(_config()).walk_revisions()
    return found in {one.revision for one in revisions}


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config
