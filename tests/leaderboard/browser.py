"""A board served for a test, and a real browser that looks at it."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ROOT = Path(__file__).parents[2]
APP = ROOT / "leaderboard" / "app.py"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PAGES = ("", "compare", "explore", "record", "datasets", "submit", "about")
PATIENCE = 120
DESKTOP, PHONE = (1280, 900), (375, 812)


@contextlib.contextmanager
def served(results: Path, home: Path, log: Path, *, warm: bool = False) -> Iterator[str]:
    """Serves the board of a results folder on this machine; yields its address.

    Args:
        results: The folder.
        home: Cache of the server.
        log: Takes what the server prints.
        warm: Whether by `python -m leaderboard`, which reads the records first, instead of Streamlit's command.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"AGSSP_BENCH_RESULTS": str(results), "AGSSP_BENCH_HOME": str(home)}
    command = ["leaderboard"] if warm else ["streamlit", "run", str(APP)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--server.port={port}"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )
        try:
            address = f"http://localhost:{port}"
            _wait_until_up(f"{address}/_stcore/health", process, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # a page is still being drawn
                process.kill()
                process.wait()


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(PATIENCE * 4):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text(errors='replace')[-2000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.25)
    raise TimeoutError(f"the server is not up: {log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def browser(downloads: Path | None = None) -> Iterator[Chrome]:
    """Opens a headless Chromium that may reach this machine alone."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
        *(
            "--force-device-scale-factor=1",
            "--lang=en",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",
        ),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Chrome, address: str, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
    """Opens an address and waits until its page is drawn."""
    look_like(driver, size, dark)
    driver.get(address)
    settled(driver)


def look_like(driver: Chrome, size: tuple[int, int], dark: bool) -> None:
    """Gives the window a size and the browser a preference of colours."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


_STATE = """
const app = document.querySelector('[data-testid="stApp"]');
if (!app || app.getAttribute('data-test-script-state') !== 'notRunning') return '';
if (document.querySelector('[data-testid="stSkeleton"], [data-testid="stAppSkeleton"]')) return '';
const main = document.querySelector('[data-testid="stMain"]');
if (!main || !main.innerText.trim()) return '';
return main.innerText.length + ' ' + main.scrollHeight + ' ' + document.querySelectorAll('canvas').length;
"""


def settled(driver: Chrome) -> None:
    """Waits until the page's script has ended and what it drew no longer changes."""
    last, since = "", time.monotonic()
    end = since + PATIENCE
    while time.monotonic() < end:
        state = driver.execute_script(_STATE)
        if not state or state != last:
            last, since = state, time.monotonic()
        elif time.monotonic() - since > 1.0:
            return
        time.sleep(0.2)
    raise TimeoutError("the page does not come to rest")


def text(driver: Chrome) -> str:
    """Returns the words of the page."""
    found: str = driver.execute_script("return document.querySelector('[data-testid=\"stMain\"]').innerText")
    return found


def errors(driver: Chrome) -> list[str]:
    """Returns what the browser's console complained of since it was last asked."""
    found = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    # Of a page's address, Streamlit first asks whether its server lies below it, and is told no.
    return [message for message in found if not re.search(r"/\w+/_stcore/\S+ - .* 404", message)]


def photograph(driver: Chrome, file: Path, most: int = 4000) -> None:
    """Writes a PNG of the whole page, at most so many pixels high."""
    script = "return [document.querySelector('[data-testid=\"stMain\"]').scrollHeight, innerWidth]"
    height, width = driver.execute_script(script)
    size = (width, min(most, max(700, height + 20)))
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    settled(driver)
    found: dict[str, Any] = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    file.write_bytes(base64.b64decode(found["data"]))
