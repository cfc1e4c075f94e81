//! The MUSE suite: files to prompts and tasks, answers to scores.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use undertext::checkpoint::Tokenizer;
use undertext::engine::{Ask, Observation};
use undertext::metrics::Measured;
use undertext::suite::muse::{Metric, Muse, Prepared};
use undertext::{Error, Result};

const BOS: u32 = 1;
const EOS: u32 = 2;
const SPACE: u32 = 3;
const NEWLINE: u32 = 4;
const QUESTION: u32 = 5;
const ANSWER: u32 = 6;
/// The word `w<n>` is token `WORDS + n`.
const WORDS: u32 = 10;
const VOCAB: u32 = 400;

/// A word-level tokenizer whose text is the concatenation of its tokens, white space included, so that a prompt can be
/// checked to the character.
fn tokenizer(adds_bos: bool) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for (id, token) in
        ["<unk>", "<s>", "</s>", " ", "\n", "Question:", "Answer:", ".", "Question"].iter().enumerate()
    {
        vocab.insert((*token).to_owned(), json!(id));
    }
    for word in 0..VOCAB - WORDS {
        vocab.insert(format!("w{word}"), json!(WORDS + word));
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single = if adds_bos {
        json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, sequence])
    } else {
        json!([sequence])
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(0, "<unk>"), special(BOS, "<s>"), special(EOS, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\s"}, "behavior": "Isolated", "invert": false},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    Tokenizer::read(dir.path(), VOCAB as usize).unwrap()
}

/// `w<from> w<from + 1> …`, `count` words: `2 count - 1` tokens.
fn words(from: u32, count: u32) -> String {
    let words: Vec<_> = (from..from + count).map(|word| format!("w{word}")).collect();
    words.join(" ")
}

/// Token ids of [`words`].
fn word_ids(from: u32, count: u32) -> Vec<u32> {
    (from..from + count).flat_map(|word| [SPACE, WORDS + word]).skip(1).collect()
}

fn qa(question: &str, answer: &str) -> Value {
    json!({"question": question, "answer": answer})
}

/// A small corpus, two questions or texts in each list.
fn corpus() -> TempDir {
    let dir = TempDir::new().unwrap();
    for part in ["knowmem", "verbmem", "privleak"] {
        std::fs::create_dir(dir.path().join(part)).unwrap();
    }
    let shots = |base: u32| (0..10).map(|shot| qa(&format!("w{}", base + shot), "w7")).collect::<Vec<_>>();
    let files = [
        (
            "verbmem/forget.json",
            json!([{"prompt": words(0, 3), "gt": words(3, 90)}, {"prompt": "w1", "gt": "w2 ."}]),
        ),
        ("knowmem/forget_qa.json", json!([qa("w20", "w21"), qa("w22 w23", "w24 w25")])),
        ("knowmem/forget_qa_icl.json", json!(shots(30))),
        ("knowmem/retain_qa.json", json!([qa("w50", "w51"), qa("w52", "w53")])),
        ("knowmem/retain_qa_icl.json", json!(shots(60))),
        ("privleak/forget.json", json!([words(100, 6), words(110, 50)])),
        ("privleak/holdout.json", json!([words(200, 6), words(210, 6)])),
    ];
    for (name, content) in files {
        write(&dir, name, content.to_string());
    }
    dir
}

fn write(dir: &TempDir, name: &str, content: impl AsRef<[u8]>) {
    std::fs::write(dir.path().join(name), content).unwrap();
}

fn prepare(dir: &Path, context: usize) -> Prepared {
    Muse::read(dir, None).unwrap().prepare(&tokenizer(true), context, &[EOS]).unwrap()
}

#[test]
fn prompts_are_muse_s_to_the_character() {
    let dir = corpus();
    let tokenizer = tokenizer(true);
    let prepared = prepare(dir.path(), 4096);
    let tasks = prepared.tasks();
    assert_eq!(tasks.len(), 16);
    let metrics: Vec<_> = (0..17).map(|task| prepared.metric(task)).collect();
    let [verbmem, forget, retain, privleak] = Metric::ALL.map(Some);
    let truths = [verbmem, verbmem, forget, forget, retain, retain];
    assert_eq!(metrics, [&truths[..], &[privleak; 4], &truths, &[None]].concat());
    assert_eq!(Metric::ALL.map(|metric| prepared.truths(metric)), [10..12, 12..14, 14..16, 0..0]);
    let names = ["verbmem_forget", "knowmem_forget", "knowmem_retain", "privleak"];
    assert_eq!(Metric::ALL.map(Metric::name), names);

    // VerbMem: as it stands, after BOS.
    assert_eq!(tasks[0].tokens, [&[BOS][..], &word_ids(0, 3)].concat());
    assert_eq!(tasks[0].ask, Ask::Generate { max_new: 128, stop: vec![EOS] });

    // KnowMem: ten shots of the metric's own file, and a space at the end.
    let shots = |base: u32| -> String {
        (0..10).map(|shot| format!("Question: w{}\nAnswer: w7\n\n", base + shot)).collect()
    };
    let prompt = |task: usize| tokenizer.decode(&tasks[task].tokens).unwrap();
    assert_eq!(prompt(2), shots(30) + "Question: w20\nAnswer: ");
    assert_eq!(prompt(3), shots(30) + "Question: w22 w23\nAnswer: ");
    assert_eq!(prompt(4), shots(60) + "Question: w50\nAnswer: ");
    let word = |n: u32| WORDS + n;
    let first = [BOS, QUESTION, SPACE, word(30), NEWLINE, ANSWER, SPACE, word(7), NEWLINE, NEWLINE];
    assert_eq!(tasks[2].tokens[..10], first);
    assert_eq!(tasks[2].tokens.len(), 1 + 10 * 9 + 6);
    assert_eq!(tasks[2].tokens[91..], [QUESTION, SPACE, word(20), NEWLINE, ANSWER, SPACE]);
    // It may end where it will be cut: at a token that begins the next question.
    assert_eq!(tasks[2].ask, Ask::Generate { max_new: 32, stop: vec![EOS, QUESTION] });

    // PrivLeak: the whole text, after BOS.
    assert_eq!(tasks[6].tokens, [&[BOS][..], &word_ids(100, 6)].concat());
    assert_eq!(tasks[8].tokens, [&[BOS][..], &word_ids(200, 6)].concat());
    assert_eq!(tasks[6].ask, Ask::Score { from: 1 });
    assert_eq!(Metric::ALL.map(|metric| prepared.truncated(metric)), [0; 4]);

    // Truths: what their prompts go on with, asked for from there on.
    for (task, generated) in (12..16).zip(2..6) {
        let Ask::Score { from } = tasks[task].ask else { panic!("{task} is scored") };
        assert_eq!(tasks[task].tokens[..from], tasks[generated].tokens, "{task}");
        assert!(tasks[task].tokens.len() > from);
    }
    assert_eq!(tasks[12].tokens[97..], [word(21)]);
}

/// Where a prompt's last token is another one with the truth behind it, the truth begins before it.
#[test]
fn a_truth_begins_where_the_tokens_do() {
    let dir = corpus();
    write(&dir, "verbmem/forget.json", json!([{"prompt": "w1 w", "gt": "2 w3"}]).to_string());
    let prepared = prepare(dir.path(), 4096);
    let task = &prepared.tasks()[prepared.truths(Metric::VerbmemForget).start];
    let Ask::Score { from } = task.ask else { panic!("a truth is scored") };
    assert_eq!(task.tokens, [&[BOS][..], &tokenizer(true).encode("w1 w2 w3").unwrap()[1..]].concat());
    assert_eq!(task.tokens[from..], tokenizer(true).encode("w2 w3").unwrap()[1..]);
}

/// A token's text is what it adds, whatever stands before it.
#[test]
fn truths_come_in_pieces() {
    let dir = corpus();
    let prepared = prepare(dir.path(), 4096);
    let (mut all, mut joined) = (0, 0);
    for metric in [Metric::VerbmemForget, Metric::KnowmemForget, Metric::KnowmemRetain] {
        let pieces = prepared.truth_tokens(&tokenizer(true), metric).unwrap();
        assert_eq!(pieces.len(), prepared.truths(metric).len(), "{metric}");
        for ((task, pieces), (_, truth)) in
            prepared.tasks()[prepared.truths(metric)].iter().zip(&pieces).zip(prepared.questions(metric))
        {
            let Ask::Score { from } = task.ask else { panic!("{task:?}") };
            assert_eq!(pieces.len(), task.tokens.len() - from);
            all += 1;
            joined += usize::from(pieces.concat().trim() == truth.trim());
        }
    }
    // Truths that are cut to so many tokens, and those that are asked for without their BOS, are cut elsewhere.
    assert!(all > 0 && 2 * joined >= all, "{joined} of {all}");
    assert!(prepared.truth_tokens(&tokenizer(true), Metric::Privleak).unwrap().is_empty());

    // With a byte-pair tokenizer, whose words begin with their blank.
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let demo = Tokenizer::read(&assets.join("models/target"), usize::MAX).unwrap();
    let prepared = Muse::read(&assets.join("data"), Some(8)).unwrap().prepare(&demo, 1024, &[]).unwrap();
    let pieces = prepared.truth_tokens(&demo, Metric::KnowmemForget).unwrap();
    for (pieces, (_, truth)) in pieces.iter().zip(prepared.questions(Metric::KnowmemForget)) {
        assert_eq!(pieces.concat().trim(), truth.trim());
    }
    assert!(pieces.iter().flatten().any(|piece| piece.starts_with(' ')), "{pieces:?}");
}

#[test]
fn truths_say_how_well_they_are_known() {
    let dir = corpus();
    let prepared = prepare(dir.path(), 4096);
    let task = prepared.truths(Metric::VerbmemForget).start;
    let mut observations = answer(&prepared, |_| vec![EOS], |_, _| 0.25f32.ln());
    let Ask::Score { from } = prepared.tasks()[task].ask else { panic!("a truth is scored") };
    let truth = prepared.tasks()[task].tokens[from..].to_vec();
    // All but the first two are the likeliest.
    let mut argmax = truth.clone();
    argmax[..2].fill(EOS);
    let log_probs = vec![0.25f32.ln(); truth.len()];
    observations[task] = Observation::Scored { log_probs, argmax, details: vec![] };
    let values = prepared.measure(&tokenizer(true), &observations).unwrap();
    let share = Measured::Value((truth.len() - 2) as f64 / truth.len() as f64);
    let known = &values.verbmem_forget_truths[0];
    assert_eq!((&known.exact_memorization, &known.extraction_strength), (&share, &share));
    assert!((known.probability.value().unwrap() - 0.25).abs() < 1e-7);
    assert_eq!(values.knowmem_retain_truths.len(), 2);
    // One token too few.
    let Observation::Scored { log_probs, .. } = &mut observations[task] else { unreachable!() };
    log_probs.pop();
    assert!(prepared.measure(&tokenizer(true), &observations).is_err());
}

#[test]
fn limit_takes_the_first_examples_and_all_shots() {
    let dir = corpus();
    let tokenizer = tokenizer(true);
    let all = prepare(dir.path(), 4096);
    let one = Muse::read(dir.path(), Some(1)).unwrap().prepare(&tokenizer, 4096, &[EOS]).unwrap();
    let first = [0, 2, 4, 6, 8, 10, 12, 14].map(|task| all.tasks()[task].clone());
    assert_eq!(one.tasks(), first);
    let many = Muse::read(dir.path(), Some(99)).unwrap().prepare(&tokenizer, 4096, &[EOS]).unwrap();
    assert_eq!(many, all);
    let error = Muse::read(dir.path(), Some(0)).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().contains("--limit")), (2, true));
}

#[test]
fn what_does_not_fit_the_context_is_cut_and_counted() {
    let dir = corpus();
    // 200 words are 399 tokens with the spaces, 400 with BOS.
    let prompt = words(0, 200);
    write(&dir, "verbmem/forget.json", json!([{"prompt": prompt, "gt": "w1"}]).to_string());
    let muse = Muse::read(dir.path(), None).unwrap();

    // Exactly: 400 + 128.
    let fits = muse.prepare(&tokenizer(true), 528, &[EOS]).unwrap();
    assert_eq!(fits.tasks()[0].tokens.len(), 400);
    assert_eq!(fits.truncated(Metric::VerbmemForget), 0);

    // One less: the first token after BOS goes.
    let whole = &fits.tasks()[0].tokens;
    let cut = muse.prepare(&tokenizer(true), 527, &[EOS]).unwrap();
    assert_eq!(cut.tasks()[0].tokens, [&[BOS], &whole[2..]].concat());
    assert_eq!(cut.truncated(Metric::VerbmemForget), 1);

    // KnowMem's prompts have 97 and 99 tokens, its answers 32; the longest PrivLeak text has 100.
    let cut = muse.prepare(&tokenizer(true), 130, &[EOS]).unwrap();
    let counts = Metric::ALL.map(|metric| cut.truncated(metric));
    assert_eq!(counts, [1, 1, 0, 0]);
    assert_eq!(cut.tasks()[0].tokens, [&[BOS], &whole[399..]].concat());
    // One VerbMem task, so KnowMem's are 1 and 2.
    assert_eq!(cut.tasks()[1], fits.tasks()[1]);
    assert_eq!(cut.tasks()[2].tokens, [&[BOS], &fits.tasks()[2].tokens[2..]].concat());

    // A scored text loses its end.
    write(&dir, "privleak/forget.json", json!([words(100, 6), words(0, 90)]).to_string());
    let muse = Muse::read(dir.path(), None).unwrap();
    let cut = muse.prepare(&tokenizer(true), 150, &[EOS]).unwrap();
    assert_eq!(cut.tasks()[6].tokens, [&[BOS], &word_ids(0, 90)[..149]].concat());
    assert_eq!(cut.truncated(Metric::Privleak), 1);

    // Without a BOS there is nothing in front to keep.
    let cut = muse.prepare(&tokenizer(false), 526, &[EOS]).unwrap();
    assert_eq!(cut.tasks()[0].tokens, word_ids(0, 200)[1..]);

    let error = muse.prepare(&tokenizer(true), 129, &[EOS]).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("129 tokens"), "{error}");
}

/// An answer to every task: the given text, or log-probabilities.
fn answer(
    prepared: &Prepared,
    text: impl Fn(usize) -> Vec<u32>,
    log_prob: impl Fn(usize, usize) -> f32,
) -> Vec<Observation> {
    let tasks = prepared.tasks().iter().enumerate();
    tasks
        .map(|(index, task)| match task.ask {
            Ask::Generate { .. } => {
                let tokens = text(index);
                Observation::Generated { log_probs: vec![-1.0; tokens.len()], tokens }
            }
            Ask::Score { from } => {
                let count = task.tokens.len() - from;
                let log_probs = (0..count).map(|token| log_prob(index, token)).collect();
                Observation::Scored { log_probs, argmax: vec![0; count], details: vec![] }
            }
        })
        .collect()
}

#[test]
fn answers_become_scores() {
    let dir = corpus();
    let tokenizer = tokenizer(true);
    let prepared = prepare(dir.path(), 4096);
    let text = |text: &str| tokenizer.encode(text).unwrap()[1..].to_vec();
    let answers = |task: usize| match task {
        // The truth's 128 tokens hold BOS, 64 words and 63 spaces; here are its first 32 words and 32 others.
        0 => [word_ids(3, 32), vec![SPACE], word_ids(300, 32)].concat(),
        // Decoded without EOS, and cleaned up: "w2." is what the truth "w2 ." becomes, too.
        1 => [text("w2 ."), vec![EOS]].concat(),
        // One of two words, a single line break does not end it, a double one does.
        2 => text("w21\nw99\n\nQuestion: w30\nAnswer: w21"),
        3 => text("w25 w24\nQuestion w24 w25"),
        4 => text(" w51 Question: w51"),
        _ => vec![EOS],
    };
    // Of 11 tokens the 4 least count, of 99 the 39 least.
    let log_prob = |task: usize, token: usize| match task {
        6 => -1.0 - token as f32,
        7 => -0.5,
        8 => -9.5,
        _ => -0.25,
    };
    let values = prepared.measure(&tokenizer, &answer(&prepared, answers, log_prob)).unwrap();

    let verbmem = &values.verbmem_forget.items;
    assert_eq!(verbmem[0].truth, words(3, 64));
    assert_eq!(verbmem[0].text, words(3, 32) + " " + &words(300, 32));
    assert_eq!((verbmem[0].rouge_l_f, verbmem[0].rouge_l_recall), (0.5, 0.5));
    assert_eq!((&verbmem[1].text[..], &verbmem[1].truth[..]), ("w2.", "w2."));
    assert_eq!(values.verbmem_forget.scores(), [0.5, 1.0]);
    assert_eq!(values.verbmem_forget.value(), Measured::Value(75.0));

    let knowmem = &values.knowmem_forget.items;
    assert_eq!((&knowmem[0].text[..], &knowmem[0].truth[..]), ("w21\nw99", "w21"));
    assert_eq!((knowmem[0].rouge_l_recall, (knowmem[0].rouge_l_f - 2.0 / 3.0).abs() < 1e-15), (1.0, true));
    assert_eq!((&knowmem[1].text[..], knowmem[1].rouge_l_f), ("w25 w24", 0.5));
    let retain = &values.knowmem_retain.items;
    assert_eq!((&retain[0].text[..], retain[0].rouge_l_f), (" w51 ", 1.0));
    assert_eq!((&retain[1].text[..], retain[1].rouge_l_f), ("", 0.0));
    assert_eq!(values.knowmem_retain.value(), Measured::Value(50.0));

    // Minus the mean of -11, -10, -9, -8.
    let privleak = &values.privleak;
    assert_eq!(privleak.forget, [Measured::Value(9.5), Measured::Value(0.5)]);
    assert_eq!(privleak.holdout, [Measured::Value(9.5), Measured::Value(0.25)]);
    // Pairs (holdout below forget): 9.5 against 9.5 (half), 0.25 (one); 0.5 against 9.5 (none), 0.25 (one).
    assert_eq!(privleak.auc(), Measured::Value(2.5 / 4.0));
}

#[test]
fn a_text_too_short_for_min_k_is_named() {
    let dir = corpus();
    // Two tokens after BOS: 40 % of them is none.
    write(&dir, "privleak/holdout.json", json!([words(100, 6), "w1 "]).to_string());
    let tokenizer = tokenizer(true);
    let prepared = prepare(dir.path(), 4096);
    let observations = answer(&prepared, |_| vec![EOS], |_, _| -1.0);
    let values = prepared.measure(&tokenizer, &observations).unwrap();
    let auc = values.privleak.auc();
    assert!(auc.reason().is_some_and(|reason| reason.starts_with("holdout text 1: ")), "{auc:?}");
}

#[test]
fn answers_that_do_not_belong_to_the_tasks() {
    let dir = corpus();
    let tokenizer = tokenizer(true);
    let prepared = prepare(dir.path(), 4096);
    let good = answer(&prepared, |_| vec![EOS], |_, _| -1.0);
    prepared.measure(&tokenizer, &good).unwrap();

    let measure = |observations: &[Observation]| prepared.measure(&tokenizer, observations).unwrap_err();
    assert!(matches!(measure(&good[1..]), Error::Shape { got: 15, .. }));
    let mut swapped = good.clone();
    swapped.swap(5, 6);
    let error = measure(&swapped);
    assert_eq!(
        error.to_string(),
        "task 5 was answered with 11 scored tokens, expected up to 32 generated tokens"
    );
    let mut short = good.clone();
    short[9] = Observation::Scored { log_probs: vec![-1.0; 10], argmax: vec![0; 10], details: vec![] };
    assert!(matches!(measure(&short), Error::Observation { task: 9, .. }));
    let mut long = good;
    long[2] = Observation::Generated { tokens: vec![SPACE; 33], log_probs: vec![-1.0; 33] };
    assert!(matches!(measure(&long), Error::Observation { task: 2, .. }));
}

fn refused(result: Result<Muse>, parts: &[&str]) {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert_eq!(error.exit_code(), 3, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn broken_data_files_are_named() {
    let dir = corpus();
    let read = || Muse::read(dir.path(), None);
    let name = "knowmem/forget_qa.json";
    let cases: [(&[u8], &[&str]); 11] = [
        (b"", &["an empty file"]),
        (b"[]", &["an empty array"]),
        (b"{}", &["an object", "an array"]),
        (b"[{\"question\": \"a\"", &["JSON"]),
        (b"\xef\xbb\xbf[]", &["byte-order mark"]),
        (b"[{\"question\": \"\xff\"}]", &["UTF-8", "offset 15"]),
        (b"[\"text\"]", &["example 0", "a string", "an object with question and answer"]),
        (
            b"[{\"question\": \"a\", \"answer\": \"b\"}, {\"question\": \"a\"}]",
            &["example 1, field answer", "only the fields []"],
        ),
        (b"[{\"prompt\": \"a\", \"gt\": \"b\"}]", &["example 0, field question", "[gt, prompt]"]),
        (b"[{\"question\": 7, \"answer\": \"b\"}]", &["example 0, field question", "a number", "a string"]),
        (b"[{\"question\": \"a\", \"answer\": null}]", &["example 0, field answer", "null"]),
    ];
    for (content, parts) in cases {
        write(&dir, name, content);
        refused(read(), &[&["forget_qa.json"], parts].concat());
    }
    std::fs::remove_file(dir.path().join(name)).unwrap();
    refused(read(), &["forget_qa.json", "missing", "MUSE corpus"]);

    let dir = corpus();
    write(&dir, "privleak/holdout.json", "[\"a\", {\"text\": \"b\"}]");
    refused(Muse::read(dir.path(), None), &["holdout.json", "example 1", "an object", "a string"]);
    write(&dir, "verbmem/forget.json", "[{\"prompt\": \"a\"}]");
    refused(Muse::read(dir.path(), None), &["forget.json", "example 0, field gt"]);
    refused(Muse::read(&dir.path().join("nowhere"), None), &["nowhere", "directory is missing"]);

    // An example past the limit is not looked at.
    let dir = corpus();
    write(&dir, "privleak/holdout.json", "[\"a\", 1]");
    Muse::read(dir.path(), Some(1)).unwrap();
}

#[test]
fn texts_without_tokens_are_named() {
    let dir = corpus();
    write(&dir, "privleak/forget.json", "[\"w1 w2\", \"\"]");
    let muse = Muse::read(dir.path(), None).unwrap();
    muse.prepare(&tokenizer(true), 4096, &[EOS]).unwrap();
    let error = muse.prepare(&tokenizer(false), 4096, &[EOS]).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("privleak, example 1"), "{error}");
}
