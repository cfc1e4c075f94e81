//! lm-evaluation-harness' results and samples (`lm_eval/result_schema.py`, version 0.4.13): a folder for each arm.
//!
//! The four tasks are MUSE's. Scores are 0..=1, PrivLeak is MUSE's. A standard error is the sample's over the square root of
//! `n`, as the harness computes it, where the answers are known, else `"N/A"`; the record's intervals are in the table `undertext`
//! beside. A figure that there is none of is left out of `results`; so is every key of the schema that does not apply.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Export, ExportFile, folder, name, share};
use crate::error::Result;
use crate::metrics::Measured;
use crate::metrics::membership::PRIVLEAK_PERCENT;
use crate::report::schema::{Arm, Metric};
use crate::suite::muse::{self, Answers, MuseValues, Truth};

/// The tasks' names.
pub const TASKS: [&str; 4] =
    ["muse_verbmem_forget", "muse_knowmem_forget", "muse_knowmem_retain", "muse_privleak"];

const PRIVLEAK: &str = TASKS[3];

/// Of the tasks, as the harness counts versions.
const VERSION: f64 = 1.0;

/// A task of answers: what its record is, and what was answered.
struct Task<'a> {
    name: &'static str,
    metric: muse::Metric,
    record: &'a Metric,
    answers: Option<(&'a Answers, &'a [Truth])>,
    /// Tokens of an answer at most.
    tokens: usize,
    higher_is_better: bool,
}

/// Results, and samples where they are known, of each arm.
pub(super) fn files(export: &Export<'_>) -> Result<Vec<ExportFile>> {
    let time = file_time(export.written);
    let mut files = Vec::new();
    for arm in &export.report.arms {
        let folder = PathBuf::from(folder(arm));
        let known = export.answers(arm);
        let tasks = tasks(arm, known.map(|(_, values)| values));
        let mut hashes = Map::new();
        if let Some((stored, values)) = known {
            let answers =
                tasks.iter().filter_map(|task| Some((task.name, lines(task, stored.prompts(task.metric))?)));
            let texts = texts(values, stored.prompts(muse::Metric::Privleak));
            for (task, (lines, hash)) in answers.chain([(PRIVLEAK, texts)]) {
                hashes.insert(task.to_owned(), hash.into());
                let path = folder.join(format!("samples_{task}_{time}.jsonl"));
                files.push(ExportFile { path, text: lines });
            }
        }
        let results = results(export, arm, &tasks, &hashes);
        let text = format!("{results:#}");
        files.push(ExportFile { path: folder.join(format!("results_{time}.json")), text });
    }
    Ok(files)
}

fn tasks<'a>(arm: &'a Arm, values: Option<&'a MuseValues>) -> [Task<'a>; 3] {
    let metrics = &arm.metrics;
    let [verbmem_forget, knowmem_forget, knowmem_retain] = [
        values.map(|v| (&v.verbmem_forget, &*v.verbmem_forget_truths)),
        values.map(|v| (&v.knowmem_forget, &*v.knowmem_forget_truths)),
        values.map(|v| (&v.knowmem_retain, &*v.knowmem_retain_truths)),
    ];
    let task = |place: usize, metric, record, answers, tokens| Task {
        name: TASKS[place],
        metric,
        record,
        answers,
        tokens,
        higher_is_better: metric == muse::Metric::KnowmemRetain,
    };
    [
        task(0, muse::Metric::VerbmemForget, &metrics.verbmem_forget, verbmem_forget, 128),
        task(1, muse::Metric::KnowmemForget, &metrics.knowmem_forget, knowmem_forget, 32),
        task(2, muse::Metric::KnowmemRetain, &metrics.knowmem_retain, knowmem_retain, 32),
    ]
}

fn results(export: &Export<'_>, arm: &Arm, tasks: &[Task<'_>], hashes: &Map<String, Value>) -> Value {
    let report = export.report;
    let [mut results, mut versions, mut better, mut counts, mut configs, mut subtasks, mut intervals] =
        std::array::from_fn(|_| Map::new());
    for task in tasks {
        let mut figures = head(task.name, task.record.n);
        let mut ends = Map::new();
        let mut directions = Map::new();
        for (metric, record, scores) in figures_of(task) {
            add(&mut figures, metric, share(record.value), scores.as_deref());
            directions.insert(metric.to_owned(), task.higher_is_better.into());
            let ci95 = record.ci95.map(|ends| ends.map(|end| end / 100.0));
            ends.insert(metric.to_owned(), interval(ci95, record.reason.as_deref()));
        }
        results.insert(task.name.to_owned(), figures.into());
        better.insert(task.name.to_owned(), directions.into());
        intervals.insert(task.name.to_owned(), ends.into());
        counts.insert(task.name.to_owned(), count(task.record.n_asked, task.record.n));
        configs.insert(task.name.to_owned(), config(task.name, "generate_until", Some(task.tokens)));
    }
    let leak = &arm.metrics.privleak;
    let mut figures = head(PRIVLEAK, leak.n);
    add(&mut figures, "privleak", leak.value, None);
    add(&mut figures, "auc", leak.auc, None);
    results.insert(PRIVLEAK.to_owned(), figures.into());
    // Best at 0, or where the reference's is.
    better.insert(PRIVLEAK.to_owned(), json!({"privleak": null, "auc": null}));
    intervals.insert(PRIVLEAK.to_owned(), json!({"privleak": interval(leak.ci95, leak.reason.as_deref())}));
    counts.insert(PRIVLEAK.to_owned(), count(leak.n_asked, leak.n));
    configs.insert(PRIVLEAK.to_owned(), config(PRIVLEAK, "loglikelihood_rolling", None));
    for task in TASKS {
        versions.insert(task.to_owned(), VERSION.into());
        subtasks.insert(task.to_owned(), json!([]));
    }
    let (model, device) = (name(arm), &report.device);
    json!({
        "results": results,
        "group_subtasks": subtasks,
        "configs": configs,
        "versions": versions,
        // Few-shot examples are part of the prompts.
        "n-shot": TASKS.map(|task| (task.to_owned(), 0.into())).into_iter().collect::<Map<_, Value>>(),
        "higher_is_better": better,
        "n-samples": counts,
        "config": {
            "model": "undertext",
            "model_args": format!("pretrained={},precision={}", arm.path, arm.precision),
            "model_dtype": arm.scheme,
            "batch_size": null,
            "batch_sizes": [],
            "device": device.name,
            "use_cache": null,
            "limit": report.plan.limit,
            "bootstrap_iters": report.statistics.resamples,
            "gen_kwargs": null,
        },
        "git_hash": report.undertext.commit,
        "date": export.written,
        "pretty_env_info": format!(
            "undertext {}, {} ({}, {}), {}",
            report.undertext.version, device.name, device.backend, device.kind, device.driver
        ),
        "upper_git_hash": null,
        "task_hashes": hashes,
        "model_source": "undertext",
        "model_name": model,
        "model_name_sanitized": folder(arm),
        "system_instruction": null,
        "system_instruction_sha": null,
        "fewshot_as_multiturn": null,
        "chat_template": null,
        "chat_template_sha": null,
        "undertext": {"role": arm.role, "complete": report.complete, "ci95": intervals},
    })
}

fn head(task: &str, n: usize) -> Map<String, Value> {
    [("name", task.into()), ("alias", task.into()), ("sample_len", n.into())]
        .map(|(key, value): (&str, Value)| (key.to_owned(), value))
        .into_iter()
        .collect()
}

/// The metrics of a task: name, record, and scores of the examples, 0..=1.
fn figures_of<'a>(task: &Task<'a>) -> Vec<(&'static str, &'a Metric, Option<Vec<f64>>)> {
    let scores = task.answers.map(|(answers, _)| answers.scores());
    let mut figures = vec![("rougeL", task.record, scores)];
    let truths = |of: fn(&Truth) -> &Measured| {
        task.answers.map(|(_, truths)| truths.iter().filter_map(|truth| of(truth).value()).collect())
    };
    if let Some(truth) = task.record.truth.as_deref() {
        figures.extend([
            ("probability", &truth.probability, truths(|truth| &truth.probability)),
            ("exact_memorization", &truth.exact_memorization, truths(|truth| &truth.exact_memorization)),
            ("extraction_strength", &truth.extraction_strength, truths(|truth| &truth.extraction_strength)),
        ]);
    }
    figures
}

/// Adds a figure with its standard error, if there is one.
fn add(figures: &mut Map<String, Value>, metric: &str, value: Option<f64>, scores: Option<&[f64]>) {
    let Some(value) = value else { return };
    figures.insert(format!("{metric},none"), value.into());
    let error = scores.and_then(standard_error).map_or_else(|| "N/A".into(), Value::from);
    figures.insert(format!("{metric}_stderr,none"), error);
}

/// Of a mean: the sample's standard deviation over the root of the number; none of less than two scores.
fn standard_error(scores: &[f64]) -> Option<f64> {
    if scores.len() < 2 {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 examples")]
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    Some((squares / (n - 1.0) / n).sqrt())
}

fn interval(ci95: Option<[f64; 2]>, reason: Option<&str>) -> Value {
    match (ci95, reason) {
        (Some(ends), _) => json!(ends),
        (None, Some(reason)) => json!({"reason": reason}),
        (None, None) => Value::Null,
    }
}

fn count(asked: usize, n: usize) -> Value {
    json!({"original": asked, "effective": n})
}

fn config(task: &str, output_type: &str, tokens: Option<usize>) -> Value {
    json!({
        "task": task,
        "output_type": output_type,
        "generation_kwargs": tokens.map(generation),
        "num_fewshot": 0,
        "metadata": {"version": VERSION},
    })
}

fn generation(tokens: usize) -> Value {
    json!({"do_sample": false, "max_gen_toks": tokens})
}

/// The samples of a task, a line each, and their hash; none if they are not known.
fn lines(task: &Task<'_>, prompts: &[String]) -> Option<(String, String)> {
    let (answers, truths) = task.answers?;
    let items = answers.items.iter().zip(prompts).enumerate();
    Some(file(items.map(|(index, (answer, prompt))| {
        let mut sample = sample(
            index,
            &json!({"answer": answer.truth, "prompt": prompt}),
            &answer.truth,
            (prompt, Some(task.tokens)),
            &json!(answer.text),
        );
        let mut metrics = vec![("rougeL", Some(answer.rouge_l_f))];
        if let Some(truth) = truths.get(index) {
            metrics.extend([
                ("probability", truth.probability.value()),
                ("exact_memorization", truth.exact_memorization.value()),
                ("extraction_strength", truth.extraction_strength.value()),
            ]);
        }
        score(&mut sample, &metrics);
        sample
    })))
}

/// The samples of PrivLeak.
fn texts(values: &MuseValues, prompts: &[String]) -> (String, String) {
    let splits = [("forget", &values.privleak.forget), ("holdout", &values.privleak.holdout)];
    let scores =
        splits.into_iter().flat_map(|(split, scores)| scores.iter().map(move |score| (split, score)));
    file(scores.zip(prompts).enumerate().map(|(index, ((split, min_k), text))| {
        let doc = json!({"split": split, "text": text});
        let mut sample = sample(index, &doc, split, (text, None), &json!(min_k.value()));
        let metric = format!("min_{PRIVLEAK_PERCENT}");
        score(&mut sample, &[(&metric, min_k.value())]);
        sample
    }))
}

fn sample(
    index: usize,
    doc: &Value,
    target: &str,
    input: (&str, Option<usize>),
    response: &Value,
) -> Map<String, Value> {
    let (prompt, tokens) = input;
    let mut arguments = json!({"arg_0": prompt});
    if let Some(tokens) = tokens {
        arguments["arg_1"] = generation(tokens);
    }
    let fields = json!({
        "doc_id": index,
        // As the harness hashes a document: Python's json.dumps(indent=2, ensure_ascii=False).
        "doc_hash": sha256(&format!("{doc:#}")),
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": arguments},
        "resps": [[response]],
        "filtered_resps": [response],
        "filter": "none",
        "prompt_hash": sha256(prompt),
        "target_hash": sha256(target),
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// Adds what a sample scored; a score that there is none of is left out.
fn score(sample: &mut Map<String, Value>, metrics: &[(&str, Option<f64>)]) {
    let known: Vec<_> = metrics.iter().filter_map(|(name, value)| Some((*name, (*value)?))).collect();
    sample.insert("metrics".to_owned(), known.iter().map(|(name, _)| *name).collect());
    sample.extend(known.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
}

/// StoredAnswers as JSON lines, and the hash of their hashes.
fn file(samples: impl Iterator<Item = Map<String, Value>>) -> (String, String) {
    let (mut lines, mut hashes) = (String::new(), String::new());
    for sample in samples {
        for part in ["doc_hash", "prompt_hash", "target_hash"] {
            hashes += sample[part].as_str().unwrap_or_default();
        }
        lines += &Value::Object(sample).to_string();
        lines.push('\n');
    }
    let hash = sha256(&hashes);
    (lines, hash)
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A time as the harness names files by it: ISO 8601, `-` for `:`.
fn file_time(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "a float of microseconds saturates")]
    let time = jiff::Timestamp::from_microsecond((seconds * 1e6) as i64).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H-%M-%S%.6f").to_string()
}
