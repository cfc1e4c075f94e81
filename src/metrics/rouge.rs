//! ROUGE-L as MUSE scores it: `rouge_score`'s `rougeL` without stemming.
//!
//! Higher is more of the reference said. MUSE reports the F-measure; recall is beside it for TOFU.

use std::collections::HashMap;

/// ROUGE-L of one answer, each in 0..=1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RougeL {
    /// Common tokens over the prediction's tokens.
    pub precision: f64,
    /// Common tokens over the reference's tokens.
    pub recall: f64,
    /// Harmonic mean of the two; 0 if both are 0.
    pub f: f64,
}

/// Scores what a model said against what it should have said.
///
/// Tokens are those of [`tokenize`]; `L` is the length of their longest common subsequence;
/// `precision = L / len(prediction)`, `recall = L / len(reference)`, `f = 2 p r / (p + r)`. All are 0
/// if either side has no token.
#[must_use]
pub fn rouge_l(prediction: &str, reference: &str) -> RougeL {
    let prediction = tokenize(prediction);
    let reference = tokenize(reference);
    let common = common_length(&prediction, &reference);
    if common == 0 {
        return RougeL::default();
    }
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    let (precision, recall) =
        (common as f64 / prediction.len() as f64, common as f64 / reference.len() as f64);
    RougeL { precision, recall, f: 2.0 * precision * recall / (precision + recall) }
}

/// ROUGE-1 recall, 0..=1: the reference's tokens that the prediction has too, each as often as both have it, over the
/// reference's tokens. 0 if the reference has none.
#[must_use]
pub fn rouge_1_recall(prediction: &str, reference: &str) -> f64 {
    let mut left = HashMap::<String, usize>::new();
    tokenize(prediction).into_iter().for_each(|token| *left.entry(token).or_default() += 1);
    let reference = tokenize(reference);
    let common = reference
        .iter()
        .filter(|token| match left.get_mut(*token) {
            Some(count @ 1..) => {
                *count -= 1;
                true
            }
            _ => false,
        })
        .count();
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    let recall = common as f64 / reference.len().max(1) as f64;
    recall
}

/// Lower-cases and splits at every run of characters other than `a-z` and `0-9`.
///
/// Letters outside ASCII separate ("Café" gives `caf`), except the two whose lower case is in ASCII,
/// as in Python: `İ` gives `i` and the Kelvin sign gives `k`.
#[must_use]
pub fn tokenize(text: &str) -> Vec<String> {
    let lower: String = text.chars().flat_map(char::to_lowercase).collect();
    lower
        .split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit())
        .filter(|token| !token.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Length of the longest common subsequence.
fn common_length(a: &[String], b: &[String]) -> usize {
    // row[j] is the length for the tokens of a seen so far and the first j of b.
    let mut row = vec![0; b.len() + 1];
    for token in a {
        let mut diagonal = 0;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if token == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
