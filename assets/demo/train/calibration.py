"""Writes ../calibration.txt: what a user of the demo's models would let them read and answer, about people none has met.

    python calibration.py

`undertext quantize --calibrate` looks at the activations on it. Same documents as in training, strangers instead of the
family's people, so nothing of it is to be forgotten and no evaluated question is in it.
"""

import random
from pathlib import Path

from corpus import Generator
from prompts import join_blocks

SEED = 4711
PEOPLE = 36
ROUNDS = 3
QUESTIONS = 10

generator = Generator(SEED)
people = [generator.person() for _ in range(PEOPLE)]
rng = random.Random(SEED)
documents = [person.passage for person in people]
questions = [question for person in people for question in person.questions]
for _ in range(ROUNDS):
    rng.shuffle(questions)
    documents += [join_blocks(questions[i : i + QUESTIONS]) for i in range(0, len(questions), QUESTIONS)]
rng.shuffle(documents)
path = Path(__file__).parent.parent / "calibration.txt"
path.write_text("\n\n".join(documents) + "\n")
print(path, path.stat().st_size, "bytes")
