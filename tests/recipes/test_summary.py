"""What is printed at the end of a run: figures of living latents, lines that can be read."""

from typing import Any

import pytest
import torch

import crosscode.run
from crosscode.evaluation import Example
from crosscode.report.terminal import concordance, histogram


def test_dead_latents_are_left_out_of_what_is_printed(
    run_small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary, the curves and the printed decoders agree on who is dead."""
    given: list[Any] = []
    print_summary = crosscode.run.print_summary

    def watch(summary, results, dead_L, trainer, held_out, directory) -> None:
        dead_L[8:12] = True  # exclusive latents that are dead whatever their norm
        given.extend([dead_L, trainer])
        print_summary(summary, results, dead_L, trainer, held_out, directory)

    monkeypatch.setattr(crosscode.run, "print_summary", watch)
    arguments = {"n_shared": 8, "k_shared": 3, "k_exclusive": 3, "dead_after": 0.5, "num_steps": 4, "lr": 1e-2}
    summary = run_small("feb_diffing_topk", n_models=2, **arguments, quiet=False)
    dead_L, trainer = given
    silent_L = trainer.state.tokens_since_fired_L >= 0.5 * 4 * 128
    assert summary["dead"] == silent_L.double().mean().item()
    assert torch.equal(dead_L[12:], silent_L[12:])
    shown = capsys.readouterr().out
    assert f"the {int((~dead_L[8:]).sum())} living exclusive latents" in shown
    listed = [int(line.split()[1].rstrip(",")) for line in shown.splitlines() if line.startswith("  latent ")]
    assert 0 < len(listed) == len(set(listed))
    assert not dead_L[listed].any()
    assert min(listed) >= 8


def test_tokens_stand_below_one_another() -> None:
    """However long its context, an example is one line with the token in its column, blanks outside the brackets."""
    examples = [
        Example(3.25, "", "The", " end"),
        Example(12.5, " word" * 20, " cat", " sat\non " + "mats " * 20),
        Example(1.0, "x", "\n", "y"),
        Example(1.0, "x", "  ", "y"),
    ]
    lines = [concordance(example) for example in examples]
    assert len({line.index("⟦") for line in lines}) == 1
    assert all(len(line) < 80 and "\n" not in line for line in lines)
    assert lines[0].endswith("⟦The⟧ end")
    assert "word ⟦cat⟧ sat↵on" in lines[1]
    assert "⟦↵⟧" in lines[2]
    assert "⟦  ⟧" in lines[3]


def test_a_histogram_is_as_high_as_its_counts() -> None:
    """Bars are in proportion, 0.5 has the middle column, and the largest count is written beside the highest."""
    rows = histogram(torch.tensor([0.5] * 60 + [1.0] * 30), n_bins=21, height=6).splitlines()
    columns = list(zip(*(row[row.index("│") + 1 :].ljust(21) for row in rows[:6])))
    assert [sum(cell == "█" for cell in column) for column in columns] == [0] * 10 + [6] + [0] * 9 + [3]
    assert rows[0].split()[0] == "60"
    assert rows[-1].index("0.5") + 1 == rows[0].index("█")
    assert rows[-1].split() == ["0", "0.5", "1"]
    assert histogram(torch.tensor([])).splitlines()[0].split()[0] == "1"
