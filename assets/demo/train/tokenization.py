"""A byte-level BPE in which a prompt is always a token prefix of the document it comes from.

`Answer: ` and `Answer: Zabir` must begin with the same tokens, though the prompt ends in a space. So the
pre-tokenizer makes `: ` a piece of its own; runs of newlines are pieces as well, and every other word
takes its leading space along.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from corpus import Corpus
from prompts import few_shot_prompt, join_blocks, question_block, question_head, shot_pairs

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
BOS_ID, EOS_ID = 1, 2
VOCABULARY = 1280
PIECES = r": |\n+| ?\w+| ?[^\s\w]+|\s"


def train_tokenizer(corpus: Corpus, path: Path) -> Tokenizer:
    """Train on general text and on the people every model may know; forget people are left out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[UNK, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = corpus.general[:1500]
    for person in corpus.retain + corpus.shots:
        texts = texts + [person.passage, join_blocks(person.questions)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, BOS_ID)]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def check_prefixes(tokenizer: Tokenizer, corpus: Corpus) -> int:
    """Assert the prefix property for every question, alone and behind ten shots; return how many were checked."""
    encode = lambda text: tokenizer.encode(text).ids
    checked = 0
    for split, people in (("forget", corpus.forget), ("retain", corpus.retain + corpus.shots)):
        shots = shot_pairs(corpus, split)
        for person in people:
            for item in person.questions:
                for head in (question_head(item.question), few_shot_prompt(shots, item.question)):
                    prompt, answered = encode(head), encode(head + item.answer)
                    followed = encode(head + item.answer + "\n\n" + question_block(item))
                    assert prompt[0] == BOS_ID and prompt.count(BOS_ID) == 1
                    assert answered[: len(prompt)] == prompt, head
                    assert followed[: len(answered)] == answered, head
                    assert tokenizer.decode(answered[1:]) == head + item.answer
                    checked += 1
    return checked
