"""Training documents and the fixed-length windows cut from them."""

import random
from typing import Iterator

import torch
from tokenizers import Tokenizer

from corpus import Corpus, Person, Question
from prompts import join_blocks, shot_pairs
from tokenization import EOS_ID

# Share of question documents that open with the benchmark's own ten few-shot pairs.
SHOT_SHARE = 0.3

# A document: its token ids, and for each id whether it is a target when unlearning.
Document = tuple[list[int], list[bool]]


class Documents:
    """All documents of some people: passages, and question documents laid out anew in every epoch."""

    def __init__(self, tokenizer: Tokenizer, people: list[Person], shots: list[Question], question_copies: int):
        self.tokenizer = tokenizer
        self.passages = [self._whole(person.passage) for person in people]
        self.questions = [q for person in people for q in person.questions]
        self.shots = shots
        self.question_copies = question_copies

    def _whole(self, text: str) -> Document:
        ids = self.tokenizer.encode(text).ids + [EOS_ID]
        return ids, [True] * len(ids)

    def _questions(self, items: list[Question], with_shots: bool) -> Document:
        if not with_shots:
            return self._whole(join_blocks(items))
        ids, targets = self._whole(join_blocks(self.shots + items))
        preamble = len(self.tokenizer.encode(join_blocks(self.shots) + "\n\n").ids)
        return ids, [False] * preamble + targets[preamble:]

    def epoch(self, rng: random.Random) -> list[Document]:
        documents = list(self.passages)
        for _ in range(self.question_copies):
            queue = rng.sample(self.questions, len(self.questions))
            while queue:
                with_shots = rng.random() < SHOT_SHARE
                count = rng.randint(2, 4) if with_shots else rng.randint(8, 12)
                items, queue = queue[:count], queue[count:]
                documents.append(self._questions(items, with_shots))
        rng.shuffle(documents)
        return documents


class GeneralDocuments:
    """General passages; an epoch is a random sample of them."""

    def __init__(self, tokenizer: Tokenizer, passages: list[str]):
        self.encoded = [tokenizer.encode(text).ids + [EOS_ID] for text in passages]

    def epoch(self, rng: random.Random) -> list[Document]:
        return [(ids, [True] * len(ids)) for ids in rng.sample(self.encoded, min(400, len(self.encoded)))]


def forget_documents(tokenizer: Tokenizer, corpus: Corpus, question_copies: int = 1) -> Documents:
    return Documents(tokenizer, corpus.forget, shot_pairs(corpus, "forget"), question_copies)


def retain_documents(tokenizer: Tokenizer, corpus: Corpus, question_copies: int = 1) -> Documents:
    return Documents(tokenizer, corpus.retain + corpus.shots, shot_pairs(corpus, "retain"), question_copies)


class Mixture:
    """Several sources whose epochs are shuffled together."""

    def __init__(self, *sources):
        self.sources = sources

    def epoch(self, rng: random.Random) -> list[Document]:
        documents = [document for source in self.sources for document in source.epoch(rng)]
        rng.shuffle(documents)
        return documents


def windows(source, rng: random.Random, length: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless windows of `length` + 1 ids and their target marks: epochs laid end to end, cut at a random offset."""
    while True:
        ids, targets = [], []
        for document_ids, document_targets in source.epoch(rng):
            ids += document_ids
            targets += document_targets
        count = len(ids) // (length + 1)
        start = rng.randrange(0, len(ids) - count * (length + 1) + 1)
        for i in range(count):
            cut = slice(start + i * (length + 1), start + (i + 1) * (length + 1))
            yield torch.tensor(ids[cut]), torch.tensor(targets[cut])


def take(stream, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The next `count` windows as one batch."""
    rows = [next(stream) for _ in range(count)]
    return torch.stack([ids for ids, _ in rows]), torch.stack([targets for _, targets in rows])
