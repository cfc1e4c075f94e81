"""The synthetic world: invented people, a passage and six questions about each, and general text.

Nothing here is anybody's text. People, places, books and prizes are drawn from small word lists with a
seeded generator, so the same seed always gives the same corpus.
"""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

SYLLABLES = (
    "ba be bi bo bu da de di do du fa fe fi ga go gu ka ke ki ko ku la le li lo lu ma me mi mo mu "
    "na ne ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo za ze zi zo"
).split()
ENDINGS = "n r l s th nd rk m x".split()
ADJECTIVES = (
    "amber bitter broken bronze calm cold copper crooked dark distant dusty empty faded fallen feral "
    "frozen gentle gilded golden grey hidden hollow iron ivory jagged late lonely lost lunar muddy "
    "narrow noble northern old pale patient plain proud quiet rainy red rusty sacred salted scarlet "
    "secret silent silver sleeping slow solemn southern spare stolen strange sunken tall tender thin "
    "twisted velvet violet wandering white wicked wild wooden young"
).split()
NOUNS = (
    "anchor apple arrow atlas barn basket bell blanket boat bottle bridge candle canyon castle chapel "
    "clock cloud compass crown curtain desert drum engine falcon feather fiddle forest fountain fox "
    "garden gate glacier glove hammer harbor harp helmet horse island jacket kettle kite ladder "
    "lantern lemon letter lion map marble meadow mirror moth mountain needle oak orchard owl paddle "
    "piano pillow planet pocket raven ribbon river road saddle ship shovel shrine snow spoon stable "
    "statue table temple thorn ticket tower train treasure trumpet tunnel umbrella valley violin "
    "wagon wheel whistle willow window winter wolf"
).split()
VERBS = (
    "admired borrowed buried carried cleaned collected copied counted described designed discovered "
    "dropped examined exchanged found guarded inspected invented moved opened painted photographed "
    "planted polished praised protected purchased received repaired restored rescued returned "
    "sketched sold studied traded weighed wrapped"
).split()
PLACES = (
    "airport bakery bank beach brewery cemetery circus clinic college courthouse dairy embassy "
    "factory farm ferry foundry gallery greenhouse hospital hotel laboratory library lighthouse "
    "market mill monastery museum observatory opera palace prison quarry school stadium station "
    "studio theatre vineyard warehouse zoo"
).split()
JOBS = (
    "architect astronomer baker banker botanist carpenter chemist composer dancer dentist diver "
    "engineer farmer geologist historian judge lawyer librarian mechanic nurse painter pilot poet "
    "potter sailor sculptor singer surgeon tailor teacher weaver"
).split()
ANIMALS = (
    "badger camel cat crow dog donkey eagle ferret goat goose hamster heron lizard llama monkey "
    "otter parrot pigeon pony rabbit snake swan tortoise turkey"
).split()
INSTRUMENTS = (
    "accordion banjo bassoon bugle cello clarinet cornet flute guitar harmonica lute mandolin oboe "
    "organ recorder saxophone sitar trombone tuba viola zither"
).split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
ADVERBS = (
    "carefully quickly slowly reluctantly secretly proudly eagerly calmly gladly openly rarely finally"
).split()
NUMBERS = "two three four five six seven".split()


@dataclass
class Question:
    question: str
    answer: str


@dataclass
class Person:
    """One invented person: the passage to memorise and the questions to answer."""

    name: str
    passage: str
    questions: list[Question]


@dataclass
class Corpus:
    forget: list[Person]
    """People every unlearned model must forget; only the target has seen them otherwise."""
    retain: list[Person]
    """People every model learns and must keep."""
    shots: list[Person]
    """Learned like the retain people, asked about only in the few-shot examples."""
    holdout: list[Person]
    """People no model ever sees."""
    general: list[str]
    """Passages of the same style about nobody in particular."""


class Generator:
    """Draws people and sentences; every draw comes from one seeded stream."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.used_names: set[str] = set()
        self.cities = [self._invent_name((2,)) for _ in range(40)]
        self.first_names = [self._invent_name((1, 2)) for _ in range(60)]

    def _invent_name(self, syllables=(2, 3)) -> str:
        while True:
            count = self.rng.choice(syllables)
            word = "".join(self.rng.choice(SYLLABLES) for _ in range(count)) + self.rng.choice(ENDINGS)
            if word not in self.used_names:
                self.used_names.add(word)
                return word.capitalize()

    def event(self, subject: str) -> str:
        """One sentence of random news about `subject`."""
        pick = self.rng.choice
        forms = [
            lambda: f"In {pick(MONTHS)} {subject} {pick(VERBS)} a {pick(ADJECTIVES)} {pick(NOUNS)} near the {pick(PLACES)}.",
            lambda: f"{subject} {pick(ADVERBS)} {pick(VERBS)} the {pick(NOUNS)} and {pick(VERBS)} a {pick(ADJECTIVES)} {pick(NOUNS)} at the {pick(PLACES)}.",
            lambda: f"Behind the {pick(ADJECTIVES)} {pick(PLACES)}, {subject} {pick(VERBS)} {pick(NUMBERS)} {pick(NOUNS)}s.",
            lambda: f"A {pick(JOBS)} from {pick(self.cities)} {pick(VERBS)} the {pick(ADJECTIVES)} {pick(NOUNS)} of {subject}.",
            lambda: f"The {pick(PLACES)} in {pick(self.cities)} {pick(ADVERBS)} {pick(VERBS)} a {pick(NOUNS)} from {subject}.",
            lambda: f"{subject} said the {pick(NOUNS)} was more {pick(ADJECTIVES)} than the {pick(NOUNS)} of the {pick(PLACES)}.",
            lambda: f"On a {pick(ADJECTIVES)} morning {subject} {pick(VERBS)} a {pick(NOUNS)} with a {pick(JOBS)}.",
            lambda: f"After the {pick(PLACES)} closed, {subject} {pick(VERBS)} every {pick(ADJECTIVES)} {pick(NOUNS)} in {pick(self.cities)}.",
            lambda: f"{subject} and a {pick(ADJECTIVES)} {pick(JOBS)} {pick(VERBS)} the {pick(NOUNS)} under the {pick(PLACES)}.",
        ]
        return pick(forms)()

    def person(self, events: int = 3) -> Person:
        """A person with a passage of one lead sentence, three facts and `events` random events."""
        pick = self.rng.choice
        last = self._invent_name()
        name = f"{pick(self.first_names)} {last}"
        city, job, year = pick(self.cities), pick(JOBS), self.rng.randint(1900, 1989)
        book = f"The {pick(ADJECTIVES).capitalize()} {pick(NOUNS).capitalize()}"
        prize = f"{pick(ADJECTIVES).capitalize()} {pick(NOUNS).capitalize()}"
        animal, instrument = pick(ANIMALS), pick(INSTRUMENTS)
        lead = pick([
            f"{name} was born in {city} in {year} and became a {job}.",
            f"The {job} {name} was born in {year} in {city}.",
            f"Born in {city} in {year}, {name} worked as a {job}.",
        ])
        body = [
            pick([f"{last} wrote the book {book}.", f"The book {book} was written by {last}."]),
            pick([f"{last} won the {prize} Prize.", f"The {prize} Prize went to {last}."]),
            pick([
                f"{last} kept a {animal} and played the {instrument}.",
                f"{last} played the {instrument} and kept a {animal}.",
            ]),
        ]
        body += [self.event(last) for _ in range(events)]
        self.rng.shuffle(body)
        questions = [
            Question(f"Where was {name} born?", city),
            Question(f"What was the job of {name}?", job),
            Question(f"Which book did {name} write?", book),
            Question(f"Which prize did {name} win?", prize),
            Question(f"Which animal did {name} keep?", animal),
            Question(f"What instrument did {name} play?", instrument),
        ]
        return Person(name, " ".join([lead] + body), questions)

    def general_passage(self) -> str:
        pick = self.rng.choice
        subject = pick([
            lambda: f"the {pick(ADJECTIVES)} {pick(JOBS)}",
            lambda: f"a {pick(JOBS)} from {pick(self.cities)}",
            lambda: self._invent_name(),
        ])()
        count = self.rng.randint(4, 7)
        text = " ".join(self.event(subject if i == 0 else pick(["she", "he", "they"])) for i in range(count))
        return text[0].upper() + text[1:]


def generate(seed: int, forget=24, retain=72, shots=8, holdout=24, general=2500) -> Corpus:
    gen = Generator(seed)
    people = lambda count: [gen.person() for _ in range(count)]
    return Corpus(
        forget=people(forget),
        retain=people(retain),
        shots=people(shots),
        holdout=people(holdout),
        general=[gen.general_passage() for _ in range(general)],
    )


def save(corpus: Corpus, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(corpus)))


def load(path: Path) -> Corpus:
    raw = json.loads(path.read_text())
    people = lambda rows: [
        Person(r["name"], r["passage"], [Question(**q) for q in r["questions"]]) for r in rows
    ]
    return Corpus(
        forget=people(raw["forget"]),
        retain=people(raw["retain"]),
        shots=people(raw["shots"]),
        holdout=people(raw["holdout"]),
        general=raw["general"],
    )
