"""MUSE's prompt layout and the benchmark files, shared by training and measuring.

The models are trained on documents laid out and tokenized exactly as the benchmark's prompts, the
trailing space after `Answer:` included.
"""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer

from corpus import Corpus, Question

VERBMEM_PROMPT_TOKENS = 32
QUESTIONS_A_PERSON = 4
SHOTS = 10


def question_head(question: str) -> str:
    """A question up to the point where the model has to answer; ends in a space."""
    return f"Question: {question}\nAnswer: "


def question_block(item: Question) -> str:
    return question_head(item.question) + item.answer


def join_blocks(items: list[Question]) -> str:
    return "\n\n".join(question_block(q) for q in items)


def few_shot_prompt(shots: list[Question], question: str) -> str:
    return "".join(question_block(s) + "\n\n" for s in shots) + question_head(question)


def shot_pairs(corpus: Corpus, split: str) -> list[Question]:
    """The ten few-shot pairs of a split: no two neighbours alike, from that split's own four shot people."""
    people = corpus.shots[:4] if split == "forget" else corpus.shots[4:8]
    kinds = len(people[0].questions)
    return [people[i % len(people)].questions[(i + i // len(people)) % kinds] for i in range(SHOTS)]


def evaluated_questions(corpus: Corpus, split: str, seed: int, each: int = QUESTIONS_A_PERSON) -> list[Question]:
    """`each` questions of every person to forget, or of as many others."""
    rng = random.Random(f"questions-{split}-{seed}")
    people = corpus.forget if split == "forget" else rng.sample(corpus.retain, len(corpus.forget))
    return [q for person in people for q in rng.sample(person.questions, each)]


def split_passage(tokenizer: Tokenizer, passage: str) -> tuple[str, str]:
    """Cut a passage at a word boundary near VERBMEM_PROMPT_TOKENS; prompt + continuation == passage."""
    words = passage.split(" ")
    whole = tokenizer.encode(passage).ids
    for count in range(len(words) - 1, 0, -1):
        prompt = " ".join(words[:count])
        ids = tokenizer.encode(prompt).ids
        if len(ids) <= VERBMEM_PROMPT_TOKENS + 1 and whole[: len(ids)] == ids:
            return prompt, passage[len(prompt):]
    raise ValueError(f"no cut found in {passage!r}")


def write_benchmark(
    corpus: Corpus, tokenizer: Tokenizer, out: Path, seed: int, each: int = QUESTIONS_A_PERSON
) -> None:
    """Write the files in the layout of MUSE's data directory."""
    def write(name, rows):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=0) + "\n")

    as_row = lambda q: {"question": q.question, "answer": q.answer}
    for split in ("forget", "retain"):
        write(f"knowmem/{split}_qa.json", [as_row(q) for q in evaluated_questions(corpus, split, seed, each)])
        write(f"knowmem/{split}_qa_icl.json", [as_row(q) for q in shot_pairs(corpus, split)])
    cuts = [split_passage(tokenizer, person.passage) for person in corpus.forget]
    write("verbmem/forget.json", [{"prompt": p, "gt": g} for p, g in cuts])
    count = len(corpus.forget)
    for split, people in (("forget", corpus.forget), ("retain", corpus.retain[:count]), ("holdout", corpus.holdout)):
        write(f"privleak/{split}.json", [person.passage for person in people])
