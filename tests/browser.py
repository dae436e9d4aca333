"""Headless Chromium for the tests of pages: skipped where it is missing, unless SIDE_JAX_BROWSER=required."""

import base64
import contextlib
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest

FLAGS = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage", "force-device-scale-factor=1"),
)
# Runs in every page before the page's own script.
WITNESS = (
    "window.violations = []; addEventListener('securitypolicyviolation', e => window.violations.push(e.blockedURI))"
)
# axe-core's rules of WCAG 2.0 to 2.2, levels A and AA; what it can't decide (`incomplete`) is no violation.
AXE = """
const done = arguments[0];
axe.run(document, {runOnly: {type: 'tag', values: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}}).then(
  found => done({passed: found.passes.map(rule => rule.id), violated: found.violations.map(rule => rule.id + ': ' +
    rule.nodes.map(node => node.html.slice(0, 120) + ' ' + node.failureSummary).join('; '))}),
  error => done({passed: [], violated: [String(error)]}));
"""


def _missing(what):
    if os.environ.get("SIDE_JAX_BROWSER") == "required":
        pytest.fail(f"SIDE_JAX_BROWSER=required, but {what} is missing")
    pytest.skip(f"needs {what}")


@contextlib.contextmanager
def chromium(profile: Path):
    """A browser with a new profile, as a selenium driver; reports what it logs and every request."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        _missing("selenium")
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in found.items():
        if path is None:
            _missing(name)
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found["chromedriver"]))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WITNESS})
        yield driver
    finally:
        driver.quit()


def visit(driver, path: Path, width: int = 1280, height: int = 900, **media: str) -> None:
    """Opens a file in a window of that size, as a medium (media="print") or with a feature (prefers_color_scheme)."""
    for log in ("browser", "performance"):
        driver.get_log(log)  # forgets what earlier pages left
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    emulate(driver, **media)
    driver.get(path.as_uri())


def emulate(driver, media: str = "", prefers_color_scheme: str = "light") -> None:
    """What the page believes that it is shown on."""
    features = [{"name": "prefers-color-scheme", "value": prefers_color_scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def printed_pages(driver) -> int:
    """How many pages paper takes, by the page's own print style."""
    made = driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    return len(re.findall(rb"/Type\s*/Page[^s]", base64.b64decode(made["data"])))


def complaints(driver) -> list[str]:
    """What the console holds since the last visit, and what the content security policy stopped."""
    return [entry["message"] for entry in driver.get_log("browser")] + driver.execute_script("return window.violations")


def requested(driver) -> set[str]:
    """The URLs asked for since the last visit, but for data: ones."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    return {url for url in urls if not url.startswith("data:")}


def check(driver) -> tuple[set[str], list[str]]:
    """The rules of WCAG, A and AA, that axe-core finds kept by what shows, and what it finds violated."""
    package = importlib.util.find_spec("axe_playwright_python")  # not imported: that needs playwright
    if package is None:
        _missing("axe-playwright-python")
    driver.execute_script((Path(package.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = driver.execute_async_script(AXE)
    return set(found["passed"]), found["violated"]
