"""Take pictures of every page in every state, to be looked at.

    .venv/bin/python -m tests.system.screens FOLDER

starts an installation of its own and takes about two minutes.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from stylequeue_shared import jobs
from stylequeue_shared.database import Database
from stylequeue_shared.errors import MachineError
from stylequeue_shared.settings import load_settings
from tests.system.browser import Visit, chromium
from tests.system.test_browser import choose_samples, submit, until
from tests.system.test_up import Up

SIZE = 160
LOOKS: dict[str, dict[str, Any]] = {
    "desktop": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, chromium() as browser:
        home = Path(scratch) / "home"
        up = Up(home, standing_in=()).ready()
        try:
            look_around(browser, up, folder)
        finally:
            up.end()


def look_around(browser: Browser, up: Up, folder: Path) -> None:
    gallery = up.address + "/jobs"
    for look, options in LOOKS.items():
        page = Visit(browser, up.address, **options).page
        shoot(page, gallery, folder, look, "empty")
    page = Visit(browser, up.address).page
    done = submit(page, SIZE, steps="60", snapshot_every="5")
    until(page, "succeeded", minutes=10)
    failed = up.address + "/jobs/" + fail(up.home, done.rsplit("/", 1)[1])
    running = submit(page, SIZE, steps="2000", snapshot_every="20")
    page.wait_for_selector("#painted[src*='/snapshots/']", timeout=600_000)
    pages = {
        "done": done,
        "failed": failed,
        "running": running,
        "queued": submit(page, SIZE, steps="2000", snapshot_every="20"),
        "gallery": gallery,
        "error": up.address + "/jobs/no-such-job",
    }
    for look, options in LOOKS.items():
        visit = Visit(browser, up.address, **options)
        for name, url in pages.items():
            shoot(visit.page, url, folder, look, name, PREPARE.get(name))
        form(visit.page, folder, look)


def shoot(
    page: Page,
    url: str,
    folder: Path,
    look: str,
    name: str,
    prepare: Callable[[Page], None] | None = None,
) -> None:
    page.goto(url)
    if prepare:
        prepare(page)
    page.wait_for_timeout(600)
    page.screenshot(path=folder / f"{look}-{name}.png", full_page=True)


def form(page: Page, folder: Path, look: str) -> None:
    page.goto("/")
    page.wait_for_timeout(600)
    page.screenshot(path=folder / f"{look}-form.png", full_page=True)
    choose_samples(page)
    page.get_by_text("Printed waves").click()
    page.get_by_text("Advanced", exact=True).click()
    page.locator("[name=steps]").fill("0")
    page.get_by_role("button", name="Start painting").click()
    page.wait_for_timeout(600)
    page.screenshot(path=folder / f"{look}-form-refused.png", full_page=True)


def compare(page: Page) -> None:
    page.get_by_text("Compare", exact=True).click()


def fail(home: Path, like: str) -> str:
    """Record a job that failed, without its having run: none fails on request."""
    settings = load_settings({"STYLEQUEUE_HOME": str(home)})
    database = Database(settings.database_url)
    job_id = jobs.retry(database, like, max_waiting=10)
    held = jobs.claim(database, "the screenshots", lease_seconds=60)
    assert held is not None
    error = MachineError("The graphics card ran out of memory at 1024 pixels.")
    jobs.fail(database, held, error)
    database.close()
    return job_id


PREPARE = {"done": compare}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
