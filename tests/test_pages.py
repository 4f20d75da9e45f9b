"""The pages in a real browser, made from rows that would like to be more than rows."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from migrator.metrics import render_metrics
from migrator.pages import publish_fleet
from migrator.report import list_latest, read_latest
from migrator.retry import retry_client
from tests.conftest import Lab

HOSTILE = "</pre></code></div><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&{{7*7}}"
TABLE = "<b onmouseover=alert(1)>t</b>"
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(found.values()):
        if os.environ.get("CI"):
            pytest.fail("CI must have chromium and chromedriver")
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    options = ChromeOptions()
    options.binary_location = str(found["chromium"])
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    driver = Chrome(options=options, service=Service(str(found["chromedriver"])))
    yield driver
    driver.quit()


def set_theme(browser: Chrome, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def set_width(browser: Chrome, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture
def folder(lab: Lab) -> Path:
    rows = [(n, f"name {n}", "2024-05-01 10:00:00") for n in range(1, 60)]
    lab.fill(
        f'CREATE TABLE bookings (id INTEGER PRIMARY KEY, name TEXT, at TIMESTAMP); CREATE TABLE "{TABLE}" (a INTEGER)',
        ("INSERT INTO bookings VALUES (?, ?, ?)", [*rows, (60, HOSTILE, HOSTILE), (61, "x" * 3000, "soon")]),
        (f'INSERT INTO "{TABLE}" VALUES (?)', [(1,), (2,)]),
    )
    assert lab.migrate().status == "rejected_rows"
    lab.execute("UPDATE bookings SET name = '<i>other</i>' WHERE id = 7")
    report = lab.migrate()
    assert (report.totals.rows_rejected, report.totals.rows_conflicting) == (2, 1)
    reports = lab.options.reports_dir
    good = report.model_copy(update={"client": "client_001", "status": "ok", "tables": report.tables[1:]})
    failed = report.model_copy(update={"client": "client_002", "status": "failed", "error": HOSTILE, "tables": ()})
    for other in (good, failed):
        (reports / other.client).mkdir()
        (reports / other.client / "latest.json").write_text(other.model_dump_json())
    (reports / "client_003").mkdir()
    (reports / "client_003" / "latest.json").write_text("{")
    publish_fleet(reports, *list_latest(reports), remaining=["client_004"])
    return reports / lab.client.id / report.run_id


def open_page(browser: Chrome, path: Path) -> str:
    browser.get(path.as_uri())
    return browser.find_element(By.TAG_NAME, "body").text


def assert_harmless(browser: Chrome) -> None:
    assert "owned" not in browser.title
    assert browser.find_elements(By.CSS_SELECTOR, "script, img, iframe, link, [onerror], [onmouseover]") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_page_shows_hostile_values_as_they_are(browser: Chrome, folder: Path, lab: Lab) -> None:
    set_width(browser, 1100)
    open_page(browser, folder / "report.html")
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    text = browser.find_element(By.TAG_NAME, "body").text
    assert_harmless(browser)
    assert HOSTILE.replace('"', '\\"') in text and TABLE in text and "<i>other</i>" in text and "{{7*7}}" in text
    assert text.index("some rows are kept aside") < text.index("rows read") < text.index("digests")


def test_statement_on_the_page_mends_the_row(browser: Chrome, folder: Path, lab: Lab) -> None:
    """A person who copies the statement, mends the moment in it and runs it, gets the row in."""
    open_page(browser, folder / "report.html")
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    blocks = [e.get_property("textContent") for e in browser.find_elements(By.CSS_SELECTOR, ".row pre")]
    (statement,) = [str(block) for block in blocks if "row_number = 61" in str(block)]
    lab.execute(statement.replace("soon", "2024-05-01 10:00:00"))
    report = asyncio.run(retry_client(lab.client, lab.options))
    assert report.totals.rows_inserted == 1
    assert lab.fetch("SELECT name FROM bookings WHERE id = 61") == [("x" * 3000,)]


def test_fleet_page_puts_what_needs_a_person_first(browser: Chrome, folder: Path) -> None:
    text = open_page(browser, folder.parent.parent / "index.html")
    assert_harmless(browser)
    assert "client_004" in text and "client_003" in text and HOSTILE in text
    names = [e.text for e in browser.find_elements(By.CSS_SELECTOR, "tbody td:first-child")]
    assert names == ["client_002", folder.parent.name, "client_001"]
    browser.find_element(By.LINK_TEXT, folder.parent.name).click()
    assert browser.current_url == (folder / "report.html").as_uri()
    browser.find_element(By.LINK_TEXT, "all clients").click()
    assert browser.current_url.endswith("/index.html")


@pytest.mark.parametrize("page", ["report.html", "../../index.html"])
def test_page_fits_a_phone_and_follows_the_theme(browser: Chrome, folder: Path, page: str) -> None:
    grounds = {}
    for theme in ("light", "dark"):
        set_theme(browser, theme)
        for width in (360, 800, 1100):
            set_width(browser, width)
            open_page(browser, (folder / page).resolve())
            browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            if pictures := os.environ.get("PICTURES_DIR"):
                height = browser.execute_script("return document.documentElement.scrollHeight")
                size = {"width": width, "height": min(height, 2400), "deviceScaleFactor": 1, "mobile": width < 500}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                browser.save_screenshot(f"{pictures}/{Path(page).stem}-{theme}-{width}.png")
        grounds[theme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert grounds["light"] != grounds["dark"]


def test_page_can_be_printed(browser: Chrome, folder: Path) -> None:
    open_page(browser, folder / "report.html")
    assert len(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]) > 10_000


def test_long_lists_are_cut_and_say_so(lab: Lab) -> None:
    lab.set_load(widen_above=1.0)
    lab.fill("CREATE TABLE t (at TIMESTAMP)", ("INSERT INTO t VALUES (?)", [(f"no {n}",) for n in range(250)]))
    report = lab.migrate()
    text = (lab.options.reports_dir / lab.client.id / report.run_id / "report.html").read_text()
    assert text.count('class="sheet row"') == 200 and "the first 200 of 250" in text


def test_metrics_are_openmetrics(folder: Path, lab: Lab) -> None:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    report = read_latest(lab.options.reports_dir, lab.client.id)
    hostile = report.model_copy(update={"client": 'a"b\\c\nd'})
    parse: Any = text_string_to_metric_families
    families = {f.name: f for f in parse(render_metrics([report, hostile]))}
    rows = {
        (s.labels["client"], s.labels["table"], s.labels["outcome"]): s.value for s in families["migrator_rows"].samples
    }
    assert rows[lab.client.id, "bookings", "rejected"] == 2 and rows['a"b\\c\nd', TABLE, "already_present"] == 2
    assert sum(s.value for s in families["migrator_rows_read"].samples) == 2 * report.totals.rows_read
    assert families["migrator_run_duration_seconds"].unit == "seconds"
