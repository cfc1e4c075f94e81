//! `tokenizer.json` and `tokenizer_config.json`.

use std::collections::HashMap;

use serde_json::{Value, json};
use tempfile::TempDir;
use undertext::checkpoint::Tokenizer;

use super::{refused, write, write_json};

/// A word-level tokenizer with BOS 1 and EOS 2, its post-processor adding BOS.
pub(super) fn tokenizer_json(words: &[&str]) -> Value {
    let mut vocab: HashMap<&str, usize> = HashMap::from([("<unk>", 0), ("<s>", 1), ("</s>", 2)]);
    for (index, word) in words.iter().enumerate() {
        vocab.insert(word, 3 + index);
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        // As some published tokenizers carry: must not shorten or lengthen what is encoded.
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    })
}

#[test]
fn tokenizer_config_is_read() {
    let dir = TempDir::new().unwrap();
    write_json(dir.path(), "tokenizer.json", &tokenizer_json(&["yes", "."]));
    let read = |config: Value| {
        write_json(dir.path(), "tokenizer_config.json", &config);
        Tokenizer::read(dir.path(), 5)
    };
    let cleaned = |config: Value| read(config).unwrap().decode(&[3, 4]).unwrap();
    assert_eq!(cleaned(json!({})), "yes .");
    assert_eq!(cleaned(json!({"clean_up_tokenization_spaces": false})), "yes .");
    assert_eq!(cleaned(json!({"clean_up_tokenization_spaces": true})), "yes.");
    assert_eq!(read(json!({"add_bos_token": true})).unwrap().declares_bos(), Some(true));
    refused(read(json!({"add_bos_token": 1})), &["tokenizer_config.json", "add_bos_token", "found 1"]);

    // transformers 5 does not clean up after BPE, whatever clean_up_tokenization_spaces says.
    let mut bpe = tokenizer_json(&[]);
    let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, ".": 4});
    bpe["model"] = json!({"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"});
    write_json(dir.path(), "tokenizer.json", &bpe);
    assert_eq!(cleaned(json!({"clean_up_tokenization_spaces": true})), "a .");
    let force = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
    assert_eq!(cleaned(json!({"clean_up_tokenization_spaces": true, force: true})), "a.");
}

#[test]
fn tokenizers_that_do_not_fit() {
    let dir = TempDir::new().unwrap();
    let read = |vocab| Tokenizer::read(dir.path(), vocab);
    refused(read(5), &["tokenizer.json", "tokenizer is missing"]);
    write(dir.path(), "tokenizer.model", "");
    refused(read(5), &["tokenizer.json", "only tokenizer.model"]);
    write(dir.path(), "tokenizer.json", "{}");
    refused(read(5), &["tokenizer.json"]);
    write(dir.path(), "tokenizer.json", "version https://git-lfs.github.com/spec/v1\n");
    refused(read(5), &["tokenizer.json", "git lfs pull"]);

    write_json(dir.path(), "tokenizer.json", &tokenizer_json(&["yes", "no"]));
    read(5).unwrap();
    refused(read(4), &["tokenizer.json", "token id 4", "4 rows"]);
    // A post-processor's id is not in the vocabulary that the tokenizer lists.
    let mut tokenizer = tokenizer_json(&["yes", "no"]);
    tokenizer["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([77]);
    write_json(dir.path(), "tokenizer.json", &tokenizer);
    refused(read(5), &["tokenizer.json", "token id 77"]);
}
