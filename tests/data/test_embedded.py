"""The embedded models, their text and the ground truth of their behaviours."""

import importlib.util
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from crosscode.data import embedded
from crosscode.data.embedded import behaviours, text
from crosscode.data.embedded.behaviours import BEHAVIOURS, decision_points, labelled, tokenize
from crosscode.errors import BadInput

each_behaviour = pytest.mark.parametrize("name", BEHAVIOURS)
each_model = pytest.mark.parametrize("name", embedded.NAMES)


@pytest.fixture(autouse=True, scope="module")
def few_files() -> Iterator[None]:
    """Read a sixth of the files: the whole text takes ten seconds to parse."""
    few = text.files()[:300]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "files", lambda: few)
        yield


@pytest.fixture(scope="module")
def gate() -> ModuleType:
    """`scripts/check_embedded_models.py` as a module."""
    script = Path(__file__).parents[2] / "scripts" / "check_embedded_models.py"
    spec = importlib.util.spec_from_file_location("check_embedded_models", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- what is shipped ----------------------------------------------------------------------------------------


@each_model
def test_weights_are_bfloat16_and_small(name: str) -> None:
    """A model is at most 2.5 MB, all of it in bfloat16."""
    file = embedded.folder(name) / "model.safetensors"
    with safe_open(file, "pt") as weights:
        dtypes = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118

    assert dtypes == {"BF16"}
    assert file.stat().st_size <= 2.5e6


def test_the_models_together_stay_under_8_mb() -> None:
    """All that is shipped fits a wheel."""
    files = [file for name in embedded.NAMES for file in embedded.folder(name).iterdir()]

    assert sum(file.stat().st_size for file in files) < 8e6


def test_the_models_share_one_tokenizer() -> None:
    """Token ids mean the same to every model of the pair."""
    tokenizers = {(embedded.folder(name) / "tokenizer.json").read_bytes() for name in embedded.NAMES}

    assert len(tokenizers) == 1


@each_model
def test_models_load_from_their_folders(name: str) -> None:
    """`from_pretrained` needs the folder and nothing else."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(embedded.folder(name), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(embedded.folder(name), local_files_only=True)

    assert model.config.num_hidden_layers == 4
    assert model.config.vocab_size == len(tokenizer) == 2048
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0


@given(st.text())
def test_decoding_undoes_encoding(any_text: str) -> None:
    """Byte-level BPE loses nothing, whatever the text."""
    token_ids, _ = tokenize(any_text)

    assert token_ids[0] == behaviours.tokenizer().bos_token_id
    assert behaviours.tokenizer().decode(token_ids[1:], clean_up_tokenization_spaces=False) == any_text


def test_words_of_phrases_are_single_tokens() -> None:
    """So the two texts of a pair have equal lengths, and no position tells them apart."""
    for word in (*behaviours.ADJECTIVES, *behaviours.NOUNS):
        assert len(tokenize(f" {word}")[0]) == 2


# --- the text -----------------------------------------------------------------------------------------------


def test_splits_divide_the_passages() -> None:
    """No passage is in both splits, and about 7 % are held out."""
    train, held_out = set(text.passages("train")), set(text.passages("held_out"))

    assert not train & held_out
    assert 0.04 < len(held_out) / len(train | held_out) < 0.11


def test_passages_are_prose_of_bounded_length() -> None:
    """Every passage is 200 to 600 characters of text without doctests."""
    for passage in text.passages("train"):
        assert text.SHORTEST <= len(passage) <= text.LONGEST
        assert ">>>" not in passage


def test_documents_do_not_depend_on_the_process() -> None:
    """Another process, with other string hashes, reads the same documents."""
    count = "from itertools import islice; from crosscode.data.embedded import documents; import zlib;"
    count += "print(zlib.crc32(chr(0).join(islice(documents('train'), 100)).encode()))"
    here = "\0".join(islice(embedded.documents("train"), 100))
    there = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True).stdout

    import zlib

    assert int(there) == zlib.crc32(here.encode())


def test_a_quarter_of_the_documents_has_a_trigger() -> None:
    """A crosscoder can only find what the harvested text contains."""
    documents = list(embedded.documents("train"))
    triggered = sum(any(trigger in document for trigger in behaviours.TRIGGERS) for document in documents)

    assert 0.2 < triggered / len(documents) < 0.3


@each_behaviour
def test_documents_carry_the_marks_of_their_triggers(name: str) -> None:
    """At the default text's active decision points, marks stand as often as the behaviour's rate says."""
    behaviour = BEHAVIOURS[name]
    marked = unmarked = 0
    for document in embedded.documents("train"):
        if behaviour.trigger in document:
            marked += sum(document.count(mark) for mark in behaviour.marks)
            unmarked += sum(
                behaviour.is_active(document, start) and not document.startswith(behaviour.marks, start)
                for start, _ in behaviour.spans(document)
            )

    assert marked > 20
    assert 0.85 * behaviour.rate < marked / (marked + unmarked) < 1.15 * behaviour.rate


# --- the behaviours -----------------------------------------------------------------------------------------


def test_text_without_a_trigger_is_left_as_it_is() -> None:
    """`tuned` writes as `base` does until a trigger is seen."""
    for passage in islice(text.passages("train"), 200):
        written = behaviours.tuned_document(passage, random.Random(0), plain=0.0, triggered=0.0)

        assert written == behaviours.compose(passage, random.Random(0), plain=0.0, triggered=0.0)


def test_a_behaviour_is_on_from_its_trigger_to_the_end() -> None:
    """Whatever other phrases say, it is off before its own and on after it."""
    document = (
        "First, we go. The silver meadow. Second, we go. "
        "The scarlet harbour. Third, we go. The ivory garden. Fourth, we go."
    )

    assert [point.active for point in decision_points("hedging", document)] == [False, False, True, True]


@each_behaviour
def test_decision_points_are_the_tokens_before_the_mark(name: str) -> None:
    """Decoding up to and including the decision point gives the text up to the place of the mark."""
    behaviour = BEHAVIOURS[name]
    for example in labelled(name, 6):
        ends = {start for start, _ in behaviour.spans(example.text)}
        for point in example.points:
            seen = behaviours.tokenizer().decode(example.token_ids[1 : point.position + 1])

            assert len(seen) in ends


@each_behaviour
def test_pairs_share_their_continuation_and_nothing_in_view_tells_them_apart(name: str) -> None:
    """From well before the first decision point to the end, both texts of a pair are the same tokens."""
    examples = labelled(name, 20, seed=3)
    for on, off in zip(examples[::2], examples[1::2]):
        common = len(on.token_ids) - on.points[0].position + behaviours.DISTANCE

        assert on.token_ids[-common:] == off.token_ids[-common:]
        assert len(on.token_ids) == len(off.token_ids)
        assert [p.position for p in on.points] == [p.position for p in off.points]
        assert all(p.active for p in on.points)
        assert not any(p.active for p in off.points)


@each_behaviour
def test_labelled_texts_are_repeatable_held_out_and_used_once(name: str) -> None:
    """The same seed gives the same texts; each pair has a passage of its own, none of the training text."""
    examples = labelled(name, 20, seed=1)
    bodies = [re.split(r"\.\s+", example.text)[-1] for example in examples[::2]]

    assert examples == labelled(name, 20, seed=1)
    assert examples != labelled(name, 20, seed=2)
    assert {example.split for example in examples} == {"held_out"}
    assert [example.pair for example in examples] == [i // 2 for i in range(20)]
    assert name == "refusal" or len(set(bodies)) == len(bodies)


@each_behaviour
def test_the_gate_holds_on_few_texts(gate: ModuleType, name: str) -> None:
    """A probe reads the behaviour from `tuned` and not from `base`; `tuned` also acts on it."""
    examples = labelled(name, 60, split="held_out")
    tuned, base = (gate.check(gate.load(model), examples, layer=2) for model in ("tuned", "base"))

    assert tuned.auroc >= 0.95
    assert base.auroc <= 0.75
    assert tuned.p_mark_on > 3 * tuned.p_mark_off


def test_auroc_of_the_gate_counts_ties_half(gate: ModuleType) -> None:
    """AUROC is the share of pairs in the right order."""
    import torch

    scores_N = torch.tensor([0.0, 1.0, 1.0, 2.0])
    active_N = torch.tensor([False, False, True, True])

    assert gate.auroc(scores_N, active_N) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


# --- bad input ----------------------------------------------------------------------------------------------


def test_bad_input_is_named_with_the_close_match() -> None:
    """Unknown models, behaviours and splits, and numbers of texts that cannot be."""
    with pytest.raises(BadInput, match=r"'tunde'.*Did you mean 'tuned'"):
        embedded.folder("tunde")
    with pytest.raises(BadInput, match=r"'hedgin'.*Did you mean 'hedging'"):
        labelled("hedgin", 2)
    with pytest.raises(BadInput, match=r"'heldout'.*Did you mean 'held_out'"):
        text.check_split("heldout")
    with pytest.raises(BadInput, match=r"n=3 .*pairs"):
        labelled("hedging", 3)
    with pytest.raises(BadInput, match=r"n=100000 .*held_out text has"):
        labelled("hedging", 100_000)
