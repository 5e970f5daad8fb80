"""Pages in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Dialog


class Visit:
    """A page opened from its file without a network.

    Attributes:
        tab: the page.
        wrong: what the page said or failed at.
        requests: every address that it asked for.
    """

    def __init__(self, browser: Browser, page: Path, width: int = 1280, wait_for: str | None = None) -> None:
        self.tab = browser.new_context(viewport={"width": width, "height": 900}, offline=True).new_page()
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", self._said)
        self.tab.on("dialog", self._asked)
        self.tab.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.tab.on("requestfailed", lambda r: self.wrong.append(f"failed: {r.url}"))
        self.tab.on("request", lambda r: self.requests.append(r.url))
        self.tab.goto(page.as_uri())
        if wait_for:
            self.tab.wait_for_selector(wait_for)

    def _said(self, message: ConsoleMessage) -> None:
        # What a browser without a graphics card says of any 3-D scene is no fault of the page.
        if not (message.type == "warning" and ("WebGL" in message.text or "Canvas2D" in message.text)):
            self.wrong.append(f"{message.type}: {message.text}")

    def _asked(self, dialog: Dialog) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    @property
    def elsewhere(self) -> list[str]:
        """The addresses outside the page's folder that it asked for; figures' images are in the page itself."""
        return [url for url in self.requests if not url.startswith(("file://", "data:", "blob:"))]
