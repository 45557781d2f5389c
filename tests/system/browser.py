"""A headless Chromium for tests, and what no page of ours may do in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",  # it does not start as root otherwise
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
]
MISSING = (
    "The browser tests need Chromium: install the package 'chromium' (as root on "
    "Debian: apt-get install chromium), or run: .venv/bin/playwright install chromium"
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium, or Playwright's; fail saying what to install."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        path = found or playwright.chromium.executable_path
        if not Path(path).exists():
            raise RuntimeError(MISSING)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A tab of a fresh visitor, and everything that a page should not have done."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.address = address
        self.wrong: list[str] = []
        options = {"viewport": {"width": 1280, "height": 900}} | options
        self.context = browser.new_context(base_url=address, **options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        # Violations of the content security policy are console errors, too.
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.wrong.append(f"raised {error}"))
        self.page.on("request", lambda request: self._on_request(request.url))

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"{message.text} ({message.location.get('url')})")

    def _on_request(self, url: str) -> None:
        parts = urlsplit(url)
        ours = urlsplit(self.address).netloc
        if parts.scheme not in ("blob", "data") and parts.netloc != ours:
            self.wrong.append(f"asked {url}")

    def forgive(self, text: str) -> None:
        """Drop what the test itself brought about."""
        self.wrong = [wrong for wrong in self.wrong if text not in wrong]

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        script = "document.documentElement.scrollWidth - innerWidth"
        return int(self.page.evaluate(script))
