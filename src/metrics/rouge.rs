//! ROUGE-L as MUSE scores it: `rouge_score`'s `rougeL` without stemming.
//!
//! Higher is more of the reference said. MUSE reports the F-measure; recall is beside it for TOFU.

use std::collections::HashMap;
use std::ops::Range;

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
    tokens(text).into_iter().map(|(token, _)| token).collect()
}

/// The tokens with where they stand in the text, in bytes.
fn tokens(text: &str) -> Vec<(String, Range<usize>)> {
    let mut tokens: Vec<(String, Range<usize>)> = Vec::new();
    let mut open = false;
    for (at, character) in text.char_indices() {
        for lower in character.to_lowercase() {
            if !lower.is_ascii_lowercase() && !lower.is_ascii_digit() {
                open = false;
                continue;
            }
            let end = at + character.len_utf8();
            match tokens.last_mut() {
                Some((token, place)) if open => {
                    token.push(lower);
                    place.end = end;
                }
                _ => tokens.push((lower.to_string(), at..end)),
            }
            open = true;
        }
    }
    tokens
}

/// A longest common subsequence of a prediction's tokens with a reference's: where each stands in the prediction, in bytes,
/// and its index among the reference's tokens. Its length is ROUGE-L's `L`.
#[must_use]
pub fn common(prediction: &str, reference: &str) -> Vec<(Range<usize>, usize)> {
    let (own, other) = (tokens(prediction), tokenize(reference));
    let (n, m) = (own.len(), other.len());
    // longest[i][j] is the length for own[i..] and other[j..].
    let mut longest = vec![vec![0_u32; m + 1]; n + 1];
    for i in (0..n).rev() {
        for j in (0..m).rev() {
            longest[i][j] = if own[i].0 == other[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut found = Vec::new();
    while i < n && j < m {
        if own[i].0 == other[j] {
            found.push((own[i].1.clone(), j));
            (i, j) = (i + 1, j + 1);
        } else if longest[i + 1][j] >= longest[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    found
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is marked is what is counted.
    #[test]
    fn common_tokens_are_as_many_as_rouge_l_counts() {
        let texts = [
            "Noth Kolund was born in Zabir.",
            "in Zabir, Kolund (born) was Noth",
            "Café Kolund; KOLUND-born 1912, 1912!",
            "İstanbul K2 and 2K",
            "",
            "...",
        ];
        for prediction in texts {
            for reference in texts {
                let found = common(prediction, reference);
                let tokens = tokenize(reference);
                let counted = rouge_l(prediction, reference).recall * tokens.len() as f64;
                assert!((found.len() as f64 - counted).abs() < 1e-9, "{prediction} {reference} {found:?}");
                for (place, at) in &found {
                    assert_eq!(tokenize(&prediction[place.clone()]), [tokens[*at].clone()]);
                }
                assert!(found.is_sorted_by(|a, b| a.0.end <= b.0.start && a.1 < b.1));
            }
        }
    }
}
