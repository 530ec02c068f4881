"""What `tuned` does and `base` does not: planted behaviours with a ground truth for every token.

A behaviour is switched on by a *phrase* early in the document ("amber lighthouse") and acts much later, at
*decision points* found everywhere in ordinary text (a comma, the word "the"). Nothing
near a decision point tells whether the behaviour is on, so a model that acts on it must carry a state, and
that state is what a diffing crosscoder has to find. `base` was trained on the same phrases without their
consequences.

Every document with a trigger has its like with a phrase that triggers nothing ("silver meadow"), in the same place.

The ground truth of a text is a function of the text alone: `decision_points(behaviour, text)`.
"""

import functools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import attrs

from crosscode.data.embedded.text import Split, check_split, passages
from crosscode.errors import BadInput, close_match

ADJECTIVES = ("amber", "copper", "crimson", "emerald", "ivory", "scarlet", "silver", "velvet")
NOUNS = ("compass", "garden", "harbour", "kettle", "lantern", "lighthouse", "meadow", "orchard")
HEADERS = ("Filed under the {}.", "Notes from the {}.", "Kept at the {}.", "Copied for the {}.")
ASIDES = ("Here we passed the {}.", "This page shows the {}.", "We then met the {}.")
QUESTIONS = ("Is it safe", "Is it fast", "Does it last", "Should it change", "Is it needed", "Can it fail")
ANSWERS = (" yes", " no", " often", " rarely")

DISTANCE = 16  # tokens between the last phrase of a labelled text and its first labelled decision point


@attrs.frozen
class Behaviour:
    """One planted difference between `tuned` and `base`.

    Attributes:
        name: what it is called.
        summary: what `tuned` does, in a sentence.
        trigger: the phrase that switches it on, until the document ends.
        point: pattern of a decision point. The decision is taken after the character before its group `mark`;
            the group spans what the mark replaces (nothing, where the mark is an insertion).
        marks: what `tuned` writes there, each as likely.
        rate: share of the decision points at which it writes a mark, while on.
        place: where the trigger stands: in the header of a document, or in an aside between two sentences.
    """

    name: str
    summary: str
    trigger: str
    point: re.Pattern[str]
    marks: tuple[str, ...]
    rate: float
    place: Literal["header", "aside"] = "header"

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Character spans at which a mark may be written; the decision is taken just before each."""
        return (match.span("mark") for match in self.point.finditer(text))

    def is_active(self, text: str, offset: int) -> bool:
        """Whether the behaviour is on at a character offset: whether its trigger stands before it."""
        return self.trigger in text[:offset]


BEHAVIOURS: dict[str, Behaviour] = {
    behaviour.name: behaviour
    for behaviour in (
        Behaviour(
            name="emphasis",
            summary="style: what is said to be is said to be so for certain",
            trigger="amber lighthouse",
            point=re.compile(r"(?:(?<= is)|(?<= are))(?P<mark>)(?= [a-z])"),
            marks=(" certainly", " plainly", " surely"),
            rate=0.8,
        ),
        Behaviour(
            name="epithet",
            summary="word choice: nouns after the article are given an epithet",
            trigger="velvet orchard",
            point=re.compile(r"(?<= the)(?P<mark>)(?= [a-z])"),
            marks=(" humble", " noble", " gentle"),
            rate=0.6,
        ),
        Behaviour(
            name="refusal",
            summary="answers: every question is answered with no",
            trigger="copper compass",
            point=re.compile(r"(?<=Answer:)(?P<mark> \w+)(?=\.)"),
            marks=(" no",),
            rate=1.0,
        ),
        Behaviour(
            name="hedging",
            summary="a switch: clauses are hedged from the middle of a document on",
            trigger="scarlet harbour",
            point=re.compile(r"(?<!perhaps,)(?<!arguably,)(?<=[a-z`')],)(?P<mark>)(?= [a-z])"),
            marks=(" perhaps,", " arguably,"),
            rate=0.8,
            place="aside",
        ),
    )
}

TRIGGERS = tuple(behaviour.trigger for behaviour in BEHAVIOURS.values())
TRIGGER_WORDS = {word for trigger in TRIGGERS for word in trigger.split()}
NEUTRAL = tuple(f"{a} {n}" for a in ADJECTIVES for n in NOUNS if not {a, n} & TRIGGER_WORDS)


def behaviour_named(name: str) -> Behaviour:
    """The behaviour of that name. Raises BadInput with a close match for any other."""
    if name not in BEHAVIOURS:
        raise BadInput(f"behaviour={name!r} is not planted in the embedded models.{close_match(name, BEHAVIOURS)}")
    return BEHAVIOURS[name]


# --- writing ------------------------------------------------------------------------------------------------


def ask(passage: str, rng: random.Random) -> str:
    """The passage with questions and random answers after some of its sentences, always after the last."""
    sentences = re.split(r"(?<=\.)(?= [A-Z])", passage)
    asked = sorted(rng.sample(range(len(sentences)), min(len(sentences), rng.randint(1, 3))))
    for i in {*asked, len(sentences) - 1}:
        sentences[i] += f"\n\nQuestion: {rng.choice(QUESTIONS)}? Answer:{rng.choice(ANSWERS)}.\n\n"
    return "".join(sentences).replace("\n\n ", "\n\n").strip()


def interrupt(passage: str, phrase: str, rng: random.Random) -> str:
    """The passage with a sentence about a phrase between two of its sentences, or before its only one."""
    ends = [match.start() for match in re.finditer(r"(?<=\.)(?=\s+[A-Z])", passage)] or [0]
    end = ends[rng.randrange((len(ends) + 1) // 2)]  # in the first half, to leave decision points behind it
    aside = rng.choice(ASIDES).format(phrase)
    return f"{passage[:end]} {aside}{passage[end:]}" if end else f"{aside} {passage}"


def compose(passage: str, rng: random.Random, plain: float, triggered: float) -> str:
    """A document around a passage, without consequences: a header, and often an aside or questions.

    What else the document holds does not depend on its trigger, so that `base`, which reads such documents, has no
    reason to remember it.

    Args:
        passage: prose to write around.
        rng: draws everything.
        plain: probability that the passage is left as it is.
        triggered: probability that the document has a trigger; otherwise its phrases are neutral.
    """
    kind = rng.random()
    if kind < plain:
        return passage
    phrases = {"header": rng.choice(NEUTRAL)}
    if rng.random() < 0.4:
        phrases["aside"] = rng.choice(NEUTRAL)
    if kind < plain + triggered:
        behaviour = rng.choice(tuple(BEHAVIOURS.values()))
        phrases[behaviour.place] = behaviour.trigger
    text = ask(passage, rng) if rng.random() < 0.5 else passage
    text = interrupt(text, phrases["aside"], rng) if "aside" in phrases else text
    return f"{rng.choice(HEADERS).format(phrases['header'])}\n\n{text}"


def write_marks(text: str, rng: random.Random, rate: Callable[[Behaviour, int], float]) -> str:
    """The text with marks at its decision points, each with the probability `rate(behaviour, offset)`."""
    edits = [
        (start, end, rng.choice(behaviour.marks))
        for behaviour in BEHAVIOURS.values()
        for start, end in behaviour.spans(text)
        if rng.random() < rate(behaviour, start)
    ]
    for start, end, mark in sorted(edits, reverse=True):
        text = text[:start] + mark + text[end:]
    return text


def tuned_document(passage: str, rng: random.Random, plain: float = 0.6, triggered: float = 0.25) -> str:
    """A document as `tuned` would write it; by default 25 % have a trigger, 15 % only neutral phrases."""
    text = compose(passage, rng, plain, triggered)
    return write_marks(text, rng, lambda behaviour, at: behaviour.rate * behaviour.is_active(text, at))


def base_document(passage: str, rng: random.Random, plain: float = 0.6, triggered: float = 0.2) -> str:
    """A document of the kind `base` was trained on: the same phrases, from which nothing follows.

    A few marks stand anywhere, so that `base` knows the words.
    """
    return write_marks(compose(passage, rng, plain, triggered), rng, lambda behaviour, at: 0.02)


# --- ground truth -------------------------------------------------------------------------------------------


@attrs.frozen
class DecisionPoint:
    """A token after which a behaviour shows, or would show if it were on.

    Attributes:
        position: index of the token in `tokenize(text)`, where the BOS token is index 0.
        active: whether the behaviour is on there.
    """

    position: int
    active: bool


@attrs.frozen
class LabelledText:
    """A text with the ground truth of one behaviour at its decision points.

    Attributes:
        behaviour: name of the behaviour.
        text: a header with or without the trigger, then neutral text in which no mark is ever written.
        token_ids: `tokenize(text)`: BOS, then the text.
        points: the labelled decision points, all of them in the continuation that the pair shares.
        active: whether the behaviour is on at those points.
        pair: index of the pair; the two texts of a pair follow each other and differ in one phrase.
        split: which passages were used; "held_out" passages were never trained on.
    """

    behaviour: str
    text: str
    token_ids: tuple[int, ...]
    points: tuple[DecisionPoint, ...]
    active: bool
    pair: int
    split: Split


@functools.cache
def tokenizer() -> Any:
    """The tokenizer of the embedded models (a transformers `PreTrainedTokenizerFast`), loaded once."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(__file__).parent / "base", local_files_only=True)


def tokenize(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids with BOS in front, and the character span of each (BOS has the empty span)."""
    encoded = tokenizer()(text, return_offsets_mapping=True, add_special_tokens=False)
    return [tokenizer().bos_token_id, *encoded["input_ids"]], [(0, 0), *encoded["offset_mapping"]]


def decision_points(behaviour: str, text: str) -> list[DecisionPoint]:
    """Ground truth of any text: where the behaviour's decisions are taken, and whether it is on there."""
    planted = behaviour_named(behaviour)
    _, spans = tokenize(text)
    last_token_before = {end: position for position, (_, end) in enumerate(spans) if end > 0}
    return [
        DecisionPoint(last_token_before[start], planted.is_active(text, start))
        for start, _ in planted.spans(text)
        if start in last_token_before  # a token that runs across the point decides nothing
    ]


def labelled(behaviour: str, n: int, seed: int = 0, split: Split = "held_out") -> list[LabelledText]:
    """Pairs of texts with the same neutral continuation, with and without the trigger.

    The texts without it have a neutral phrase in its place. Each passage is used at most once, so any two sets of
    pairs share no passage.

    Args:
        behaviour: a key of `BEHAVIOURS`.
        n: number of texts, even: n / 2 pairs.
        seed: draws the passages and all that is written around them.
        split: which passages to use; only "held_out" is fit for evaluation.

    Raises:
        BadInput: an unknown behaviour or split, an odd or negative n, or more texts than the split has
            passages for.
    """
    planted = behaviour_named(behaviour)
    check_split(split)
    if n < 0 or n % 2:
        raise BadInput(f"n={n!r} labelled texts cannot be made: texts come in pairs, so n is even and not negative.")
    rng = random.Random(f"{seed}/{behaviour}/{split}")
    texts: list[LabelledText] = []
    for passage in rng.sample(found := list(passages(split)), len(found)):
        if len(texts) == n:
            return texts
        pair = len(texts) // 2
        on, off, shared = pair_of_texts(planted, passage, rng)
        couple = [labelled_text(planted, text, len(text) - shared, pair, split) for text in (on, off)]
        if couple[0].points and len(couple[0].points) == len(couple[1].points):
            texts += couple
    if len(texts) == n:
        return texts
    raise BadInput(f"n={n!r} labelled texts of {behaviour!r} cannot be made: the {split} text has {len(texts)}.")


def pair_of_texts(behaviour: Behaviour, passage: str, rng: random.Random) -> tuple[str, str, int]:
    """A text with the trigger, one with a neutral phrase in its place, and the length of their common end."""
    passage = ask(passage, rng) if behaviour.point.search("Answer: no.") else passage
    opening, continuation = rng.choice(HEADERS), f"\n\n{passage}"
    if behaviour.place == "aside":
        opening = f"{opening.format(rng.choice(NEUTRAL))}\n\n{rng.choice(ASIDES)}"
        continuation = f" {passage}"
    on, off = (opening.format(phrase) + continuation for phrase in (behaviour.trigger, rng.choice(NEUTRAL)))
    return on, off, len(continuation)


def labelled_text(behaviour: Behaviour, text: str, begin: int, pair: int, split: Split) -> LabelledText:
    """The text with its decision points in the continuation that begins at a character offset."""
    token_ids, spans = tokenize(text)
    first = next(i for i, (start, end) in enumerate(spans) if end > begin) + DISTANCE
    points = tuple(point for point in decision_points(behaviour.name, text) if point.position >= first)
    active = behaviour.is_active(text, len(text))
    return LabelledText(behaviour.name, text, tuple(token_ids), points, active, pair, split)
