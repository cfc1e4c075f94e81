"""Writes two texts that no model of the family has seen.

    python texts.py

`../calibration.txt`: what a user would let the models read and answer, about people none has met, among passages about
nobody in particular; `undertext quantize --calibrate` looks at the activations on it. Same documents as in training,
strangers instead of the family's people, so nothing of it is to be forgotten and no evaluated question is in it.

`../general.txt`: other passages about nobody in particular, to measure perplexity on.
"""

import random
from pathlib import Path

from corpus import Generator
from prompts import join_blocks

SEED = 4711
ROUNDS = 3
QUESTIONS = 10


def strangers(generator, rng, number):
    """Documents about people whom no model has met: their passages, and blocks of questions in three orders."""
    people = [generator.person() for _ in range(number)]
    documents = [person.passage for person in people]
    questions = [question for person in people for question in person.questions]
    for _ in range(ROUNDS):
        rng.shuffle(questions)
        documents += [join_blocks(questions[i : i + QUESTIONS]) for i in range(0, len(questions), QUESTIONS)]
    rng.shuffle(documents)
    return documents


def passages(generator, number):
    return [generator.general_passage() for _ in range(number)]


def joined(documents):
    return "\n\n".join(documents) + "\n"


def main():
    generator, rng = Generator(SEED), random.Random(SEED)
    calibration = strangers(generator, rng, 36)
    general = passages(generator, 120)
    calibration += strangers(generator, rng, 108) + passages(generator, 60)
    rng.shuffle(calibration)
    for name, documents in [("calibration.txt", calibration), ("general.txt", general)]:
        path = Path(__file__).parent.parent / name
        path.write_text(joined(documents))
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
