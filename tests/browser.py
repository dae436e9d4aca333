"""Headless Chromium for the tests of pages: skipped where it is missing, unless SIDE_JAX_BROWSER=required."""

import base64
import contextlib
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
# Contrast of each text with what is behind it, by WCAG 2.2's definition of relative luminance.
CONTRAST = """
const parse = (text) => { const v = text.match(/[\\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v; };
const light = (c) => { const f = c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92
  : ((v + .055) / 1.055) ** 2.4); return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c[3] === 1) return c; if (c[3] > 0) throw new Error('translucent'); } throw new Error('no background'); };
const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || e.closest('script, template, noscript, :disabled') || !e.checkVisibility())
    continue;
  const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
  found.push([(a + .05) / (b + .05), e.outerHTML.slice(0, 80)]);
}
return found;
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


def contrasts(driver) -> list[tuple[float, str]]:
    """The contrast, from 1 to 21, of every text that shows, and where it stands."""
    return driver.execute_script(CONTRAST)
