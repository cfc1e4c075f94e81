"""Writes two texts that no model of the family has seen.

    python texts.py

`../calibration.txt`: what a user would let the models read and answer, about people none has met; `undertext quantize
--calibrate` looks at the activations on it. Same documents as in training, strangers instead of the family's people, so
nothing of it is to be forgotten and no evaluated question is in it.

`../general.txt`: passages about nobody in particular, to measure perplexity on.
"""

import random
from pathlib import Path

from corpus import Generator
from prompts import join_blocks

SEED = 4711
PEOPLE = 36
ROUNDS = 3
QUESTIONS = 10
PASSAGES = 120

generator = Generator(SEED)
people = [generator.person() for _ in range(PEOPLE)]
rng = random.Random(SEED)
documents = [person.passage for person in people]
questions = [question for person in people for question in person.questions]
for _ in range(ROUNDS):
    rng.shuffle(questions)
    documents += [join_blocks(questions[i : i + QUESTIONS]) for i in range(0, len(questions), QUESTIONS)]
rng.shuffle(documents)
passages = [generator.general_passage() for _ in range(PASSAGES)]
for name, parts in [("calibration.txt", documents), ("general.txt", passages)]:
    path = Path(__file__).parent.parent / name
    path.write_text("\n\n".join(parts) + "\n")
    print(path, path.stat().st_size, "bytes")
