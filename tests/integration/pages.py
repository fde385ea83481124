"""Pages in a real browser: opened in a window of its own, with what they log and what they ask for."""

import shutil
from contextlib import contextmanager

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SEVERE = ("serious", "critical")


@contextmanager
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opener(browser):
    """Opens files in windows of their own; at the end there was no error, and no other address asked for."""
    contexts, faults, asked, opened = [], [], [], set()

    def open_file(file, *, wait_for, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector(wait_for)
        opened.add(file.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not faults
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == opened


def check_layout(page, width):
    """The page is accessible, and no wider than its window."""
    from axe_playwright_python.sync_playwright import Axe

    found = [fault for fault in Axe().run(page).response["violations"] if fault["impact"] in SEVERE]
    assert not found, [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in found]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
