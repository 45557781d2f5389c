from collections.abc import Iterator
from pathlib import Path

import pytest

from stylequeue_worker import attempt, patience
from tests.worker.workbench import Bench, decode_here


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(patience, "STORE_PAUSES", (0.05, 0.05))
    monkeypatch.setattr(attempt, "LAND_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(attempt, "LEAVE_SECONDS", 0.3)
    # How uploads are really decoded is tested in `test_decoding_uploads`.
    monkeypatch.setattr(attempt, "decode", decode_here)
    bench = Bench(tmp_path)
    yield bench
    bench.database.close()
