"""The page in headless Chromium: no error, filters, sorting, keys and links, on wide and narrow screens."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import save_judgement

from crosscode.report import read_run, write_report
from crosscode.report.page import browser_data

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
N = 10_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(run_of: Callable[..., Path]) -> Path:
    folder = run_of(N, 1_000)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def judged(run_of: Callable[..., Path]) -> Path:
    """A run with a null control, whose figures are of more files."""
    folder = run_of(300, 10)
    save_judgement(folder, 300)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    """What the page was given to list."""
    return browser_data(read_run(folder))


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator["Page"]:
    """The page of 10,000 latents, freshly opened; it must have said nothing to the console when the test is over."""
    opened = Page(browser, folder / "report.html")
    yield opened
    assert opened.console() == []


class Page:
    """An open page, asked and told as a reader would."""

    def __init__(self, browser: Any, file: Path, hash: str = "", width: int = 1280, scheme: str = "light") -> None:
        self.browser, self.url = browser, file.as_uri()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(self.url + hash)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def console(self) -> list[dict[str, Any]]:
        return [entry for entry in self.browser.get_log("browser") if entry["level"] != "INFO"]

    def wait(self, condition: str) -> None:
        """Until a JavaScript condition holds; fails after a while."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 30, 0.05).until(lambda _: self.run(f"return {condition}"))

    def draw_all(self) -> None:
        """Scroll through, so that every plot is drawn."""
        self.run("for (const plot of document.querySelectorAll('.plot')) plot.scrollIntoView({behavior: 'instant'})")
        n = self.run("return document.querySelectorAll('.plot').length")
        for i in range(n):
            self.run("document.querySelectorAll('.plot')[arguments[0]].scrollIntoView({behavior: 'instant'})", i)
            self.wait(f"document.querySelectorAll('.plot')[{i}].querySelector('svg') !== null")

    def listed(self) -> list[int]:
        """The latents of the rows that exist, from the top."""
        return self.run("return [...document.querySelectorAll('.row')].map(row => Number(row.dataset.latent))")

    def shown(self) -> str:
        return self.run("return document.querySelector('#shown').textContent")

    def detail(self) -> str:
        return self.run("return document.querySelector('#latent').innerText")

    def set(self, selector: str, value: str) -> None:
        script = "const input = document.querySelector(arguments[0]); input.value = arguments[1];"
        self.run(script + "input.dispatchEvent(new Event('input', {bubbles: true}))", selector, value)

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def press(self, keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(keys).perform()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("run", ["folder", "judged"])
def test_it_opens_and_draws_without_a_word_to_the_console(
    browser: Any, run: str, width: int, scheme: str, request: pytest.FixtureRequest
) -> None:
    """And without anything that sticks out to the side."""
    page = Page(browser, request.getfixturevalue(run) / "report.html", width=width, scheme=scheme)
    page.draw_all()
    assert page.console() == []
    assert page.run("const page = document.documentElement; return page.scrollWidth <= page.clientWidth")
    assert page.run("return document.scripts.length") == 4, "no text has become a script"
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    page.click("#theme")
    assert page.run("return getComputedStyle(document.body).backgroundColor") != ground


def test_only_the_rows_on_the_screen_exist(page: Page) -> None:
    """10,000 latents are listed with a hundred rows at most, at either end of the list."""
    assert page.shown() == "10,000 of 10,000 latents"
    first = page.listed()
    assert 0 < len(first) < 100
    page.run("const list = document.querySelector('#list'); list.scrollTop = list.scrollHeight")
    page.wait(f"!document.querySelector('.row[data-latent=\"{first[0]}\"]')")
    assert 0 < len(page.listed()) < 100


def test_sorting(page: Page, data: dict[str, Any]) -> None:
    """By a number, largest first and then smallest first, what is undefined last; by the latents' own numbers."""
    density = data["columns"]["density"]
    page.click("#heads button[data-name=density]")
    order = sorted(range(N), key=lambda latent: (-density[latent], latent))
    assert page.listed()[:20] == order[:20]
    page.click("#heads button[data-name=density]")
    assert page.listed()[:20] == sorted(range(N), key=lambda latent: (density[latent], latent))[:20]
    page.click("#heads button[data-name=latent]")
    assert page.listed()[:20] == list(range(20))


def test_filters(page: Page, data: dict[str, Any]) -> None:
    """By kind, by ranges and by text, together; reset lists all again."""
    rho, density = data["columns"]["rho"], data["columns"]["density"]
    page.click("#kinds button[data-kind='2']")
    of_kind = [latent for latent in range(N) if data["kind"][latent] == 2]
    assert page.shown() == f"{len(of_kind)} of 10,000 latents"
    assert set(page.listed()) == set(of_kind)
    page.set("input[data-range=rho-to]", "0.05")
    low = [latent for latent in of_kind if rho[latent] <= 0.05]
    assert 0 < len(low) < len(of_kind)
    assert set(page.listed()) == set(low)
    page.click("#reset")
    assert page.shown() == "10,000 of 10,000 latents"
    page.set("input[data-range=density-from]", "0.01")
    page.set("input[data-range=density-to]", "0.1")
    n = sum(0.01 <= share <= 0.1 for share in density)
    assert page.shown() == f"{n:,} of 10,000 latents"
    page.click("#reset")
    page.set("#search", "</SCRIPT>")
    found = {int(latent) for latent in data["examples"] if int(latent) % 100 == 0}
    page.wait(f"document.querySelector('#shown').textContent.startsWith('{len(found)} of')")
    assert set(page.listed()) == found


def test_links(browser: Any, folder: Path, data: dict[str, Any]) -> None:
    """`#latent=` opens that latent, also when the address changes; one that is not there is told."""
    latents = [int(latent) for latent in data["examples"]]
    page = Page(browser, folder / "report.html", f"#latent={latents[7]}")
    assert page.detail().startswith(f"Latent {latents[7]}")
    assert page.run("return document.querySelector('#latents').getBoundingClientRect().top") < 300
    page.run(f"location.hash = 'latent={latents[9]}'")
    page.wait(f"document.querySelector('#latent').innerText.startsWith('Latent {latents[9]}')")
    page.run("location.hash = 'latent=123456'")
    page.wait("document.querySelector('#latent').innerText.includes('There is no latent 123456')")
    assert page.console() == []


def test_keys(page: Page) -> None:
    """j and k walk the list and the address follows; / goes to the search, where j is a letter."""
    first, second, third = page.listed()[:3]
    assert page.detail().startswith(f"Latent {first}")
    page.press("jj")
    assert page.detail().startswith(f"Latent {third}")
    assert page.run("return location.hash") == f"#latent={third}"
    page.press("k")
    assert page.detail().startswith(f"Latent {second}")
    assert page.run("return document.querySelector('.row[aria-selected=true]').dataset.latent") == str(second)
    page.press("/")
    page.press("j")
    assert page.run("return document.querySelector('#search').value") == "j"
    assert page.detail().startswith(f"Latent {second}")


def test_both_models_stand_side_by_side(browser: Any, folder: Path, data: dict[str, Any]) -> None:
    """Each example once for each model, shaded by what that model gets of it; its hostile texts are text."""
    latent = next(int(latent) for latent in data["examples"] if int(latent) % 100 == 2)  # fires on <img …>
    page = Page(browser, folder / "report.html", f"#latent={latent}")
    examples = page.run("return [...document.querySelectorAll('.example')].map(e => e.dataset.model)")
    assert examples == data["models"] * 8
    marked = page.run("return [...document.querySelectorAll('.example .at')].map(token => token.textContent)")
    assert set(marked) == {"<img src=x onerror=alert(2)>"}
    assert page.run("return document.querySelectorAll('img').length") == 0
    one, other = (sum(data["norms"][latent][m * 2 : m * 2 + 2]) for m in (0, 1))
    shades = page.run(
        "const shade = (token) => parseFloat(token.style.getPropertyValue('--shade'));"
        "return [...document.querySelectorAll('.example .at')].map(shade)"
    )
    assert (shades[0] < shades[1]) == (one < other)
    left, right = page.run(
        "return [...document.querySelectorAll('.example')].slice(0, 2).map(e => e.getBoundingClientRect().top)"
    )
    assert left == right
    assert page.console() == []


def test_a_point_of_the_scatter_opens_its_latent(page: Page) -> None:
    """A click on latent scaling's plot leads to the browser."""
    page.run("document.querySelector('[data-figure=latent_scaling]').scrollIntoView({behavior: 'instant'})")
    page.wait("document.querySelector('[data-figure=latent_scaling] .points path') !== null")
    latent = page.run(
        "const plot = document.querySelector('[data-figure=latent_scaling]');"
        "const [customdata] = plot.data[0].customdata; plot.emit('plotly_click', {points: [{customdata}]});"
        "return customdata[0]"
    )
    page.wait(f"document.querySelector('#latent').innerText.startsWith('Latent {latent}')")


def test_the_list_is_copied_as_text(page: Page, data: dict[str, Any]) -> None:
    """All that is listed, in its order, as tab-separated text under a head, with hostile texts as they are."""
    clipboard = "{writeText: async (text) => { window.copied = text; }}"
    page.run(f"Object.defineProperty(navigator, 'clipboard', {{value: {clipboard}}})")
    page.click("#kinds button[data-kind='2']")
    page.click("#heads button[data-name=density]")
    page.click("#copy")
    page.wait("window.copied !== undefined")
    head, *rows = (line.split("\t") for line in page.run("return window.copied").split("\n"))
    assert head[:3] == ["kind", "latent", "rho"]
    of_kind = [latent for latent in range(N) if data["kind"][latent] == 2]
    density = data["columns"]["density"]
    assert [int(row[1]) for row in rows] == sorted(of_kind, key=lambda latent: (-density[latent], latent))
    assert {row[0] for row in rows} == {data["kinds"][2]["name"]}
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        assert float(cells["density"]) == pytest.approx(density[int(cells["latent"])])
    page.wait(f"document.querySelector('#copy').textContent === 'copied {len(rows)} rows'")


def test_nothing_takes_long(page: Page) -> None:
    """Sorting, filtering and walking among 10,000 latents, layout included."""
    took = page.run(
        """
        const clicked = (selector) => () => document.querySelector(selector).click();
        const typed = (selector, value) => () => {
          const input = document.querySelector(selector);
          input.value = value;
          input.dispatchEvent(new Event("input", {bubbles: true}));
        };
        const actions = [
          ...["density", "rho", "nu_error", "norm", "text"].map((name) => clicked(`#heads button[data-name=${name}]`)),
          clicked("#kinds button[data-kind='2']"), clicked("#kinds button[data-kind='2']"),
          typed("input[data-range=density-from]", "0.001"), typed("input[data-range=rho-to]", "0.6"), clicked("#reset"),
          ...Array(20).fill().map(() => () => document.querySelector(".row:nth-child(9)").click()),
        ];
        return actions.map((act) => {
          const start = performance.now();
          act();
          document.body.offsetHeight;  // the layout
          return performance.now() - start;
        });
        """
    )
    assert sorted(took)[len(took) // 2] < 100, took
    assert max(took) < 1000, took


def test_a_cross_layer_transcoder_shows_what_it_reads_and_writes(browser: Any, run_of: Callable[..., Path]) -> None:
    """The layer that each latent reads, in the list and of the one shown, and its norm at every layer written."""
    page = Page(browser, write_report(run_of(60, 40, ("base",), cross_layer=True)))
    page.click("#heads button[data-name=source]")
    heads = page.run("return [...document.querySelectorAll('#heads button')].map(head => head.dataset.name)")
    column = heads.index("source")
    cells = page.run(f"return [...document.querySelectorAll('.row')].map(row => row.children[{column}].textContent)")
    assert set(cells[:20]) == {"layer 1"}
    page.click("#heads button[data-name=source]")
    cells = page.run(f"return [...document.querySelectorAll('.row')].map(row => row.children[{column}].textContent)")
    assert set(cells[:20]) == {"layer 2"}
    page.click(".row")
    assert "blocks.2.hook_resid_post" in page.detail().split("WRITES")[0]
    norms = page.run("return [...document.querySelectorAll('.bars span:not(.label)')].map(norm => norm.textContent)")
    assert norms[0] == "0"
    assert float(norms[1]) > 0
    page.draw_all()
    assert page.console() == []
