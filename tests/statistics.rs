//! Bootstrap, permutation test, Holm and Spearman against SciPy and statsmodels.

use serde::Deserialize;
use undertext::metrics::bootstrap::{Resamples, percentile_interval};
use undertext::metrics::correlation::spearman;
use undertext::metrics::hypothesis::{Alternative, holm, least_p, sign_flip_test};
use undertext::metrics::membership::resampled_aucs;

/// What audits use.
const RESAMPLES: usize = 9_999;

/// Standard errors of the Monte-Carlo error that pass.
const SIGMAS: f64 = 5.0;

#[derive(Deserialize)]
struct Golden {
    intervals: Vec<Interval>,
    tests: Vec<Test>,
    holm: Vec<Holm>,
    spearman: Vec<Spearman>,
}

#[derive(Deserialize)]
struct Interval {
    kind: String,
    samples: Vec<Vec<f64>>,
    low: f64,
    high: f64,
    spread: f64,
}

#[derive(Deserialize)]
struct Test {
    q: Vec<f64>,
    u: Vec<f64>,
    exact: bool,
    p: std::collections::HashMap<String, f64>,
}

#[derive(Deserialize)]
struct Holm {
    p: Vec<f64>,
    adjusted: Vec<f64>,
}

#[derive(Deserialize)]
struct Spearman {
    pairs: Vec<(f64, f64)>,
    rho: f64,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/metrics/statistics.json")).unwrap()
}

/// The 2.5 % quantile of N resamples has the standard error `sqrt(0.025 x 0.975 / N) / density`; near a normal
/// distribution of standard deviation s the density there is 0.0584 / s. SciPy's own error (a hundred times the
/// resamples) adds a tenth, 10 resp. 30 % for an AUC.
fn quantile_error(spread: f64) -> f64 {
    let own = (0.025 * 0.975 / RESAMPLES as f64).sqrt() / 0.0584;
    1.1 * own * spread
}

#[test]
fn intervals_are_scipys() {
    let mut kinds = Vec::new();
    for (index, case) in golden().intervals.into_iter().enumerate() {
        let Interval { kind, samples, low, high, spread } = case;
        let draws = |stream, n| Resamples::new(7, stream, n, RESAMPLES);
        let values: Vec<Option<f64>> = match kind.as_str() {
            "mean" => {
                let means = draws(0, samples[0].len()).means(&samples[0]);
                means.into_iter().map(|mean| Some(100.0 * mean)).collect()
            }
            "ratio" => {
                let draws = draws(0, samples[0].len());
                let [q, u, t] = [0, 1, 2].map(|which: usize| draws.means(&samples[which]));
                (0..RESAMPLES).map(|i| Some((q[i] - u[i]) / (t[i] - u[i]))).collect()
            }
            _ => {
                let [forget, holdout] = [draws(0, samples[0].len()), draws(1, samples[1].len())];
                resampled_aucs(&samples[0], &samples[1], &forget, &holdout).into_iter().map(Some).collect()
            }
        };
        let got = percentile_interval(values, 0.95).unwrap();
        let bound = SIGMAS * quantile_error(spread);
        for (got, want) in got.into_iter().zip([low, high]) {
            assert!((got - want).abs() <= bound, "case {index} ({kind}): {got} for {want}, bound {bound}");
        }
        // The bound would not pass another confidence: a 90 % interval's ends lie 0.3 s further in.
        assert!(bound < 0.2 * spread, "{bound}, {spread}");
        kinds.push(kind);
    }
    assert!(["mean", "ratio", "auc"].iter().all(|kind| kinds.iter().any(|other| other == kind)), "{kinds:?}");
}

#[test]
fn p_values_are_scipys() {
    let (mut exact, mut sampled) = (0, 0);
    for Test { q, u, exact: is_exact, p } in golden().tests {
        let differences: Vec<_> = q.iter().zip(&u).map(|(q, u)| q - u).collect();
        for (name, alternative) in [
            ("greater", Alternative::Greater),
            ("less", Alternative::Less),
            ("two-sided", Alternative::TwoSided),
        ] {
            let got = sign_flip_test(&differences, alternative, 7, 0, RESAMPLES).unwrap();
            let want = p[name];
            // Exact ones agree to rounding; a sampled share has a binomial error, and no p-value lies below 1 / (N + 1).
            // Twice the smaller side has twice the error.
            let scale = if alternative == Alternative::TwoSided { 2.0 } else { 1.0 };
            let side = (want / scale).min(1.0);
            let error = (side * (1.0 - side) / RESAMPLES as f64).sqrt();
            let bound = if is_exact { 1e-12 } else { scale * (SIGMAS * error + 2.0 / RESAMPLES as f64) };
            assert!((got - want).abs() <= bound, "n {}, {name}: {got} for {want}, bound {bound}", q.len());
        }
        *(if is_exact { &mut exact } else { &mut sampled }) += 1;
    }
    assert!(exact >= 4 && sampled >= 4, "{exact}, {sampled}");
}

#[test]
fn no_difference_is_no_evidence() {
    for n in [3, 50] {
        for alternative in [Alternative::Greater, Alternative::Less, Alternative::TwoSided] {
            assert_eq!(sign_flip_test(&vec![0.0; n], alternative, 7, 0, RESAMPLES), Some(1.0));
        }
    }
    assert_eq!(sign_flip_test(&[], Alternative::Greater, 7, 0, RESAMPLES), None);
    assert_eq!(sign_flip_test(&[1.0, f64::NAN], Alternative::Greater, 7, 0, RESAMPLES), None);
    // Three examples cannot reach 5 %, five can.
    assert_eq!(sign_flip_test(&[1.0; 3], Alternative::Greater, 7, 0, RESAMPLES), Some(least_p(3)));
    assert!(least_p(4) > 0.05 && least_p(5) < 0.05);
}

#[test]
fn holm_is_statsmodels() {
    for Holm { p, adjusted } in golden().holm {
        for (got, want) in holm(&p).into_iter().zip(&adjusted) {
            assert!((got - want).abs() <= 1e-12, "{got} for {want} of {p:?}");
        }
    }
    assert!(holm(&[]).is_empty());
}

#[test]
fn spearman_is_scipys() {
    for Spearman { pairs, rho } in golden().spearman {
        let got = spearman(&pairs).value().unwrap();
        assert!((got - rho).abs() <= 1e-12, "{got} for {rho} of {pairs:?}");
    }
    assert!(spearman(&[(0.0, 1.0); 3]).reason().unwrap().contains("3 points"));
    assert!(spearman(&[(0.0, 1.0); 5]).reason().unwrap().contains("the same"));
}
