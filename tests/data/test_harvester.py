"""Several models at several hookpoints, with what training leaves out masked away."""

import pytest
import torch

from crosscode.data import Harvester, LanguageModel, TokenSequences
from crosscode.data.token_sequences import TokenSequence
from crosscode.errors import BadInput

BOS, EOS = 0, 1


def sequence(tokens, documents=None, index=0):
    return TokenSequence(index, torch.tensor(tokens), torch.tensor(documents or [0] * len(tokens)))


def test_any_object_with_the_attributes_is_a_language_model(fake_model):
    """A model of a user's own needs no base class."""
    assert isinstance(fake_model(), LanguageModel)
    assert fake_model.__mro__ == (fake_model, object)


def test_activations_stand_at_their_model_and_hookpoint(fake_model):
    """One forward pass per model gives acts_NMPD in the order that was asked for."""
    models = [fake_model("one"), fake_model("two", widths={"b": 3, "a": 3})]

    harvest = Harvester(models, ["b", "a"], drop_first=0).harvest([sequence([5, 6])])

    third = torch.tensor([[1 + 1 / 3, 1 / 3], [1 / 3, 1 + 1 / 3]])
    torch.testing.assert_close(harvest.acts_NMPD[:, :, :, 2], third.expand(2, 2, 2))
    assert harvest.acts_NMPD[:, 0, 0, 0].tolist() == [5, 6]
    assert [len(model.harvested) for model in models] == [1, 1]


def test_different_widths_are_padded_with_zeros(fake_model):
    """Models of 2 and 5 coordinates are harvested together (spec fault 47), and the real widths are told."""
    narrow, wide = fake_model("narrow", widths={"a": 2, "b": 3}), fake_model("wide", widths={"a": 5, "b": 4})
    harvester = Harvester([narrow, wide], ["a", "b"], drop_first=0)

    acts_NMPD = harvester.harvest([sequence([5, 6])]).acts_NMPD

    assert harvester.widths_MP == ((2, 3), (5, 4))
    assert acts_NMPD.shape == (2, 2, 2, 5)
    assert (acts_NMPD != 0).sum(-1)[1].tolist() == [[2, 3], [5, 4]]


def test_models_of_different_dtype_are_gathered_without_loss(fake_model):
    """bfloat16 beside float32 becomes float32, bit for bit."""
    models = [fake_model("half", dtype=torch.bfloat16), fake_model("full")]
    tokens_HS = torch.tensor([[5, 6]])

    acts_HSMPD = Harvester(models, ["a"]).activations(tokens_HS)

    assert acts_HSMPD.dtype == torch.float32
    assert torch.equal(acts_HSMPD[:, :, 0], models[0].harvest(tokens_HS, ["a"]).float())
    assert torch.equal(acts_HSMPD[:, :, 1], models[1].harvest(tokens_HS, ["a"]))


def test_special_tokens_first_positions_and_padding_are_left_out(fake_model):
    """Each by its own option (spec fault 45); padding always."""
    sequences = [sequence([BOS, 5, 6, EOS, 7, EOS], [-1, 0, 0, -1, 1, -2])]

    def kept(**options):
        return Harvester(fake_model(), "a", **options).harvest(sequences).tokens_N.tolist()

    assert kept() == [5, 6, 7]
    assert kept(drop_first=3) == [EOS, 7][1:]
    assert kept(drop_special=False, drop_first=0) == [BOS, 5, 6, EOS, 7]


def test_a_harvest_tells_where_each_token_stood(fake_model):
    """Ids, positions, documents and sequences stay beside their activations through the mask."""
    sequences = [sequence([BOS, 5, 6], [-1, 0, 0], index=4), sequence([BOS, EOS, 8], [-1, -1, 2], index=9)]

    harvest = Harvester(fake_model(), ["a"]).harvest(sequences)

    assert harvest.tokens_N.tolist() == harvest.acts_NMPD[:, 0, 0, 0].tolist() == [5, 6, 8]
    assert harvest.positions_N.tolist() == harvest.acts_NMPD[:, 0, 0, 1].tolist() == [1, 2, 2]
    assert harvest.documents_N.tolist() == [0, 0, 2]
    assert harvest.sequences_N.tolist() == [4, 4, 9]
    assert len(harvest) == 3


def test_norm_outliers_of_any_model_are_left_out(fake_model):
    """A token whose norm is more than the multiple of the median, in one model at one hookpoint, goes everywhere."""
    tokens = [BOS, 5, 6, 5, 63, 6, 5]

    def kept(multiple):
        harvester = Harvester([fake_model("x"), fake_model("y")], ["a", "b"], max_norm_multiple=multiple)
        return harvester.harvest([sequence(tokens)]).tokens_N.tolist()

    assert kept(None) == kept(100.0) == tokens[1:]
    assert kept(4.0) == [5, 6, 5, 6, 5]


def test_streams_are_harvested_some_at_a_time_to_the_last(fake_model, documents):
    """The last harvest may be of fewer sequences; nothing is lost."""
    model = fake_model()
    sequences = list(TokenSequences(documents(30), model, sequence_length=16))
    harvester = Harvester(model, ["a"], sequences_at_once=4)

    tokens = torch.cat([harvest.tokens_N for harvest in harvester.over(sequences)])

    one_by_one = torch.cat([harvester.harvest([each]).tokens_N for each in sequences])
    assert tokens.tolist() == one_by_one.tolist()
    assert [len(t) for t in model.harvested[: -(-len(sequences) // 4)]][:-1] == [4] * (-(-len(sequences) // 4) - 1)


def test_different_vocabularies_are_refused_with_how_they_differ(fake_model):
    """Compared token by token, not by special tokens alone (spec fault 46)."""
    vocabulary = fake_model().vocabulary
    swapped = vocabulary | {"w5": 9, "w6": 8}
    renamed = {("new" if token == "w60" else token): id_ for token, id_ in vocabulary.items()}
    longer = vocabulary | {"extra": 64}

    for other, message in {
        "swapped": (swapped, r"2 have other ids, as 'w5' \(8 and 9\), 'w6' \(9 and 8\)\.$"),
        "renamed": (renamed, r"1 are only in the first, as 'w60'; 1 are only in the second, as 'new'\.$"),
        "longer": (longer, r"'fake' and 'longer' have different vocabularies: 64 and 65 tokens; .*'extra'"),
    }.items():
        with pytest.raises(BadInput, match=message[1]):
            Harvester([fake_model(), fake_model(other, vocabulary=message[0])], ["a"])


def test_what_is_special_to_one_model_is_left_out_for_all(fake_model):
    """A chat model ends its turns with another token than its base: that is no different vocabulary."""
    chat = fake_model("chat")
    chat.special_ids = frozenset({0, 7})

    harvest = Harvester([fake_model("base"), chat], ["a"]).harvest([sequence([BOS, 5, 7, EOS, 6])])

    assert harvest.tokens_N.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("hookpoints", "options", "message"),
    [
        (["a", "c"], {}, "hookpoint 'c' is unknown"),
        (["a", "a"], {}, "hookpoints has 'a' twice"),
        ([], {}, "hookpoints is empty"),
        (["a"], {"sequences_at_once": 0}, "sequences_at_once=0 must be at least 1"),
        (["a"], {"drop_first": -1}, "drop_first=-1"),
        (["a"], {"max_norm_multiple": 1.0}, "max_norm_multiple=1.0 must be greater than 1"),
    ],
)
def test_what_cannot_be_harvested_is_refused_before_any_forward_pass(fake_model, hookpoints, options, message):
    """Names, duplicates and numbers."""
    model = fake_model()

    with pytest.raises(BadInput, match=message):
        Harvester(model, hookpoints, **options)

    assert model.harvested == []


def test_no_model_and_one_model_twice_are_refused(fake_model):
    """A crosscoder between a model and itself is a mistake."""
    model = fake_model()
    with pytest.raises(BadInput, match="models is empty"):
        Harvester([], ["a"])
    with pytest.raises(BadInput, match="models has 'fake' twice"):
        Harvester([model, model], ["a"])
