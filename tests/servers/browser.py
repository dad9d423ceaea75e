"""A real browser, for the tests of what people look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, expect, sync_playwright

CHROMIUM = "chromium"  # Debian's, by scripts/tools: Playwright's own would have to be fetched from elsewhere
LIMIT = 20_000.0  # milliseconds that a page may take for what is expected of it, on a busy machine


@contextmanager
def chromium() -> Iterator[Browser]:
    """Runs one. It holds this thread's event loop as long: what wants one of its own goes to another thread."""
    found = shutil.which(CHROMIUM)
    assert found is not None, "no chromium here: scripts/tools installs it as root; elsewhere install it by hand"
    expect.set_options(timeout=LIMIT)
    with sync_playwright() as playwright:
        # root, as which CI runs, may not use Chromium's sandbox
        browser = playwright.chromium.launch(executable_path=found, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()
