from collections.abc import Iterator
from pathlib import Path

import pytest

from stylequeue_shared.database import Database
from stylequeue_shared.settings import Settings
from stylequeue_shared.store_folder import FolderStore
from tests.shared.housekeeper.house import LEASE, House
from tests.shared.outages import Flaky


@pytest.fixture
def house(database: Database, tmp_path: Path) -> Iterator[House]:
    url = database.engine.url.render_as_string(hide_password=False)
    settings = Settings(home=tmp_path, database=url, lease_seconds=LEASE)
    flaky = Flaky(url)
    yield House(flaky, FolderStore(tmp_path / "store"), settings)
    flaky.close()
