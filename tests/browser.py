"""A page as headless Chromium shows it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as engines:
        browser = engines.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def opens_well(browser: Any, html: Path) -> None:
    """No console error, no request but for the page itself, and nothing wider than the screen."""
    for width in (400, 1400):
        said: list[str] = []
        asked: list[str] = []
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("console", lambda message, said=said: said.append(message.text))
        tab.on("pageerror", lambda error, said=said: said.append(str(error)))
        tab.on("request", lambda request, asked=asked: asked.append(request.url))
        tab.goto(html.as_uri())
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [html.as_uri()]
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
