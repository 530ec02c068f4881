"""The page: everything of a run is on it, and nothing of a run can break out of it."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_runs import save_judgement

from crosscode.report import figures_of, read_run, write_report
from crosscode.report.page import browser_data, number, said

HERE = Path(__file__).parent


class Page(HTMLParser):
    """Tags, text outside scripts, and what each script holds."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text: str) -> None:
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script":
            key = attributes.get("id") or f"{len(self.scripts)}"
            self.scripts[key] = self.scripts.get(key, "") + text
        else:
            self.text += text

    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts["data"])


@pytest.fixture(scope="module")
def folder(run_of: Callable[..., Path]) -> Path:
    return run_of(300, 200)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_no_text_of_a_run_becomes_markup(page: Page) -> None:
    """Names of models and recipes, and vocabularies with tags, quotes and comments, are text and nothing else."""
    assert [attributes.get("id") for tag, attributes in page.tags if tag == "script"] == [None, "figures", "data", None]
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in page.tags)
    assert "<b>base</b>" in page.text
    assert "tuned & 'co'" in page.text
    assert "made <i>up</i>" in page.text
    texts = page.data()["texts"]
    for text in ("</script><script>alert(1)</script>", "<!--", '"', "\\", "\u2028", "\n"):
        assert text in texts
    assert not re.search(r"[<>&'\u2028]", page.scripts["data"])


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    """No address is loaded: scripts, styles and pictures are inside."""
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_every_latent_is_listed_and_examples_are_the_evaluations_own(page: Page, folder: Path) -> None:
    """Numbers to four digits; an example's strongest token, its shades and its place in the window."""
    run, data = read_run(folder), page.data()
    assert len(data["kind"]) == len(data["columns"]["rho"]) == 300
    latents, examples = run.evaluation.latents, run.evaluation.examples
    assert examples is not None
    torch.testing.assert_close(torch.tensor(data["columns"]["density"]), latents["density_L"], rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.tensor(data["norms"]), latents["norms_LXo"].flatten(1), rtol=1e-2, atol=0)
    latent = int(examples.latents_E[3])
    shown = data["examples"][str(latent)]
    assert len(shown) == 8
    assert [drawn for drawn, *_ in shown] == [0] * 6 + [1] * 2
    for (_, at, tokens, levels), tokens_W, values_W in zip(shown, examples.tokens_EKW[3], examples.values_EKW[3]):
        kept = tokens_W >= 0
        read = [run.evaluation.texts[id_] for id_ in tokens_W[kept].tolist()]
        assert [data["texts"][token] for token in tokens] == read
        assert tokens[at] == latent % 100
        strongest = latents["max_L"][latent]
        assert levels == (values_W[kept] / strongest * 99).ceil().int().tolist()


def test_kinds_of_latents_are_those_of_the_verdicts(folder: Path) -> None:
    """Beyond the cut-off and confirmed, not confirmed, tied, silent, or in both; every latent is of one kind."""
    run = read_run(folder)
    data = browser_data(run)
    names = [data["kinds"][kind]["name"] for kind in data["kind"]]
    latents = run.evaluation.latents
    for latent, name in enumerate(names):
        rho, silent = float(latents["relative_norm_L"][latent]), latents["count_L"][latent] == 0
        own = int(rho >= 0.5)
        # beta_other / beta_own, as the ratios are made
        nu_error = latents["beta_error_other_LM"][latent, own] / latents["beta_error_own_LM"][latent, own]
        nu_recon = latents["beta_recon_other_LM"][latent, own] / latents["beta_recon_own_LM"][latent, own]
        if silent:
            wanted = "never fired here"
        elif latents["shared_L"][latent]:
            wanted = "shared by construction"
        elif 0.1 < rho < 0.9:
            wanted = "in both"
        elif nu_error < 0.2 and nu_recon < 0.5:
            wanted = f"only in {run.models[own]}"
        else:
            wanted = f"towards {run.models[own]}, not confirmed"
        assert name == wanted, latent


def test_the_null_control_sets_cut_offs_and_is_told(run_of: Callable[..., Path], tmp_path: Path) -> None:
    """Its verdicts, its rate of false positives and its cut-offs stand in the place of the classical ones."""
    folder = run_of(300, 10)
    save_judgement(folder, 300)
    run = read_run(folder)
    assert run.cut_offs["relative_norm"] == [0.3, 0.7]
    page = Page(write_report(folder, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "6 of 240 latents are called exclusive" in page.text
    assert page.text.count("null control") >= 4
    data = page.data()
    assert [data["kinds"][data["kind"][latent]]["name"] for latent in (107, 108)] == [
        f"only in {model}" for model in run.models
    ]
    shapes = figures_of(run)["relative_norm"].layout.shapes
    assert [shape.x0 for shape in shapes] == [0.3, 0.7]


def test_figures_say_what_the_files_say(folder: Path) -> None:
    """Bars add up to the free latents, points are clipped and carry their latent, curves are the rows."""
    run = read_run(folder)
    figures = figures_of(run)
    curves, of_all = {"loss", "fvu", "l0"}, {"density", "sites"}
    assert set(figures) == curves | of_all | {"relative_norm", "decoder_cosine", "latent_scaling"}
    assert sum(figures["relative_norm"].data[0].y) == int(run.eligible_L().sum())
    assert list(figures["loss"].data[0].x) == [1, 20, 40]
    assert list(figures["loss"].data[0].y) == pytest.approx([1, 0.05, 0.025])
    points = figures["latent_scaling"].data
    assert sum(len(trace.x) for trace in points) == int(run.eligible_L().sum())
    for trace in points:
        assert all(-0.4 <= x <= 1.6 for x in trace.x)
        for (latent, rho, *_), y in zip(trace.customdata, trace.y):
            own = int(float(run.evaluation.latents["relative_norm_L"][latent]) >= 0.5)
            scaling = run.evaluation.scaling
            assert scaling is not None
            assert y == pytest.approx(float(scaling[own].nu_error_L[latent].clamp(-0.4, 1.6)), abs=1e-5)
            assert rho == pytest.approx(float(run.evaluation.latents["relative_norm_L"][latent]), abs=1e-3)


def test_a_coder_of_one_model_has_no_part_on_differences(run_of: Callable[..., Path]) -> None:
    """Its latents are listed all the same."""
    folder = run_of(60, 40, ("base",))
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert not any(attributes.get("id") == "diffing" for _, attributes in page.tags)
    assert "rho" not in page.data()["columns"]
    assert set(figures_of(folder)) == {"loss", "fvu", "l0", "density", "sites"}


def test_a_large_run_stays_small(run_of: Callable[..., Path]) -> None:
    """10,000 latents with the default number of examples: less than 20 MB."""
    page = write_report(run_of(10_000, 1_000))
    assert page.stat().st_size < 20e6


def test_what_is_missing_is_not_shown(run_of: Callable[..., Path]) -> None:
    """A folder with nothing but an evaluation still has a report."""
    folder = run_of(60, 5)
    for file in (folder / "metrics.jsonl", folder / "summary.json", folder / "evaluation" / "examples.safetensors"):
        file.unlink()
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert page.data()["examples"] == {}
    assert "loss" not in json.loads(page.scripts["figures"])


def test_parts_are_told_as_one_would_write_them() -> None:
    """What is off or not set is left out; a part inside a part is named."""
    part = {"type": "PreActivation", "jumprelu": {"type": "JumpReLU", "threshold": 1.1}, "norm": "l2", "after": None}
    assert said(part) == "PreActivation(jumprelu=JumpReLU, norm=l2)"
    assert said([{"type": "ClipNorm", "max_norm": 1.0, "foreach": False}]) == "(ClipNorm(max_norm=1.0))"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.12345, "0.123"), (12345.6, "12,346"), (0.0, "0"), (float("nan"), "–"), (1.5e-7, "1.50e-07"), (-2.0, "-2.00")],
)
def test_numbers_are_read_easily(value: float, shown: str) -> None:
    """Three digits that say something."""
    assert number(value) == shown
