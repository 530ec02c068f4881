"""What holds exactly at a border: an outlier, a held-out document, a context, a bound of an argument."""

import pytest
import torch

from crosscode.data import Dataloader, Harvester, TokenSequences
from crosscode.data.token_sequences import TokenSequence
from crosscode.errors import BadInput


def test_a_norm_of_exactly_the_multiple_of_the_median_is_no_outlier(fake_model):
    """At most 4 times the median is kept; the median is of the tokens that are left by then."""

    class Ids(fake_model):
        def harvest(self, tokens_HS, hookpoints):
            return tokens_HS.float()[..., None, None]

    tokens = [0, 5, 5, 20, 21, 5, 1]  # BOS and EOS are left out before
    sequence = TokenSequence(0, torch.tensor(tokens), torch.zeros(7, dtype=torch.int64))
    harvest = Harvester(Ids(widths={"a": 1}), "a", max_norm_multiple=4.0).harvest([sequence])
    assert harvest.tokens_N.tolist() == [5, 5, 20, 5]


def test_every_twentieth_document_is_held_out(fake_model):
    """The 20th, the 40th and so on, by default; with every second, the second is the first."""

    def documents_of(**options):
        packed = TokenSequences([f"w{i}" for i in range(60)], fake_model(), sequence_length=2, short="pad", **options)
        return sorted({d for sequence in packed.in_order() for d in sequence.documents_S.tolist() if d >= 0})

    assert documents_of(split="held_out") == [19, 39, 59]
    assert documents_of(split="train") == [i for i in range(60) if i % 20 != 19]
    assert documents_of(split="held_out", held_out_every=2) == list(range(1, 60, 2))


def test_a_sequence_may_be_as_long_as_the_context(fake_model):
    """And no longer; two tokens at the least."""
    TokenSequences(["w1"], fake_model(context_length=8), sequence_length=8)
    TokenSequences(["w1"], fake_model(), sequence_length=2)
    for length, context in ((9, 8), (1, None)):
        with pytest.raises(BadInput, match=f"sequence_length={length}"):
            TokenSequences(["w1"], fake_model(context_length=context), sequence_length=length)


def test_one_first_position_is_left_out_by_default(fake_model):
    """Whatever token stands there, special or not; special tokens by default as well."""
    sequence = TokenSequence(0, torch.tensor([5, 6, 0, 7]), torch.zeros(4, dtype=torch.int64))
    assert Harvester(fake_model(), "a").harvest([sequence]).tokens_N.tolist() == [6, 7]
    assert Harvester(fake_model(), "a", drop_first=0).harvest([sequence]).tokens_N.tolist() == [5, 6, 7]


def test_the_smallest_numbers_are_allowed(fake_model, documents):
    """One sequence at once, batches of one token, a buffer of one batch."""
    sequences = TokenSequences(documents(6), fake_model(), sequence_length=2, held_out_every=2, shuffle_sequences=1)
    harvester = Harvester(fake_model(), "a", sequences_at_once=1, drop_first=0)
    data = Dataloader(sequences, harvester, 1, shuffle_buffer=1, epochs=1)
    assert {len(batch) for batch in data} == {1}
