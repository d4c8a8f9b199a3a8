"""What a model knows of the village: minimal pairs and questions, right by construction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from llmkit.data.tales import (
    HELPER_FACTS,
    PERSON_FACTS,
    THING_FACTS,
    Facts,
    Fields,
    helper_fields,
    person_fields,
    thing_fields,
)
from llmkit.data.tales_world import HELPERS, PEOPLE, THINGS

N_ITEMS = 200
N_OPTIONS = 4


@dataclass(frozen=True)
class VillagePair:
    """Two sentences that differ in one fact or form, of which only the first is right."""

    category: str
    good: str
    bad: str


@dataclass(frozen=True)
class VillageChoice:
    """A question about a fact, and answers of which one is right."""

    question: str
    options: tuple[str, ...]
    answer: int  # its place among the options


# Templates of sentences, by the field that is wrong in the bad one. In `pronoun` and `article`
# the grammar of the tales is broken, elsewhere a fact of the village.
_PERSON_PAIRS = {
    "home": "{hero} the {trade} lives {home}.",
    "trade": "{hero} is {a_trade}.",
    "pet": "{hero} the {trade} has {a_pet_kind} named {pet}.",
    "fear": "{hero} the {trade} is afraid of {fears}.",
    "food": "{hero} the {trade} likes {food} best.",
    "trait": "{hero} the {trade} is {trait}.",
    "pronoun": "One day {hero} the {trade} went home, for {sub} was {trait}.",
    "article": "Once there was {a_trait} {trade} named {hero} who lived {home}.",
}
_HELPER_PAIRS = {
    "animal": "{helper} is {a_species}.",
    "animal's home": "{helper} the {species} lives {helper_home}.",
    "tool": "{helper} the {species} has {a_tool}.",
}
_THING_PAIRS = {
    "place": "{Place} is {where}.",
    "thing": "You can get {thing} from {place} {where}.",
}
# Which fields a category takes from somebody else.
_WRONG = {
    "home": ("home",), "trade": ("a_trade",), "pet": ("a_pet_kind",), "fear": ("fears",),
    "food": ("food",), "trait": ("trait",), "animal": ("a_species",),
    "animal's home": ("helper_home",), "tool": ("a_tool",), "place": ("where",),
    "thing": ("thing",),
}  # fmt: skip
_OTHER_FORM = {"she": "he", "he": "she", "a": "an", "an": "a"}


def village_pairs(seed: int = 0) -> list[VillagePair]:
    """N_ITEMS minimal pairs."""
    rng = Random(seed)
    found = []
    for templates, rows in (
        (_PERSON_PAIRS, [person_fields(person) for person in PEOPLE]),
        (_HELPER_PAIRS, [helper_fields(helper) for helper in HELPERS]),
        (_THING_PAIRS, [thing_fields(thing) for thing in THINGS]),
    ):
        for category, template in templates.items():
            for fields in rows:
                for other in rng.sample(_others(fields, rows), 2):
                    bad = _wrong_fields(category, fields, other)
                    pair = (template.format_map(fields), template.format_map(bad))
                    found.append(VillagePair(category, *pair))
    return rng.sample(list(dict.fromkeys(found)), N_ITEMS)


def village_choices(seed: int = 0) -> list[VillageChoice]:
    """N_ITEMS questions with N_OPTIONS answers, in the words of the demo's questions."""
    rng = Random(seed)
    found: list[VillageChoice] = []
    for facts, rows in (
        (PERSON_FACTS, [person_fields(person) for person in PEOPLE]),
        (HELPER_FACTS, [helper_fields(helper) for helper in HELPERS]),
        (THING_FACTS, [thing_fields(thing) for thing in THINGS]),
    ):
        found += _choices(facts, rows, rng)
    return rng.sample(found, N_ITEMS)


def _choices(facts: Facts, rows: Sequence[Fields], rng: Random) -> Iterator[VillageChoice]:
    """For each question the true sentence and the same of others, said of its own subject."""
    for answer, phrasings in facts:
        for phrasing in phrasings:
            asked = {_noun(name) for name in rows[0] if f"{{{name}}}" in phrasing}
            for fields in rows:
                # What the question names stays; what it asks for is somebody else's.
                others = [
                    {name: (fields if _noun(name) in asked else other)[name] for name in fields}
                    for other in rng.sample(_others(fields, rows), N_OPTIONS - 1)
                ]
                options = [answer.format_map(one) for one in (fields, *others)]
                right = options[0]
                rng.shuffle(options)
                question = phrasing.format_map(fields)
                yield VillageChoice(question, tuple(options), options.index(right))


def _noun(field: str) -> str:
    """What a field is about in any of its forms: with an article, a capital, in the plural."""
    return field.removeprefix("a_").lower().removesuffix("s")


def _others(fields: Fields, rows: Sequence[Fields]) -> list[Fields]:
    return [row for row in rows if row is not fields]


def _wrong_fields(category: str, fields: Fields, other: Fields) -> Fields:
    if category == "pronoun":
        return {**fields, "sub": _OTHER_FORM[fields["sub"]]}
    if category == "article":
        article, _, noun = fields["a_trait"].partition(" ")
        return {**fields, "a_trait": f"{_OTHER_FORM[article]} {noun}"}
    return {**fields, **{name: other[name] for name in _WRONG[category]}}
