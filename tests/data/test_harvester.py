"""Several models at several hookpoints, with what training leaves out masked away."""

import math

import pytest
import torch

import crosscode.data.harvester as harvester_module
from crosscode.data import Harvest, Harvester, LanguageModel, TokenCounts, TokenSequences
from crosscode.data.harvester import finite_enough, sequences_that_fit
from crosscode.data.token_sequences import TokenSequence
from crosscode.errors import BadInput, NumericalError

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


class Spoilt:
    """A model of our own, around a fake one: `spoil(tokens_HS, acts_HSPD)` changes its activations in place."""

    def __init__(self, model, spoil):
        self._model, self._spoil = model, spoil

    def __getattr__(self, name):
        return getattr(self._model, name)

    def harvest(self, tokens_HS, hookpoints):
        acts_HSPD = self._model.harvest(tokens_HS, hookpoints)
        self._spoil(tokens_HS, acts_HSPD)
        return acts_HSPD


def spoilt(model, token, value, column=0):
    """A model whose activations of one token are spoilt at one hookpoint."""

    def spoil(tokens_HS, acts_HSPD):
        acts_HSPD[tokens_HS == token, column, 0] = value

    return Spoilt(model, spoil)


def test_massive_activations_are_left_out_unless_asked_for(fake_model):
    """By default: norms above 10 times the median, wherever they stand; None keeps them, and then nothing is lost."""
    tokens = [BOS, 5, 6, 5, 7, 6, 5]
    model = spoilt(fake_model(), 7, 90.0)  # 15 x the median; SmolLM2's are 20 to 125 x

    def kept(**options):
        return Harvester(model, ["a", "b"], **options).harvest([sequence(tokens)]).tokens_N.tolist()

    assert kept() == [5, 6, 5, 6, 5]
    assert kept(max_norm_multiple=None) == kept(max_norm_multiple=20.0) == tokens[1:]


def test_every_token_is_counted_once_under_its_first_reason(fake_model):
    """Padding aside: the first position though special, special though an outlier, not finite though enormous."""
    model = spoilt(spoilt(fake_model(), 8, math.inf), EOS, 900.0)
    sequences = [
        sequence([BOS, 5, 6, EOS, 8, 63, 5, EOS], [-1, 0, 0, -1, 1, 1, 1, -2], index=0),
        sequence([9, 5, 6, BOS, 5, 6, 5, 6], index=1),
    ]

    harvest = Harvester(model, "a", max_norm_multiple=4.0, skip_not_finite=True).harvest(sequences)

    assert harvest.counts == TokenCounts(kept=9, first_positions=2, special=2, not_finite=1, outliers=1)
    assert harvest.counts.read == 15
    assert len(harvest) == harvest.counts.kept
    assert harvest.tokens_N.tolist() == [5, 6, 5, 5, 6, 5, 6, 5, 6]


@pytest.mark.parametrize("multiple", [10.0, None])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(fake_model, multiple, value):
    """Model, hookpoint, document, position and dtype, whichever of two models it is; before, all eight vanished."""
    models = [fake_model("base"), spoilt(fake_model("tuned", dtype=torch.float16), 9, value, column=1)]
    sequences = [sequence([BOS, 5, 6, 5], index=i) for i in range(8)]
    sequences[5] = sequence([BOS, 5, 9, 9], [-1, 30, 31, 31], index=5)
    harvester = Harvester(models, ["a", "b"], max_norm_multiple=multiple)

    with pytest.raises(NumericalError) as refused:
        harvester.harvest(sequences)

    said = str(refused.value)
    assert said.startswith(
        "model 'tuned' at b: activations are NaN or infinite (float16) in document 31, position 2 of sequence 5, the "
        "first of 2 such tokens of 24"
    )
    assert "bfloat16 or float32" in said
    assert "--skip-not-finite" in said


@pytest.mark.parametrize("multiple", [10.0, None])
def test_one_bad_sequence_costs_itself_alone(fake_model, multiple):
    """Asked to skip what is not finite: a median over NaN would leave nothing."""
    sequences = [sequence([BOS, 9, 9, 9]) if i == 2 else sequence([BOS, 5, 6, 5]) for i in range(8)]
    model = spoilt(fake_model(), 9, math.nan)

    harvest = Harvester(model, "a", max_norm_multiple=multiple, skip_not_finite=True).harvest(sequences)

    assert harvest.counts == TokenCounts(kept=21, first_positions=8, not_finite=3)
    assert harvest.acts_NMPD.isfinite().all()
    assert "position 1 of sequence" in harvest.not_finite


@pytest.mark.parametrize("multiple", [10.0, None])
def test_what_is_left_out_anyway_may_be_anything(fake_model, multiple):
    """NaN at first positions, special tokens and padding stops nothing, and is no outlier's measure."""
    model = spoilt(spoilt(fake_model(), BOS, math.nan), EOS, math.inf)
    sequences = [sequence([BOS, 5, EOS, 6, EOS], [-1, 0, -1, 1, -2])]

    harvest = Harvester(model, "a", max_norm_multiple=multiple).harvest(sequences)

    assert harvest.tokens_N.tolist() == [5, 6]
    assert harvest.counts == TokenCounts(kept=2, first_positions=1, special=1)


def test_large_is_not_infinite(fake_model):
    """The square of 1e30 overflows, the number does not: it is an outlier, or kept."""
    model = spoilt(fake_model(), 9, 1e30)
    sequences = [sequence([BOS, 5, 9, 6, 5])]

    assert Harvester(model, "a").harvest(sequences).counts.outliers == 1
    assert Harvester(model, "a", max_norm_multiple=None).harvest(sequences).counts.kept == 4


@pytest.mark.parametrize(
    ("norms", "n_kept"),
    [
        ([1.0], 1),
        ([1.0, 30.0], 2),  # which of the two would be the outlier?
        ([1.0, 1.0, 30.0], 2),
        ([1.0, 1.0, 30.0, 30.0], 4),
        ([0.0, 0.0, 0.0, 1.0], 4),  # of a median of 0 everything is a multiple
        ([0.0, 0.0], 2),
    ],
)
def test_few_tokens_and_silent_sites_never_lose_half(fake_model, norms, n_kept):
    """The last harvest batch of a text may hold one token."""

    def spoil(tokens_HS, acts_HSPD):
        acts_HSPD.zero_()
        acts_HSPD[0, 1:, 0, 0] = torch.tensor(norms)

    harvest = Harvester(Spoilt(fake_model(), spoil), "a").harvest([sequence([BOS, *[5] * len(norms)])])

    assert len(harvest) == n_kept
    assert harvest.counts.outliers == len(norms) - n_kept


def test_nothing_kept_is_an_empty_harvest(fake_model):
    """Whether outliers are looked for or not."""
    for multiple in (10.0, None):
        harvest = Harvester(fake_model(), "a", max_norm_multiple=multiple).harvest([sequence([BOS, EOS, EOS])])
        assert len(harvest) == 0
        assert harvest.counts == TokenCounts(first_positions=1, special=2)


def test_skipping_stops_above_one_percent(fake_model):
    """Of the tokens read, from 10,000 on: one bad sequence at the beginning stops nothing, every tenth does."""
    model = spoilt(fake_model(), 9, math.nan)
    good, bad = sequence([BOS, *[5] * 99]), sequence([BOS, *[5] * 89, *[9] * 10])
    harvester = Harvester(model, "a", sequences_at_once=10, skip_not_finite=True)

    def counts(sequences):
        return [harvest.counts for harvest in finite_enough(harvester.over(sequences))]

    assert sum(each.not_finite for each in counts([bad] * 10 + [good] * 190)) == 100
    assert sum(each.not_finite for each in counts([bad] * 99)) == 990
    with pytest.raises(NumericalError, match=r"1,000 of 10,000 tokens read .* 1 % .* model 'fake' at a: .* NaN"):
        counts([bad] * 100)


def test_a_harvest_made_by_hand_needs_no_counts():
    """All of its tokens were kept."""
    none_N = torch.zeros(3, dtype=torch.long)
    assert Harvest(torch.ones(3, 1, 1, 2), none_N, none_N, none_N, none_N).counts == TokenCounts(kept=3)


def test_a_gpu_takes_more_sequences_at_once(fake_model, monkeypatch):
    """8 on a CPU; on a GPU 64, or 16,384 tokens, or what a sixteenth of its memory holds, but always one."""
    monkeypatch.setattr(harvester_module, "bytes_of", lambda device: memory)
    model = fake_model()
    assert sequences_that_fit([model], ["a", "b"], 256, 32_768) == 8
    model.device, memory = torch.device("cuda"), 80 << 30
    assert sequences_that_fit([model], ["a", "b"], 256, 32_768) == 64
    assert sequences_that_fit([model], ["a", "b"], 1024, 32_768) == 16
    assert sequences_that_fit([model], ["a", "b"], 256, 1024) == 4
    memory = 16 * 10 * (3 * 256 * 2 * 3 * 4)  # ten sequences: thrice 256 tokens at 2 hookpoints, of 3 float32
    assert sequences_that_fit([model], ["a", "b"], 256, 32_768) == 10
    memory = 1
    assert sequences_that_fit([model], ["a", "b"], 256, 32_768) == 1


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
        (["a"], {"max_norm_multiple": math.inf}, "max_norm_multiple=inf must be greater than 1 and finite, or None"),
        (["a"], {"max_norm_multiple": math.nan}, "max_norm_multiple=nan must be"),
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
