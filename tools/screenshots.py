"""Take the pictures of docs/ anew, from the published report.

python tools/screenshots.py    (needs chromium and its chromedriver)
"""

import io
import shutil
import time
from pathlib import Path

import typer
from PIL import Image
from selenium import webdriver

from acs_lib import paths
from acs_lib.report.encoding import small_png

DOCS = paths.ROOT / "docs"
SHOTS = {  # file -> width, height, colour scheme, what is scrolled to
    "report.png": (1100, 760, "light", "header"),
    "report_queries_dark.webp": (1100, 700, "dark", "#queries"),
    "report_phone.webp": (390, 760, "light", "#queries"),
}


def shoot(page: Path, width: int, height: int, scheme: str, place: str) -> bytes:
    """A PNG of the page in a browser window of that size."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        colours = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colours})
        browser.get(page.as_uri())
        browser.execute_script(
            "for (const box of ['show-overlay', 'show-candidates']) document.getElementById(box)?.click()"
        )
        browser.execute_script(f"document.querySelector('{place}').scrollIntoView()")
        time.sleep(1)
        picture = browser.get_screenshot_as_png()
    finally:
        browser.quit()
    return picture


def main() -> None:
    """Take the pictures of docs/ anew, from the committed report."""
    for name, settings in SHOTS.items():
        picture = shoot(paths.reference("embedded") / "index.html", *settings)
        if name.endswith(".webp"):  # a photograph-like scene has too many colours for a palette
            Image.open(io.BytesIO(picture)).convert("RGB").save(DOCS / name, quality=65, method=6)
        else:
            (DOCS / name).write_bytes(small_png(picture))


if __name__ == "__main__":
    typer.run(main)
