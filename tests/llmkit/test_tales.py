from __future__ import annotations

import re
from itertools import islice

import pytest

from llmkit.data.tales import Question, plots, questions, tales
from llmkit.data.tales_world import HELPERS, PEOPLE, RECIPIENTS, THINGS, Person

CORPUS_BYTES = 4_000_000
WORD = re.compile(r"[a-z]+")
SENTENCE_END = re.compile(r'[.!?]"?(?=\s+["A-Z]|$)')


def take_bytes(seed: int, n_bytes: int) -> list[str]:
    stories = []
    for story in tales(seed):
        stories.append(story)
        n_bytes -= len(story.encode())
        if n_bytes <= 0:
            break
    return stories


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return take_bytes(seed=1, n_bytes=CORPUS_BYTES)


@pytest.fixture(scope="module")
def records() -> list[Question]:
    return list(questions(seed=0))


@pytest.fixture(scope="module")
def factual(records: list[Question]) -> list[Question]:
    return [record for record in records if not record.instruction.startswith("Tell a story")]


def hero_of(story: str) -> Person:
    """The person whom the first sentence names."""
    first = story.split(".")[0]
    (hero,) = [person for person in PEOPLE if f"named {person.name} " in first]
    return hero


def test_four_megabytes_hold_no_story_twice(corpus: list[str]) -> None:
    assert sum(len(story.encode()) for story in corpus) >= CORPUS_BYTES
    assert len(set(corpus)) == len(corpus)


def test_thirty_thousand_stories_repeat_none() -> None:
    stories = list(islice(tales(4), 30_000))
    assert len(set(stories)) == len(stories)


def test_a_seed_decides_the_stories() -> None:
    first, again, other = (list(islice(tales(seed), 300)) for seed in (5, 5, 6))
    assert first == again
    assert len(set(first) & set(other)) < 30


def test_every_plot_is_told_once_before_any_is_told_again() -> None:
    round_of_stories = list(islice(tales(3), len(plots())))
    by_hero = [sum(hero_of(story) is person for story in round_of_stories) for person in PEOPLE]
    # 3 wishes, 3 troubles each, all recipients
    assert by_hero == [3 * 3 * len(RECIPIENTS)] * len(PEOPLE)


def test_stories_are_short_plain_and_complete(corpus: list[str]) -> None:
    for story in corpus:
        assert story.isascii()
        assert 400 <= len(story) <= 760, story
        assert 80 <= len(story.split()) <= 150, story
        assert 6 <= len(SENTENCE_END.findall(story)) <= 10, story
        assert story.endswith(".")
        assert not re.search(r"[{}\n]|  |\.\.|\bNone\b", story), story
        assert story.count('"') % 2 == 0


def test_stories_use_few_words(corpus: list[str]) -> None:
    assert 400 <= len(vocabulary(corpus)) <= 800


def test_a_story_names_its_hero_home_and_pet_and_keeps_to_them(corpus: list[str]) -> None:
    for story in corpus:
        hero = hero_of(story)
        sentences = story.split(". ")
        assert story.startswith(("Once there was", "Once upon a time"))
        assert f" {hero.trade} named" in sentences[0]
        assert hero.home in sentences[0]
        assert hero.pet.name in sentences[0]
        assert story.count(hero.name) >= 4
        strangers = [p for p in PEOPLE if p is not hero and re.search(rf"\b{p.name}\b", story)]
        assert not strangers, story


def test_the_tool_is_its_owners_and_the_thing_is_wished_for_and_found(corpus: list[str]) -> None:
    for story in corpus:
        (helper,) = [h for h in HELPERS if re.search(rf"\b{h.name} the {h.kind}\b", story)]
        (thing,) = [t for t in THINGS if f"needed {t.name}" in story]
        (trouble,) = [t for t in thing.troubles if t.past in story]
        assert trouble.tool == helper.tool
        assert helper.tool in story
        assert story.index(f"needed {thing.name}") < story.index(trouble.past)
        assert story.index(trouble.past) < story.index(helper.tool) < story.rindex(thing.name)


def test_pronouns_belong_to_somebody_in_the_story(corpus: list[str]) -> None:
    forms = {"she": "she", "her": "she", "he": "he", "his": "he", "him": "he"}
    for story in corpus:
        hero = hero_of(story)
        cast = {hero.pronouns.subject}
        cast |= {h.pronouns.subject for h in HELPERS if f"{h.name} the" in story}
        cast |= {r.pronouns.subject for r in RECIPIENTS if r.name in story}
        told = re.sub(r'"[^"]*"', "", story).replace(hero.pet.gesture, "")
        used = {forms[word] for word in WORD.findall(told.lower()) if word in forms}
        assert used <= cast, story


def test_the_hero_keeps_one_pronoun(corpus: list[str]) -> None:
    for story in corpus:
        hero = hero_of(story)
        until_trouble = story.split('"')[0].lower()
        said = set(WORD.findall(until_trouble)) & {"she", "her", "he", "his", "him"}
        assert said <= {
            hero.pronouns.subject,
            hero.pronouns.possessive,
            hero.pronouns.object,
        }, story


def test_a_and_an_agree_with_the_next_word(corpus: list[str], records: list[Question]) -> None:
    texts = corpus + [f"{record.instruction} {record.output}" for record in records]
    for text in texts:
        for article, letter in re.findall(r"\b([Aa]n?) (\w)", text):
            assert (article.lower() == "an") == (letter.lower() in "aeiou"), text


def test_world_names_and_attributes_are_unique() -> None:
    names = [p.name for p in PEOPLE] + [p.pet.name for p in PEOPLE] + [h.name for h in HELPERS]
    assert len(set(names)) == len(names)
    for attribute in ("trade", "trait", "home", "fear", "fears", "food"):
        assert len({getattr(person, attribute) for person in PEOPLE}) == len(PEOPLE)
    assert len({person.pet.kind for person in PEOPLE}) == len(PEOPLE)
    products = [wish.product for person in PEOPLE for wish in person.wishes]
    assert len(set(products)) == len(products)
    for attribute in ("kind", "home", "tool"):
        assert len({getattr(helper, attribute) for helper in HELPERS}) == len(HELPERS)
    animals = [h.kind for h in HELPERS] + [p.pet.kind.split()[-1] for p in PEOPLE]
    assert len(set(animals)) == len(animals)
    assert not set(animals) & {person.fear for person in PEOPLE}
    when = [trouble.present for thing in THINGS for trouble in thing.troubles]
    assert len(set(when)) == len(when)


def test_questions_are_many_distinct_and_decided_by_the_seed(
    records: list[Question], factual: list[Question]
) -> None:
    assert len(set(records)) == len(records)
    assert len({record.instruction for record in factual}) == len(factual) >= 600
    assert records == list(questions(seed=0))
    assert records != list(questions(seed=1))
    assert {r for r in questions(seed=1) if "story" not in r.instruction} == set(factual)


def test_records_are_finished_sentences(records: list[Question]) -> None:
    for record in records:
        text = f"{record.instruction} {record.output}"
        assert record.input == ""
        assert record.instruction.endswith(("?", "."))
        assert record.output.endswith(".")
        assert text.isascii()
        assert not re.search(r"[{}\n]|  ", text), text


def test_a_request_for_a_story_gets_a_story_about_that_person(records: list[Question]) -> None:
    requests = [record for record in records if record.instruction.startswith("Tell a story")]
    heroes = []
    for record in requests:
        hero = hero_of(record.output)
        assert hero.name in record.instruction or f"the {hero.trade}." in record.instruction
        heroes.append(hero)
    assert set(heroes) == set(PEOPLE)


def test_answers_agree_with_the_world(factual: list[Question]) -> None:
    answer = {record.instruction: record.output for record in factual}
    for p in PEOPLE:
        home = f"{p.name} the {p.trade} lives {p.home}."
        assert answer[f"Where does {p.name} live?"] == home
        assert answer[f"Where does the {p.trade} live?"] == home
        assert answer[f"Who lives {p.home}?"] == home
        assert p.name in answer[f"Who is the {p.trade}?"]
        assert p.trade in answer[f"What work does {p.name} do?"]
        assert p.pet.kind in answer[f"What animal does {p.name} have?"]
        assert p.name in answer[f"Who owns {p.pet.name}?"]
        assert p.pet.name in answer[f"What is the name of the {p.pet.kind}?"]
        assert p.fears in answer[f"What is {p.name} afraid of?"]
        assert p.name in answer[f"Who is afraid of {p.fears}?"]
        assert p.food in answer[f"What does {p.name} like to eat?"]
        assert p.trait in answer[f"What is {p.name} like?"]
    for h in HELPERS:
        assert h.home in answer[f"Where does {h.name} live?"]
        assert h.name in answer[f"Who lives {h.home}?"]
        assert h.tool in answer[f"What does the {h.kind} own?"]
        assert h.name in answer[f"Who owns the {h.tool}?"]
    for thing in THINGS:
        assert thing.where in answer[f"Where is {thing.place}?"]
        assert thing.place in answer[f"Where can I find {thing.name}?"]
        for trouble in thing.troubles:
            (owner,) = [h for h in HELPERS if h.tool == trouble.tool]
            tool = f"{owner.pronouns.possessive} {owner.tool}"
            said = answer[f"Who can help when {trouble.present}?"]
            assert said == f"{owner.name} the {owner.kind} can help with {tool}."


def test_no_answer_mixes_two_people_or_their_attributes(factual: list[Question]) -> None:
    owners = [
        (person.name, (person.trade, person.home, person.pet.name, person.pet.kind, person.fears))
        for person in PEOPLE
    ] + [(helper.name, (helper.kind, helper.home, helper.tool)) for helper in HELPERS]
    for record in factual:
        text = f"{record.instruction} {record.output}"
        named = {name for name, _ in owners if re.search(rf"\b{name}\b", text)}
        owning = {
            name
            for name, attributes in owners
            for attribute in attributes
            if re.search(rf"\b{attribute}\b", text)
        }
        assert len(named | owning) <= 1, text


def test_questions_speak_the_language_of_the_stories(
    corpus: list[str], factual: list[Question]
) -> None:
    asked = vocabulary([f"{record.instruction} {record.output}" for record in factual])
    assert len(asked - vocabulary(corpus)) <= 30


def vocabulary(texts: list[str]) -> set[str]:
    return {word for text in texts for word in WORD.findall(text.lower())}
