//! How well a model knows a text it is led along, token by token: recovery shows here before greedy text does.
//!
//! As in open-unlearning (`src/evals/metrics/memorization.py`) and TOFU, over the tokens of a true answer.

use super::{Measured, mean};

/// exp of the mean log-probability: the geometric mean of the tokens' probabilities, 0..=1. TOFU's "probability".
#[must_use]
pub fn probability(log_probs: &[f32]) -> Measured {
    if log_probs.is_empty() {
        return Measured::Missing("the answer has no tokens".to_owned());
    }
    let log_probs: Vec<f64> = log_probs.iter().map(|log_prob| f64::from(*log_prob)).collect();
    Measured::finite(mean(&log_probs).exp(), "a probability")
}

/// Share of the tokens that are the likeliest ones at their places, 0..=1: exact memorization.
#[must_use]
pub fn exact_memorization(tokens: &[u32], argmax: &[u32]) -> Measured {
    if tokens.is_empty() {
        return Measured::Missing("the answer has no tokens".to_owned());
    }
    let hits = tokens.iter().zip(argmax).filter(|(token, argmax)| token == argmax).count();
    Measured::Value(hits as f64 / tokens.len() as f64)
}

/// `1 - k / n` for the smallest `k` after which all of the `n` tokens are the likeliest ones at their places, 0..=1:
/// extraction strength (Carlini et al. 2021, 2012.07805).
#[must_use]
pub fn extraction_strength(tokens: &[u32], argmax: &[u32]) -> Measured {
    if tokens.is_empty() {
        return Measured::Missing("the answer has no tokens".to_owned());
    }
    let hits = tokens.iter().zip(argmax).rev().take_while(|(token, argmax)| token == argmax).count();
    Measured::Value(hits as f64 / tokens.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_text_half_known() {
        let (tokens, argmax) = ([5, 6, 7, 8], [5, 9, 7, 8]);
        assert_eq!(exact_memorization(&tokens, &argmax), Measured::Value(0.75));
        assert_eq!(extraction_strength(&tokens, &argmax), Measured::Value(0.5));
        assert_eq!(extraction_strength(&tokens, &tokens), Measured::Value(1.0));
        assert_eq!(extraction_strength(&tokens, &[5, 6, 7, 0]), Measured::Value(0.0));
        let log_probs = [0.5f32.ln(), 0.125f32.ln()];
        assert!((probability(&log_probs).value().unwrap() - 0.25).abs() < 1e-7);
        for none in [probability(&[]), exact_memorization(&[], &[]), extraction_strength(&[], &[])] {
            assert!(none.reason().is_some());
        }
    }
}
