"""The picture of a report that the README shows: a latent in the browser of latents, without the text it fires on.

    python recipes/feb_diffing_jumprelu.py --null embedded:control
    python scripts/picture_report.py runs/feb_diffing_jumprelu

Needs Chromium and its driver. The text is left out because it was written by others: it is read from installed
packages, and is theirs.
"""

import base64
import shutil
import sys
from pathlib import Path

import tyro

WIDTH = 1280
WAIT = 20.0  # seconds for the page to draw itself
# Where the list of latents begins, and how far below it the examples of the one that is shown; null until it is drawn.
PART = """
const top = document.querySelector("#latents").getBoundingClientRect().top;
const titles = [...document.querySelectorAll("#latent h4")];
const examples = titles.find((title) => title.textContent.startsWith("Where it fires"));
return examples ? [top + window.scrollY, examples.getBoundingClientRect().top - top] : null;
"""


def main(run: tyro.conf.Positional[Path], latent: int | None = None, output: Path = Path("docs/report.png")) -> None:
    """Open the report of a run and write the picture.

    Args:
        run: folder of the run.
        latent: which one is shown; the first in the list, the most exclusive, if not given.
        output: where the picture goes.
    """
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        size = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((run / "report.html").absolute().as_uri() + ("" if latent is None else f"#latent={latent}"))
        WebDriverWait(browser, WAIT).until(lambda page: page.execute_script("return !!document.querySelector('.row')"))
        if latent is None:
            browser.execute_script("document.querySelector('.row').click()")
        top, height = WebDriverWait(browser, WAIT).until(lambda page: page.execute_script(PART))
        clip = {"x": 0, "y": top, "width": WIDTH, "height": height, "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        output.write_bytes(base64.b64decode(shot["data"]))
    finally:
        browser.quit()


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
