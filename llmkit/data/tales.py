"""The built-in corpus: endless short tales about one village, and questions about its facts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from llmkit.data.tales_world import (
    HELPERS,
    PEOPLE,
    RECIPIENTS,
    THINGS,
    Helper,
    Person,
    Recipient,
    Thing,
    Trouble,
    Wish,
)

Fields = dict[str, str]
Facts = tuple[tuple[str, tuple[str, ...]], ...]

# The beats of a story. Each has a few phrasings with {fields} of the plot.
OPENINGS = (
    "Once there was {a_trade} named {hero} who lived {home} with {poss} {pet_kind} {pet}.",
    "Once there was {a_trait} {trade} named {hero} who lived {home} with {a_pet_kind} named {pet}.",
    "Once upon a time {a_trait} {trade} named {hero} lived {home} with {a_pet_kind} named {pet}.",
)
WISHES = (
    "{hero} wished to {verb} {a_product} for {recipient}, but first {sub} needed {thing}.",
    "One day {sub} wished to {verb} {a_product} for {recipient}, so {sub} needed {thing}.",
    "{hero} needed {thing}, for {sub} wished to {verb} {a_product} for {recipient}.",
)
JOURNEYS = (
    "{Sub} and {pet} walked to {place} {where}, but {trouble}.",
    "In the morning {sub} and {pet} went to {place}, but {trouble}.",
    "{hero} and {pet} set out for {place} {where}. But oh dear, {trouble}.",
    "On the way to {place} {sub} met {a_fear} and hid behind {pet}, "
    "for {sub} was afraid of {fears}. And worse, {trouble}.",
)
COMPLAINTS = (
    '"{complaint}" cried {hero}.',
    '"{complaint}" said {hero} sadly.',
    '"{complaint}" said {hero}, but {pet} only {gesture}.',
)
HELP = (
    '"Take my {tool}," said {helper} the {species}, who lived {helper_home}.',
    "{helper} the {species}, who lived {helper_home}, heard it and brought {a_tool}.",
    'Just then {helper} the {species} came by. "I can lend you my {tool}," {helper_sub} said.',
    '"What do you need?" asked {helper} the {species} and fetched {helper_poss} {tool}.',
)
GIFTS = (
    "At home {sub} {past} {a_product} for {recipient}, who {joy}.",
    "{Sub} went home and {past} the {product}, and {recipient} {joy}.",
    "Soon {hero} {past} the {product}, and {recipient} {joy}.",
)
ENDINGS = (
    "{hero} gave the {tool} back and had a new friend.",
    "In the evening they all ate {food}, which {hero} liked best.",
    "{hero} thanked {helper}, and they all lived happily ever after.",
    "And so {hero} learned that {moral}.",
)
MORALS = (
    "it is good to ask for help",
    "a good friend is better than gold",
    "nobody can do everything alone",
    "every trouble has an end",
)

# An answer and the questions that ask for it, with {fields} of one person, wish, helper, ...
# fmt: off
PERSON_FACTS: Facts = (
    ("{hero} is {a_trade}.", (
        "What is the trade of {hero}?",
        "What work does {hero} do?",
        "What does {hero} do all day?")),
    ("The {trade} is named {hero}.", (
        "What is the name of the {trade}?",
        "Who is the {trade}?",
        "Who is the {trade} of the village?")),
    ("{hero} the {trade} lives {home}.", (
        "Where does {hero} live?",
        "Where does {hero} the {trade} live?",
        "Where does the {trade} live?",
        "Where is the home of {hero}?",
        "Who lives {home}?")),
    ("{hero} the {trade} is {trait}.", (
        "What is {hero} like?",
        "Who in the village is {trait}?",
        "Who is so {trait}?")),
    ("{hero} the {trade} has {a_pet_kind} named {pet}.", (
        "What animal does {hero} have?",
        "What does the {trade} own?",
        "Who owns {pet}?",
        "Who has {a_pet_kind}?",
        "Who lives with {hero}?")),
    ("The {pet_kind} of {hero} is named {pet}.", (
        "What is the name of the {pet_kind}?",
        "Who is the {pet_kind}?")),
    ("{pet} is the {pet_kind} of {hero}.", (
        "Who is {pet}?",
        "What animal is {pet}?")),
    ("{hero} the {trade} is afraid of {fears}.", (
        "What is {hero} afraid of?",
        "What is the {trade} afraid of?",
        "Who is afraid of {fears}?",
        "Who hid from {a_fear}?")),
    ("{hero} the {trade} likes {food} best.", (
        "What does {hero} like best?",
        "What does the {trade} like best?",
        "What does {hero} like to eat?",
        "Who likes {food} best?")),
)
WISH_FACTS: Facts = (
    ("To {verb} {a_product}, {hero} needs {thing}.", (
        "What does {hero} need to {verb} {a_product}?",
        "What does the {trade} need for {a_product}?")),
    ("{hero} the {trade} can {verb} {a_product}.", (
        "Who can {verb} {a_product}?",
        "Who can {verb} me {a_product}?")),
)
HELPER_FACTS: Facts = (
    ("{helper} is {a_species}.", (
        "Who is {helper}?",
        "What animal is {helper}?")),
    ("The {species} is named {helper}.", (
        "What is the name of the {species}?",
        "Who is the {species}?")),
    ("{helper} the {species} lives {helper_home}.", (
        "Where does {helper} live?",
        "Where does the {species} live?",
        "Where is the home of {helper}?",
        "Who lives {helper_home}?")),
    ("{helper} the {species} has {a_tool}.", (
        "What does {helper} have?",
        "What does the {species} own?",
        "Who has {a_tool}?",
        "Who owns the {tool}?",
        "Who can lend me {a_tool}?")),
)
THING_FACTS: Facts = (
    ("{Place} is {where}.", (
        "Where is {place}?",
        "What is {where}?")),
    ("You can get {thing} from {place} {where}.", (
        "Where can I get {thing}?",
        "Where can I find {thing}?",
        "What can I get from {place}?")),
)
TROUBLE_FACTS: Facts = (
    ("{helper} the {species} can help with {helper_poss} {tool}.", (
        "Who can help when {present}?",
        "What helps when {present}?",
        "What do I need when {present}?")),
)
REQUESTS = (
    "Tell a story about {hero}.",
    "Tell a story about {hero} the {trade}.",
    "Tell a story about the {trade}.",
)
# fmt: on
STORIES_PER_REQUEST = 4


@dataclass(frozen=True)
class Question:
    """One instruction record with the Alpaca fields; the input is always empty here."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Plot:
    """What a story is about; its phrases are drawn separately."""

    person: Person
    wish: Wish
    thing: Thing
    trouble: Trouble
    recipient: Recipient


def plots() -> list[Plot]:
    """Every wish of every person, with every trouble of the thing it needs and every recipient."""
    things = {thing.name: thing for thing in THINGS}
    return [
        Plot(person, wish, things[wish.thing], trouble, recipient)
        for person in PEOPLE
        for wish in person.wishes
        for trouble in things[wish.thing].troubles
        for recipient in RECIPIENTS
    ]


def tales(seed: int) -> Iterator[str]:
    """Distinct stories without end: all 756 plots, shuffled, then all again in other words."""
    # Each plot can be told in 18,000 ways: 13 million stories before none is new.
    rng = Random(seed)
    told: set[str] = set()
    shuffled = plots()
    while True:
        rng.shuffle(shuffled)
        for plot in shuffled:
            story = _tell(plot, rng)
            if story not in told:
                told.add(story)
                yield story


def questions(seed: int) -> Iterator[Question]:
    """Every fact of the village in several phrasings, and requests for a story, in random order."""
    rng = Random(seed)
    records = [
        Question(question.format_map(fields), "", answer.format_map(fields))
        for facts, rows in _fact_tables()
        for fields in rows
        for answer, phrasings in facts
        for question in phrasings
    ]
    for person in PEOPLE:
        own_plots = [plot for plot in plots() if plot.person is person]
        records += [
            Question(request.format_map(person_fields(person)), "", _tell(plot, rng))
            for request in REQUESTS
            for plot in rng.sample(own_plots, STORIES_PER_REQUEST)
        ]
    rng.shuffle(records)
    yield from records


def _fact_tables() -> list[tuple[Facts, list[Fields]]]:
    """Fact templates, each with the fields of all its subjects."""
    return [
        (PERSON_FACTS, [person_fields(person) for person in PEOPLE]),
        (
            WISH_FACTS,
            [
                person_fields(person) | _wish_fields(wish)
                for person in PEOPLE
                for wish in person.wishes
            ],
        ),
        (HELPER_FACTS, [helper_fields(helper) for helper in HELPERS]),
        (THING_FACTS, [thing_fields(thing) for thing in THINGS]),
        (
            TROUBLE_FACTS,
            [
                helper_fields(_owner(trouble.tool)) | {"present": trouble.present}
                for thing in THINGS
                for trouble in thing.troubles
            ],
        ),
    ]


def _tell(plot: Plot, rng: Random) -> str:
    fields = (
        person_fields(plot.person)
        | _wish_fields(plot.wish)
        | thing_fields(plot.thing)
        | helper_fields(_owner(plot.trouble.tool))
        | {
            "recipient": plot.recipient.name,
            "trouble": plot.trouble.past,
            "complaint": plot.trouble.complaint,
            "moral": rng.choice(MORALS),
        }
    )
    beats = (
        rng.choice(OPENINGS),
        rng.choice(WISHES),
        rng.choice(JOURNEYS),
        rng.choice(COMPLAINTS),
        rng.choice(HELP),
        plot.trouble.solution,
        rng.choice(GIFTS).replace("{joy}", rng.choice(plot.recipient.joys)),
        rng.choice(ENDINGS),
    )
    return " ".join(beats).format_map(fields)


def person_fields(person: Person) -> Fields:
    """What templates may say of a person."""
    return {
        "hero": person.name,
        "sub": person.pronouns.subject,
        "Sub": person.pronouns.subject.capitalize(),
        "poss": person.pronouns.possessive,
        "obj": person.pronouns.object,
        "trade": person.trade,
        "a_trade": _with_article(person.trade),
        "trait": person.trait,
        "a_trait": _with_article(person.trait),
        "home": person.home,
        "pet": person.pet.name,
        "pet_kind": person.pet.kind,
        "a_pet_kind": _with_article(person.pet.kind),
        "gesture": person.pet.gesture,
        "a_fear": _with_article(person.fear),
        "fears": person.fears,
        "food": person.food,
    }


def _wish_fields(wish: Wish) -> Fields:
    return {
        "verb": wish.verb,
        "past": wish.past,
        "product": wish.product,
        "a_product": _with_article(wish.product),
        "thing": wish.thing,
    }


def thing_fields(thing: Thing) -> Fields:
    """What templates may say of a thing."""
    return {
        "thing": thing.name,
        "place": thing.place,
        "Place": thing.place.capitalize(),
        "where": thing.where,
    }


def helper_fields(helper: Helper) -> Fields:
    """What templates may say of a helper."""
    return {
        "helper": helper.name,
        "species": helper.kind,
        "a_species": _with_article(helper.kind),
        "helper_sub": helper.pronouns.subject,
        "helper_poss": helper.pronouns.possessive,
        "helper_home": helper.home,
        "tool": helper.tool,
        "a_tool": _with_article(helper.tool),
    }


def _owner(tool: str) -> Helper:
    return next(helper for helper in HELPERS if helper.tool == tool)


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
