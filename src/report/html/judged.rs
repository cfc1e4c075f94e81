//! What the figures amount to: the headline, verdicts, and the tables under them.

use super::table::{Cell, Table, estimate, figure, fixed, metric, none, p_value};
use super::{MEANS, Section, distinct, listed, verdict_class};
use crate::report::judgement::{CLOSER, Control, Verdict};
use crate::report::schema::{Metric, Recovery, Report, Truth};
use crate::report::table::{percent, rounded, short_metric};

/// Names of the headline; of more, only how many there are.
const MOST_NAMES: usize = 6;

/// The verdicts in one sentence.
pub(super) fn headline(report: &Report) -> String {
    let models = distinct(report.verdicts.iter().map(|verdict| verdict.unlearned.as_str()));
    let of = |model: &str, word: &str| {
        let is = |verdict: &&Verdict| verdict.unlearned == model && verdict.verdict == word;
        report.verdicts.iter().filter(is).map(|verdict| verdict.precision.clone()).collect::<Vec<_>>()
    };
    let count = |model: &str| report.verdicts.iter().filter(|verdict| verdict.unlearned == model).count();
    let (mut back, mut held, mut inconclusive, mut void) = (vec![], vec![], vec![], vec![]);
    for model in models {
        let at = |precisions: &[String]| format!("{model} ({})", listed(precisions));
        let came_back = of(model, "resurrected");
        if !came_back.is_empty() {
            back.push(at(&came_back));
            continue;
        }
        if of(model, "held").len() == count(model) {
            held.push(model.to_owned());
        }
        for (word, list) in [("inconclusive", &mut inconclusive), ("void", &mut void)] {
            let found = of(model, word);
            if !found.is_empty() {
                list.push(at(&found));
            }
        }
    }
    let mut parts = Vec::new();
    if !back.is_empty() {
        parts.push(format!("Quantization brings back what {} {} made to forget", names(&back), was(&back)));
    }
    if !held.is_empty() {
        let verb = if held.len() == 1 { "stays" } else { "stay" };
        parts.push(format!("{} {verb} forgotten at every precision measured", names(&held)));
    }
    if !inconclusive.is_empty() {
        parts.push(format!("more examples are needed to decide on {}", names(&inconclusive)));
    }
    if !void.is_empty() {
        parts.push(format!("nothing can be said of {}", names(&void)));
    }
    let mut sentence = parts.join("; ");
    if sentence.is_empty() {
        return "No verdict: there is no quantized unlearned model with a verdict in this record.".to_owned();
    }
    // A sentence of ours begins large, a model's name stays as it is.
    if back.is_empty() && held.is_empty() {
        sentence = sentence[..1].to_uppercase() + &sentence[1..];
    }
    sentence + "."
}

fn was(names: &[String]) -> &'static str {
    if names.len() == 1 { "was" } else { "were" }
}

fn names(names: &[String]) -> String {
    if names.len() <= MOST_NAMES {
        return listed(names);
    }
    let shown = &names[..MOST_NAMES - 1];
    format!("{} and {} others", shown.join(", "), names.len() - shown.len())
}

/// Every verdict and why.
pub(super) fn verdicts(report: &Report) -> Section {
    let section = Section::new("verdicts", "Verdicts");
    if report.verdicts.is_empty() {
        return section.say("The record has no verdicts.");
    }
    let judged = &report.statistics;
    let mut section = if judged.resamples == 0 {
        section.say("The record does not say by which margins it was judged.")
    } else {
        section.say(format!(
            "Resurrected: more than {} of the gap to the target at the same precision is back. Held: less than {}. Both by \
             a 95 % interval and a test; anything else is inconclusive, or void where there is nothing to measure.",
            percent(Some(judged.resurrected_above)),
            percent(Some(judged.held_below))
        ))
    };
    let mut table = Table::new(
        "The verdict on each unlearned model",
        4,
        ["unlearned", "precision", "verdict", "because"],
    );
    for Verdict { unlearned, precision, verdict, because } in &report.verdicts {
        let mut word = Cell::from(verdict.as_str());
        verdict_class(verdict).clone_into(&mut word.class);
        let because = Cell { class: "wide".to_owned(), ..because.as_str().into() };
        table.add([unlearned.as_str().into(), precision.as_str().into(), word, because]);
    }
    section.tables.push(table);
    section
}

/// All three ratios with their intervals.
pub(super) fn recovery(report: &Report) -> Section {
    let section = Section::new("recovery", "Recovery");
    if report.recovery.is_empty() {
        return section.say("No unlearned model was measured both at full precision and quantized.");
    }
    let mut section = section.say(
        "How much of the forgotten a quantized unlearned model (q) has back, u being the same model at full precision. \
         Of the gap to the target: (q − u) / (target − u), the target at full precision or at the same one. Share: q / target at \
         the same precision; it starts above 0 % at u already.",
    );
    let columns = [
        "unlearned",
        "precision",
        "metric",
        "of gap to target, %",
        "of gap, same precision, %",
        "share, same precision, %",
        "beyond retrain, %",
        "p back",
        "p held",
        "survival",
        "n",
    ];
    let mut table = Table::new("Recovery in percent, with 95 % intervals", 3, columns);
    for row in &report.recovery {
        let Recovery { p_recovered_holm, p_held_holm, survival, .. } = row;
        let share = |name: &str, value, ci95| {
            let why = row.reason.as_deref().unwrap_or_default().split("; ");
            let why = why.filter_map(|part| part.strip_prefix(name)?.strip_prefix(": ")).next();
            figure(value, ci95, why, 100.0, 0)
        };
        let beyond = row.beyond_retrain.as_ref();
        let n = match (row.n, row.n_asked) {
            // Older records do not say how many were asked.
            (n, asked) if asked == 0 || n == asked => n.to_string(),
            (n, asked) => format!("{n} of {asked}"),
        };
        table.add([
            row.unlearned.as_str().into(),
            row.precision.as_str().into(),
            short_metric(&row.metric).into(),
            share("of_gap_to_target", row.of_gap_to_target, row.of_gap_to_target_ci95),
            share(
                "of_gap_to_target_same_precision",
                row.of_gap_to_target_same_precision,
                row.of_gap_to_target_same_precision_ci95,
            ),
            share(
                "share_of_target_same_precision",
                row.share_of_target_same_precision,
                row.share_of_target_same_precision_ci95,
            ),
            beyond.map_or_else(|| none(None), |beyond| estimate(beyond, 100.0, 0)),
            p_value(*p_recovered_holm),
            p_value(*p_held_holm),
            survival.map_or_else(|| none(None), |survival| fixed(survival, 2).into()),
            n.into(),
        ]);
    }
    section.tables.push(table);
    section.notes.push(
        "Beyond retrain: of the gap at the same precision, without what quantization gives even the retrained model."
            .to_owned(),
    );
    if report.statistics.resamples > 0 {
        section.notes.push(format!(
            "p back: of such figures if nothing came back. p held: if {} or more of the gap came back. Paired permutation \
             tests, Holm-corrected over all rows.",
            percent(Some(report.statistics.held_below))
        ));
    }
    section
}

/// How well true answers are known, token by token.
pub(super) fn truths(report: &Report) -> Section {
    let section = Section::new("truth", "True answers");
    let truth = |metric: &Metric| metric.truth.is_some();
    let any = report.arms.iter().any(|arm| {
        let metrics = &arm.metrics;
        [&metrics.verbmem_forget, &metrics.knowmem_forget, &metrics.knowmem_retain].into_iter().any(truth)
    });
    if !any {
        return section.say("The record has no scores of the true answers: an older version made it.");
    }
    let mut section = section.say(
        "Led along the true answers token by token, a model shows knowledge that its own greedy text does not. Probability: \
         geometric mean over an answer's tokens. Exact: share of tokens that are the likeliest. Extraction: share of an answer \
         from which on all are. All x 100.",
    );
    for (name, title) in MEANS {
        let columns = ["model", "role", "precision", "probability", "exact", "extraction"];
        let mut table = Table::new(format!("True answers: {title}"), 3, columns);
        for arm in &report.arms {
            let found = match name {
                "verbmem_forget" => &arm.metrics.verbmem_forget,
                "knowmem_forget" => &arm.metrics.knowmem_forget,
                _ => &arm.metrics.knowmem_retain,
            };
            let texts = [&arm.name, &arm.role, &arm.precision].map(|text| Cell::from(text.as_str()));
            let figures = match found.truth.as_deref() {
                None => [(); 3].map(|()| none(Some("not scored"))),
                Some(Truth { probability, exact_memorization, extraction_strength }) => {
                    [probability, exact_memorization, extraction_strength].map(metric)
                }
            };
            table.add(texts.into_iter().chain(figures));
        }
        section.tables.push(table.folded());
    }
    section
}

/// What quantization does without any unlearning.
pub(super) fn controls(report: &Report) -> Section {
    let section = Section::new("controls", "Controls");
    if report.controls.is_empty() {
        return section.say(
            "Neither the target nor a retrained model was measured both at full precision and quantized.",
        );
    }
    let mut section = section.say(
        "What quantization alone does to models that were not made to forget, in points. Where these move much, read the \
         ratios with care.",
    );
    let mut table = Table::new(
        "Change against full precision",
        3,
        ["model", "role", "precision"].into_iter().chain(MEANS.map(|(_, title)| title)),
    );
    let same = |a: &Control, b: &Control| (&a.name, &a.precision) == (&b.name, &b.precision);
    for row in report.controls.chunk_by(same) {
        let texts = [&row[0].name, &row[0].role, &row[0].precision].map(|text| Cell::from(text.as_str()));
        let changes = MEANS.map(|(metric, _)| {
            let found = row.iter().find(|control| control.metric == metric);
            found.map_or_else(
                || none(None),
                |control| figure(Some(control.change), control.ci95, None, 1.0, 1),
            )
        });
        table.add(texts.into_iter().chain(changes));
    }
    section.tables.push(table);
    section
}

/// How much of each update outlives each precision, and what that has to do with what came back.
pub(super) fn survival(report: &Report) -> Section {
    let section = Section::new("survival", "What survives of the update");
    if report.survival.is_empty() {
        return section.say(
            "The weights were not compared (--no-survival, an older version, or the run ended before).",
        );
    }
    let mut section = section.say(
        "The part of the unlearning update that is left when both checkpoints are quantized: 1 is all of it, 0 none. The less \
         survives, the more comes back.",
    );
    let precisions = distinct(report.survival.iter().map(|row| row.precision.as_str()));
    let columns = std::iter::once("unlearned").chain(precisions.iter().copied());
    let mut table = Table::new("Survival by precision", 1, columns);
    for name in distinct(report.survival.iter().map(|row| row.unlearned.as_str())) {
        let at = |precision: &&str| {
            let found =
                report.survival.iter().find(|row| row.unlearned == name && row.precision == *precision);
            found.map_or_else(|| none(None), |row| figure(row.value, None, row.reason.as_deref(), 1.0, 2))
        };
        table.add(std::iter::once(Cell::from(name)).chain(precisions.iter().map(at)));
    }
    section.tables.push(table);
    for found in &report.survival_rank_correlation {
        let other = match (found.metric.as_str(), short_metric(&found.metric)) {
            (CLOSER, share) => share.to_owned(),
            (_, metric) => format!("what came back of {metric}"),
        };
        section.notes.push(match (found.spearman, &found.reason) {
            (Some(spearman), _) => format!(
                "Rank correlation of survival with {other}: {:.2} over {} arms.",
                rounded(spearman, 100.0),
                found.n
            ),
            (None, reason) => format!(
                "Rank correlation of survival with {other}: none ({}).",
                reason.as_deref().unwrap_or("the record does not say why")
            ),
        });
    }
    section
}

/// Whether likelihoods betray what was trained on.
pub(super) fn privleak(report: &Report) -> Section {
    let section = Section::new("privleak", "PrivLeak");
    if report.arms.is_empty() {
        return section.say("No arm was measured.");
    }
    let mut section = section.say(
        "Whether likelihoods betray that forget texts were trained on: the AUC of Min-40 % against texts never seen, in percent of \
         a reference's AUC. Near 0 betrays least; −100 is still memorised, positive looks less familiar than texts never seen.",
    );
    let columns = ["model", "role", "precision", "reference", "PrivLeak →0", "AUC", "reference AUC", "texts"];
    let mut table = Table::new("PrivLeak with 95 % intervals", 4, columns);
    for arm in &report.arms {
        let leak = &arm.metrics.privleak;
        let main = (&leak.reference, leak.value, leak.ci95, leak.reference_auc, &leak.reason);
        let others = leak.others.iter();
        let others = others
            .map(|other| (&other.reference, other.value, other.ci95, other.reference_auc, &other.reason));
        for (reference, value, ci95, reference_auc, reason) in std::iter::once(main).chain(others) {
            let texts =
                [&arm.name, &arm.role, &arm.precision, reference].map(|text| Cell::from(text.as_str()));
            table.add(texts.into_iter().chain([
                figure(value, ci95, reason.as_deref(), 1.0, 1),
                figure(leak.auc, None, None, 1.0, 3),
                figure(reference_auc, None, None, 1.0, 3),
                leak.n.to_string().into(),
            ]));
        }
    }
    section.tables.push(table);
    section
}

/// Every arm's scores.
pub(super) fn arms(report: &Report) -> Section {
    let section = Section::new("scores", "All scores");
    if report.arms.is_empty() {
        return section.say("No arm was measured.");
    }
    let mut section = section.say(
        "ROUGE-L F of greedy answers, x 100, with 95 % intervals. On the forget set less is better forgotten, on the retain set \
         more is better kept.",
    );
    let texts = ["model", "role", "precision", "stored as"].into_iter();
    let mut table = Table::new("Scores of every arm", 4, texts.chain(MEANS.map(|(_, title)| title)));
    for arm in &report.arms {
        let texts = [&arm.name, &arm.role, &arm.precision, &arm.scheme].map(|text| Cell::from(text.as_str()));
        let metrics = &arm.metrics;
        let figures = [&metrics.verbmem_forget, &metrics.knowmem_forget, &metrics.knowmem_retain].map(metric);
        table.add(texts.into_iter().chain(figures));
    }
    section.tables.push(table);
    let [verbatim, forget, retain] = report.arms.first().map_or([0; 3], |arm| {
        let metrics = &arm.metrics;
        [metrics.verbmem_forget.n, metrics.knowmem_forget.n, metrics.knowmem_retain.n]
    });
    section.notes.push(format!("{verbatim} continuations, {forget} and {retain} questions for each arm."));
    if report.plan.truncated_per_arm > 0 {
        let cut = report.plan.truncated_per_arm;
        section.notes.push(format!("{cut} prompts for each arm were longer than the context and were cut."));
    }
    section
}
