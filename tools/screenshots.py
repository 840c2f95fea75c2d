"""Take the pictures of docs/ anew, from the published report and from the page of `acs demo`.

python tools/screenshots.py    (needs chromium and its chromedriver; the demo also acs-kit[demo], or is left as it is)
"""

import contextlib
import importlib.util
import io
import shutil
import time
from pathlib import Path

import typer
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from acs_lib import demo, paths
from acs_lib.report.encoding import small_png

DOCS = paths.ROOT / "docs"
SHOTS = {  # file -> width, height, colour scheme, what is scrolled to
    "report.png": (1100, 760, "light", "header"),
    "report_queries_dark.webp": (1100, 700, "dark", "#queries"),
    "report_phone.webp": (390, 760, "light", "#queries"),
}


@contextlib.contextmanager
def screen(width: int, height: int, scheme: str = "light"):
    """A browser with a screen of that size and colour scheme."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        colours = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colours})
        yield browser
    finally:
        browser.quit()


def shoot(page: Path, width: int, height: int, scheme: str, place: str) -> bytes:
    """A PNG of the page in a browser window of that size."""
    with screen(width, height, scheme) as browser:
        browser.get(page.as_uri())
        browser.execute_script(
            "for (const box of ['show-overlay', 'show-candidates']) document.getElementById(box)?.click()"
        )
        browser.execute_script(f"document.querySelector('{place}').scrollIntoView()")
        time.sleep(1)
        picture = browser.get_screenshot_as_png()
    return picture


def shoot_demo() -> None:
    """The answer about the README's example."""
    with demo.serving() as address, screen(1100, 1750) as browser:
        browser.get(address)
        wait = WebDriverWait(browser, 120)

        def first(css):
            return wait.until(lambda _: next(iter(browser.find_elements(By.CSS_SELECTOR, css)), None))

        first("#picture input[type=file]").send_keys(str(paths.EMBEDDED / "samples" / "images" / "000002.png"))
        first("#picture button[aria-label='Remove Image']")
        first("#objects textarea").send_keys("scissors")
        first("#find").click()
        first("#maps img")
        time.sleep(2)
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png()))
    picture.thumbnail((800, 1400))
    (DOCS / "demo.webp").write_bytes(small_webp(picture))


def small_webp(picture: Image.Image) -> bytes:
    """The picture in fewer than 40 kB."""
    for quality in range(80, 10, -10):
        file = io.BytesIO()
        picture.convert("RGB").save(file, "WEBP", quality=quality, method=6)
        if file.tell() < 40_000:
            break
    return file.getvalue()


def main() -> None:
    """Take the pictures of docs/ anew."""
    if importlib.util.find_spec("gradio"):
        shoot_demo()
    for name, settings in SHOTS.items():
        picture = shoot(paths.reference("embedded") / "index.html", *settings)
        if name.endswith(".webp"):  # a photograph-like scene has too many colours for a palette
            Image.open(io.BytesIO(picture)).convert("RGB").save(DOCS / name, quality=65, method=6)
        else:
            (DOCS / name).write_bytes(small_png(picture))


if __name__ == "__main__":
    typer.run(main)
