"""What the views work with: the database, the store, the bell."""

from dataclasses import dataclass, field

from flask import current_app

from stylequeue_shared.database import Database
from stylequeue_shared.queue import Bell
from stylequeue_shared.settings import Settings
from stylequeue_shared.store import Store, open_store
from stylequeue_web.positions import Positions
from stylequeue_web.slots import Admission

NAME = "stylequeue"
# Most connections of one web process; docs/scaling.md has the sum.
CONNECTIONS = 8


@dataclass(frozen=True)
class Services:
    """One process's connections; made after the fork."""

    settings: Settings
    database: Database
    store: Store
    bell: Bell
    positions: Positions
    admission: Admission = field(default_factory=Admission)


def open_services(settings: Settings) -> Services:
    """Connect to what the settings name; nothing need answer yet."""
    database = Database(settings.database_url, connections=CONNECTIONS)
    return Services(
        settings,
        database,
        open_store(settings.store_url),
        Bell(settings),
        Positions(database),
    )


def services() -> Services:
    """Return the services of the running application."""
    found: Services = current_app.extensions[NAME]
    return found
