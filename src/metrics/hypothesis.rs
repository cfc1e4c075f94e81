//! Permutation tests on paired scores, and Holm's correction for asking many questions.

use rand::RngCore;

use super::bootstrap::generator;

/// What a test looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alternative {
    /// The mean difference is above 0.
    Greater,
    /// It is below 0.
    Less,
    /// It is not 0.
    TwoSided,
}

/// P-value of a paired permutation test: how often a mean difference is as extreme as the one observed, if every
/// difference could as well have had the other sign.
///
/// As `scipy.stats.permutation_test(permutation_type="samples")` on the mean. All `2^n` signs are gone through where
/// `count` allows it, and the p-value is then exact; else `count` random ones are, and it is `(extreme + 1) /
/// (count + 1)`, which never claims more than was sampled. Two-sided is twice the smaller side, 1 at most. `None`
/// without differences, or if one is not finite.
#[must_use]
pub fn sign_flip_test(
    differences: &[f64],
    alternative: Alternative,
    seed: u64,
    stream: u64,
    count: usize,
) -> Option<f64> {
    if differences.is_empty() || !differences.iter().all(|difference| difference.is_finite()) {
        return None;
    }
    let observed: f64 = differences.iter().sum();
    // Two sums over the same numbers in two orders must not differ: a tie counts as extreme.
    let slack = 1e-12 * differences.iter().map(|difference| difference.abs()).sum::<f64>();
    let mut extreme = [0_usize; 2];
    let mut look = |signs: &mut dyn FnMut() -> u64| {
        let mut sum = 0.0;
        for lot in differences.chunks(64) {
            let signs = signs();
            for (place, difference) in lot.iter().enumerate() {
                sum += if signs >> place & 1 == 0 { *difference } else { -difference };
            }
        }
        extreme[0] += usize::from(sum >= observed - slack);
        extreme[1] += usize::from(sum <= observed + slack);
    };
    let all = u32::try_from(differences.len()).ok().and_then(|n| 1_usize.checked_shl(n));
    let [above, below] = match all.filter(|&all| differences.len() < 63 && all <= count) {
        Some(all) => {
            (0..all as u64).for_each(|signs| look(&mut || signs));
            extreme.map(|extreme| extreme as f64 / all as f64)
        }
        None => {
            let mut generator = generator(seed, stream);
            (0..count).for_each(|_| look(&mut || generator.next_u64()));
            extreme.map(|extreme| (extreme + 1) as f64 / (count + 1) as f64)
        }
    };
    Some(match alternative {
        Alternative::Greater => above,
        Alternative::Less => below,
        Alternative::TwoSided => (2.0 * above.min(below)).min(1.0),
    })
}

/// The least p-value that a one-sided [`sign_flip_test`] of `examples` differences can have: `2^-n`.
#[must_use]
pub fn least_p(examples: usize) -> f64 {
    0.5_f64.powi(i32::try_from(examples).unwrap_or(i32::MAX))
}

/// Holm's step-down adjustment: rejecting what is at most `alpha` keeps the chance of any false rejection among all of
/// `p_values` at most `alpha`, however they depend on each other.
///
/// In ascending order, `max over j <= i of min(1, (m - j) p_j)` with j from 0 (Holm 1979; `statsmodels`'
/// `multipletests(method="holm")`).
#[must_use]
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut least: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        least = least.max(((p_values.len() - rank) as f64 * p_values[index]).min(1.0));
        adjusted[index] = least;
    }
    adjusted
}
