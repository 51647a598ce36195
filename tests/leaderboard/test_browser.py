"""The board in a real browser: every page, its console, its address, its downloads, and strangers' words in it."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from browser import (
    CHROMIUM,
    DESKTOP,
    DRIVER,
    PAGES,
    PATIENCE,
    PHONE,
    ROOT,
    browser,
    errors,
    photograph,
    served,
    settled,
    show,
    text,
)

from leaderboard.data import open_board

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM or not DRIVER, reason="needs chromium and chromedriver (Debian: chromium-driver)"
    ),
]
PICTURES = Path(os.environ.get("AGSSP_BENCH_SCREENSHOTS", ROOT / "build" / "screenshots"))
HOSTILE = (
    '<img src=x onerror="window.hacked=1">**bold**[x](javascript:alert(1))<script>window.hacked=1</script>'
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """Two backbones up the ladder on a generated dataset; pretrained rows carry a stranger's words."""
    from made_board import write_board

    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGSSP_BENCH_HOME", str(home))
        write_board(folder, seeds=2, corpus=HOSTILE)
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, home: Path, results: Path) -> Iterator[str]:
    with served(results, home, tmp_path_factory.mktemp("log") / "log") as place:
        yield place


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads: Path) -> Iterator[Chrome]:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with browser(downloads) as opened:
        yield opened


def click(driver: Chrome, words: str) -> None:
    """Clicks the button that begins with these words."""
    script = """
    const found = [...document.querySelectorAll('button, a, [role=tab]')];
    const button = found.find(one => one.innerText.trim().startsWith(arguments[0])
      || one.innerText.includes('\\n' + arguments[0]));
    if (button) { button.scrollIntoView(); button.click(); }
    return Boolean(button);
    """
    assert driver.execute_script(script, words), f"no button {words!r}"
    time.sleep(0.5)
    settled(driver)


def test_only_this_machine_is_answered(address: str) -> None:
    port = urlsplit(address).port
    listening = [entry.laddr for entry in psutil.net_connections("tcp") if entry.status == psutil.CONN_LISTEN]
    assert {place.ip for place in listening if place.port == port} <= {"127.0.0.1", "::1"}
    assert any(place.port == port for place in listening)


def test_the_command_serves_the_first_page(tmp_path: Path, home: Path, results: Path, driver: Chrome) -> None:
    with served(results, home, tmp_path / "log", warm=True) as place:
        show(driver, place)
        assert "Which pretraining finds more defects?" in text(driver)
        assert not errors(driver)
    assert f"{results}: " in (tmp_path / "log").read_text()


def test_the_first_thing_that_a_new_server_is_asked_may_be_any_page(address: str, driver: Chrome) -> None:
    show(driver, f"{address}/record")
    assert "Everything that is known" in text(driver)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_loads_without_complaint_and_without_any_other_host(
    page: str, address: str, driver: Chrome
) -> None:
    errors(driver)
    show(driver, f"{address}/{page}")
    photograph(driver, PICTURES / f"{page or 'leaderboard'}.png")
    assert errors(driver) == []
    assert len(text(driver)) > 200
    assert not driver.execute_script(
        "return document.querySelectorAll('[data-testid=\"stException\"]').length"
    )
    hosts = driver.execute_script(
        "return performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)"
    )
    assert set(hosts) == {urlsplit(address).netloc}


@pytest.mark.parametrize("page", PAGES)
def test_a_phone_need_not_scroll_sideways(page: str, address: str, driver: Chrome) -> None:
    show(driver, f"{address}/{page}", PHONE)
    photograph(driver, PICTURES / f"{page or 'leaderboard'}-phone.png")
    widths = driver.execute_script(
        "const main = document.querySelector('[data-testid=\"stMain\"]');"
        "return [document.documentElement.scrollWidth, main.scrollWidth, main.clientWidth]"
    )
    assert max(widths) <= PHONE[0]


def test_dark_is_dark(address: str, driver: Chrome) -> None:
    def brightness() -> int:
        script = "return getComputedStyle(document.querySelector('[data-testid=\"stApp\"]')).backgroundColor"
        colour: str = driver.execute_script(script)
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    show(driver, address, DESKTOP, dark=True)
    assert brightness() < 150
    show(driver, address)
    assert brightness() > 600


def test_a_filter_changes_table_and_address_and_the_address_brings_it_back(
    address: str, driver: Chrome
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(driver, address)
    assert "29 techniques" in text(driver)
    search = driver.find_element(By.CSS_SELECTOR, 'input[aria-label="Search"]')
    search.send_keys("simmim agssp", Keys.ENTER)
    time.sleep(0.5)
    settled(driver)
    assert "3 techniques" in text(driver)
    assert parse_qs(urlsplit(driver.current_url).query) == {"search": ["simmim agssp"]}
    click(driver, "One dataset")
    kept = driver.current_url
    shown = text(driver)
    assert parse_qs(urlsplit(kept).query)["show"] == ["One dataset"]
    driver.get("about:blank")
    show(driver, kept)
    assert text(driver) == shown
    click(driver, "Clear 1 filter")
    assert "search" not in driver.current_url


def test_a_download_holds_the_rows_that_are_shown(address: str, driver: Chrome, downloads: Path) -> None:
    show(driver, f"{address}/?images=Generated+surfaces&backbone=swin%3Anano")
    click(driver, "CSV, 5 rows")
    end = time.monotonic() + 60
    while not (found := list(downloads.glob("*.csv"))) and time.monotonic() < end:
        time.sleep(0.2)
    lines = list(csv.DictReader(io.StringIO(found[0].read_text(encoding="utf-8"))))
    assert {line["mode"] for line in lines} == {"scratch", "imagenet", "industrial", "agbp", "agssp"}
    assert {line["backbone"] for line in lines} == {"swin:nano"}
    assert all(line["track"] == "procedural" and float(line["map50"]) > 0 for line in lines)


def test_a_strangers_words_are_words(
    address: str, driver: Chrome, results: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(home))
    rows = open_board(results).rows
    show(driver, f"{address}/record?row={rows[rows['corpus'] == HOSTILE]['row_id'].iloc[0]}")
    click(driver, "Pretraining")
    assert HOSTILE in text(driver)
    for page in ("", "compare", "record", "explore"):
        show(
            driver,
            f"{address}/{page}?search=%3Cimg+src%3Dx+onerror%3Dwindow.hacked%3D1%3E&row=%3Cimg+src=x%3E",
        )
        assert driver.execute_script("return window.hacked === undefined")
        assert (
            driver.execute_script(
                "return document.querySelectorAll('img[src=\"x\"], a[href^=javascript]').length"
            )
            == 0
        )


def test_rows_are_ranked_with_intervals_and_compared_down_to_single_images(
    address: str, driver: Chrome
) -> None:
    show(driver, f"{address}/?images=Generated+surfaces&show=One+dataset")
    click(driver, "Compute rank intervals")
    shown = text(driver)
    assert "tells two rows apart in 4 of 5 cases" in shown
    photograph(driver, PICTURES / "ranks.png")
    show(driver, f"{address}/compare")
    shown = text(driver)
    assert "95 % interval" in shown
    for part in (
        "Is the difference real?",
        "For which defects?",
        "Precision and recall",
        "Where they differ",
    ):
        assert part in shown
    assert "rows=" in driver.current_url
    pictures: list[int] = []
    end = time.monotonic() + PATIENCE
    while not (pictures and min(pictures)) and time.monotonic() < end:  # a width of 0: still on its way
        time.sleep(0.2)
        pictures = driver.execute_script(
            "return [...document.querySelectorAll('[data-testid=\"stImage\"] img')].map(i => i.naturalWidth)"
        )
    assert pictures
    assert min(pictures) > 500
    assert errors(driver) == []


def test_a_link_opens_the_record_it_names(address: str, driver: Chrome) -> None:
    show(driver, f"{address}/record")
    click(driver, "Compare with another row")
    assert urlsplit(driver.current_url).path == "/compare"
    show(driver, f"{address}/datasets?kind=Generated")
    click(driver, "Its rows")
    assert parse_qs(urlsplit(driver.current_url).query)["dataset"] == ["casting_billet_synthetic"]
    assert "10 techniques" in text(driver)


def test_the_keyboard_reaches_menu_filters_and_table(address: str, driver: Chrome) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(driver, address)
    reached = []
    body = driver.find_element(By.TAG_NAME, "body")
    for _ in range(60):
        body.send_keys(Keys.TAB)
        script = "const one = document.activeElement; return one.innerText || one.ariaLabel || one.dataset.testid || ''"
        reached.append(driver.execute_script(script) + " " + driver.switch_to.active_element.tag_name)
        body = driver.switch_to.active_element
    words = "\n".join(reached)
    for part in ("Compare", "Search", "Mode", "Generated surfaces", "canvas"):
        assert part in words, words
