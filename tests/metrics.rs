//! ROUGE-L against `rouge_score`, membership against scikit-learn, recovery against the paper's table.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test may panic, and knows how small its numbers are"
)]

use std::collections::BTreeMap;

use serde::Deserialize;
use undertext::metrics::agreement::{Agreement, Distribution, Position, Uncertain};
use undertext::metrics::divergence::Divergence;
use undertext::metrics::membership::{Corpus, auc, min_k, priv_leak, roc};
use undertext::metrics::recovery::{Arms, Recovery, share_of_target};
use undertext::metrics::rouge::{RougeL, rouge_l, tokenize};
use undertext::metrics::{Measured, mean_percent};

/// What two f64 implementations of the same formula may differ by; sums are of at most 200 numbers.
const EQUAL: f64 = 1e-9;

#[derive(Deserialize)]
struct GoldenRouge {
    /// Prediction, reference, precision, recall, F.
    cases: Vec<(String, String, f64, f64, f64)>,
    /// The tokens of each character outside ASCII that has any.
    letters: BTreeMap<char, Vec<String>>,
}

#[derive(Deserialize)]
struct GoldenMembership {
    texts: Vec<GoldenText>,
    sets: Vec<GoldenSets>,
}

#[derive(Deserialize)]
struct GoldenText {
    log_probs: Vec<f32>,
    percent: usize,
    value: Option<f64>,
}

#[derive(Deserialize)]
struct GoldenSets {
    forget: Vec<f64>,
    holdout: Vec<f64>,
    auc: Option<f64>,
}

fn golden_rouge() -> GoldenRouge {
    serde_json::from_str(include_str!("golden/metrics/rouge.json")).expect("the golden file is valid")
}

fn golden_membership() -> GoldenMembership {
    serde_json::from_str(include_str!("golden/metrics/membership.json")).expect("the golden file is valid")
}

#[derive(Deserialize)]
struct GoldenRoc {
    cases: Vec<GoldenCurve>,
}

#[derive(Deserialize)]
struct GoldenCurve {
    forget: Vec<f64>,
    holdout: Vec<f64>,
    points: Vec<[f64; 2]>,
    auc: f64,
}

fn value(measured: &Measured) -> f64 {
    measured.value().unwrap_or_else(|| panic!("{measured:?}"))
}

#[test]
fn rouge_equals_rouge_score() {
    let cases = golden_rouge().cases;
    let partial = cases.iter().filter(|case| case.4 > 0.0 && case.4 < 1.0).count();
    assert!(cases.len() > 300 && partial > 200, "{partial} of {} cases are neither 0 nor 1", cases.len());
    for (prediction, reference, precision, recall, f) in cases {
        let got = rouge_l(&prediction, &reference);
        for (got, want) in [(got.precision, precision), (got.recall, recall), (got.f, f)] {
            assert!((got - want).abs() <= EQUAL, "{prediction:?} for {reference:?}: {got} for {want}");
        }
    }
}

/// Over every character there is: lower-casing differs between languages in few places, here in none.
#[test]
fn tokens_of_every_character_equal_rouge_score() {
    let letters = golden_rouge().letters;
    assert!(letters.contains_key(&'\u{130}') && letters.contains_key(&'\u{212a}'));
    for character in '\u{80}'..=char::MAX {
        let want = letters.get(&character).cloned().unwrap_or_default();
        assert_eq!(tokenize(&character.to_string()), want, "U+{:04X}", u32::from(character));
    }
}

#[test]
fn rouge_takes_the_prediction_first() {
    let RougeL { precision, recall, f } = rouge_l("the harbour lamp", "the lamp");
    assert_eq!((precision, recall), (2.0 / 3.0, 1.0));
    assert!((f - 0.8).abs() < EQUAL);
    assert_eq!(tokenize("Café isn't X2_y"), ["caf", "isn", "t", "x2", "y"]);
}

#[test]
fn means_are_on_muses_scale() {
    assert!((value(&mean_percent(&[0.0, 0.5, 1.0])) - 50.0).abs() < EQUAL);
    assert!(mean_percent(&[]).reason().is_some());
    assert!(mean_percent(&[f64::NAN]).reason().is_some());
}

#[test]
fn min_k_equals_numpy() {
    let texts = golden_membership().texts;
    let missing = texts.iter().filter(|text| text.value.is_none()).count();
    assert!(missing > 4 && texts.len() - missing > 15);
    for text in texts {
        let got = min_k(&text.log_probs, text.percent);
        match text.value {
            Some(want) => assert!((value(&got) - want).abs() <= EQUAL, "{got:?} for {want}"),
            None => assert!(got.reason().unwrap().contains("too few"), "{got:?}"),
        }
    }
}

#[test]
fn min_k_takes_the_least_likely() {
    // floor(5 * 40 %) = 2: -9 and -4.
    assert_eq!(min_k(&[-1.0, -9.0, -2.0, -4.0, -3.0], 40), Measured::Value(6.5));
    for bad in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
        assert!(min_k(&[-1.0, -2.0, bad, -3.0, -4.0], 40).reason().unwrap().contains("not finite"));
    }
}

#[test]
fn auc_equals_scikit_learn() {
    let sets = golden_membership().sets;
    assert!(sets.iter().filter(|set| set.auc.is_some_and(|auc| auc > 0.0 && auc < 1.0)).count() > 5);
    for set in sets {
        let got = auc(&set.forget, &set.holdout);
        match set.auc {
            Some(want) => assert!((value(&got) - want).abs() <= EQUAL, "{got:?} for {want}"),
            None => assert!(got.reason().unwrap().contains("no values"), "{got:?}"),
        }
    }
}

#[test]
fn roc_curves_equal_scikit_learn() {
    let golden: GoldenRoc =
        serde_json::from_str(include_str!("golden/metrics/roc.json")).expect("the golden file is valid");
    assert!(golden.cases.iter().any(|case| case.points.len() > 20), "a curve with many corners");
    for GoldenCurve { forget, holdout, points, auc: area } in golden.cases {
        assert_eq!(roc(&forget, &holdout), points);
        // The trapezoids under it.
        let under: f64 =
            points.windows(2).map(|ends| (ends[1][0] - ends[0][0]) * (ends[1][1] + ends[0][1]) / 2.0).sum();
        for got in [value(&auc(&forget, &holdout)), under] {
            assert!((got - area).abs() <= EQUAL, "{got} for {area}");
        }
    }
    assert!(roc(&[], &[1.0]).is_empty() && roc(&[f64::NAN], &[1.0]).is_empty());
}

#[test]
fn auc_is_low_for_a_memorised_forget_set() {
    // Memorised: likely, so a low Min-K value.
    assert_eq!(auc(&[0.1, 0.2], &[3.0, 4.0]), Measured::Value(0.0));
    assert_eq!(auc(&[3.0, 4.0], &[0.1, 0.2]), Measured::Value(1.0));
    assert_eq!(auc(&[1.0, 2.0], &[1.0, 2.0]), Measured::Value(0.5));
    // Infinite values are ordered like any other; NaN is not.
    assert_eq!(auc(&[f64::INFINITY], &[1.0]), Measured::Value(1.0));
    assert!(auc(&[f64::NAN], &[1.0]).reason().is_some());
}

/// Figures of audit tables: AUC 0 is -100, 1 is +109.6 on news and +85.4 on books.
#[test]
fn priv_leak_is_signed_and_not_clamped() {
    let (news, books) = (Corpus::News.reference_auc(), Corpus::Books.reference_auc());
    assert_eq!(priv_leak(0.0, news), Measured::Value(-100.0));
    assert_eq!(priv_leak(0.5, 0.5), Measured::Value(0.0));
    assert!((value(&priv_leak(1.0, news)) - 109.6).abs() < 0.05);
    assert!((value(&priv_leak(1.0, books)) - 85.4).abs() < 0.05);
    // The books target: AUC 0.2313 gives the -57.1 of its row.
    assert!((value(&priv_leak(0.2313, books)) + 57.11).abs() < 0.005);
    assert!(priv_leak(0.4, 0.0).reason().unwrap().contains("reference AUC is 0"));
    assert!(priv_leak(f64::NAN, 0.5).reason().is_some());
}

#[test]
fn recovery_names_three_denominators() {
    let recovery =
        Recovery::new(Arms { target: 60.0, target_same_precision: 40.0, unlearned: 10.0, quantized: 35.0 });
    assert_eq!(recovery.of_gap_to_target, Measured::Value(0.5));
    assert_eq!(recovery.of_gap_to_target_same_precision, Measured::Value(25.0 / 30.0));
    assert_eq!(recovery.share_of_target_same_precision, Measured::Value(0.875));
}

#[test]
fn recovery_without_a_denominator_says_why() {
    let arms = Arms { target: 60.0, target_same_precision: 40.0, unlearned: 50.0, quantized: 45.0 };
    let recovery = Recovery::new(arms);
    assert_eq!(recovery.of_gap_to_target, Measured::Value(-0.5));
    let reason = recovery.of_gap_to_target_same_precision;
    assert!(reason.reason().unwrap().contains("same precision does not score above"), "{reason:?}");

    let same = Recovery::new(Arms { target: 50.0, ..arms });
    assert!(same.of_gap_to_target.reason().unwrap().starts_with("the target does not score above"));
    let zero = Recovery::new(Arms { target_same_precision: 0.0, unlearned: 0.0, ..arms });
    assert!(zero.share_of_target_same_precision.reason().unwrap().contains("scores 0"));
    let nan = Recovery::new(Arms { quantized: f64::NAN, ..arms });
    for ratio in
        [nan.of_gap_to_target, nan.of_gap_to_target_same_precision, nan.share_of_target_same_precision]
    {
        assert!(ratio.reason().unwrap().contains("not finite"));
    }
    assert!(share_of_target(&[]).reason().is_some());
}

/// The abstract's "21 % to 83 %", from Table 1 of arXiv 2410.16454: VerbMem and KnowMem on the forget set
/// of the four methods with a utility constraint, news then books.
#[test]
fn the_papers_shares_come_out() {
    let full = [
        ((58.4, 63.9), [(0.0, 28.9), (14.1, 27.1), (0.3, 46.1), (16.6, 36.6)]),
        ((99.8, 59.4), [(0.0, 2.9), (13.0, 15.1), (0.4, 13.4), (12.4, 13.7)]),
    ];
    let four_bit = [
        ((34.2, 54.4), [(25.0, 50.1), (33.8, 50.9), (33.2, 51.4), (34.1, 53.7)]),
        ((85.3, 36.8), [(17.9, 33.7), (75.6, 34.6), (66.0, 31.9), (70.9, 34.2)]),
    ];
    type Scores = (f64, f64);
    let pairs = |corpora: [(Scores, [Scores; 4]); 2]| -> Vec<_> {
        let cells = corpora.into_iter().flat_map(|(target, methods)| methods.map(|scores| (scores, target)));
        cells.flat_map(|(scores, target)| [(scores.0, target.0), (scores.1, target.1)]).collect()
    };
    let percent = |pairs: &[_]| (1000.0 * value(&share_of_target(pairs))).round() / 10.0;
    assert_eq!(percent(&pairs(full)), 21.4);
    assert_eq!(percent(&pairs(four_bit)), 82.7);
    // Against the full-precision target, as the paper does not say: 61.9.
    let mixed = [(full[0].0, four_bit[0].1), (full[1].0, four_bit[1].1)];
    assert_eq!(percent(&pairs(mixed)), 61.9);
}

#[test]
fn what_is_missing_serializes_as_null_with_its_reason() {
    let json = |measured: &Measured| serde_json::to_string(measured).unwrap();
    assert_eq!(json(&Measured::Value(1.5)), r#"{"value":1.5}"#);
    assert_eq!(json(&Measured::Missing("because".into())), r#"{"value":null,"reason":"because"}"#);
}

/// Against NumPy, by llama.cpp's formulas.
#[test]
fn agreement_is_llama_cpps() {
    #[derive(Deserialize)]
    struct Golden {
        rows: Vec<[f64; 9]>,
        want: BTreeMap<String, serde_json::Value>,
    }
    let golden: Golden = serde_json::from_str(include_str!("golden/compare/agreement.json")).expect("valid");
    let position = |row: &[f64; 9]| {
        let [
            reference_log_prob,
            log_prob,
            kl,
            reverse_kl,
            jensen_shannon,
            total_variation,
            same,
            top5,
            top10,
        ] = *row;
        Position {
            reference_log_prob,
            log_prob,
            apart: Divergence { kl, reverse_kl, jensen_shannon, total_variation },
            same_top: same > 0.0,
            top5: top5 as usize,
            top10: top10 as usize,
        }
    };
    let positions: Vec<_> = golden.rows.iter().map(position).collect();
    let agreement = Agreement::new(&positions).expect("there are positions");
    assert_eq!(agreement.positions, 777);
    let numbers = |key: &str| -> Vec<f64> {
        match &golden.want[key] {
            serde_json::Value::Array(values) => {
                values.iter().map(|value| value.as_f64().expect("a number")).collect()
            }
            value => vec![value.as_f64().expect("a number")],
        }
    };
    let near = |key: &str, got: &[f64]| {
        let want = numbers(key);
        assert_eq!(got.len(), want.len(), "{key}");
        for (got, want) in got.iter().zip(want) {
            // Differences of nearly equal sums lose digits in either way of computing them.
            assert!((got - want).abs() <= EQUAL * (1.0 + want.abs()), "{key}: {got} {want}");
        }
    };
    let both = |key: &str, Uncertain { value, error }: Uncertain| near(key, &[value, error]);
    let spread = |key: &str, spread: &Distribution| {
        both(key, spread.mean);
        near(&format!("{key}_min_max"), &[spread.min, spread.max]);
        let quantiles: Vec<_> = spread.quantiles.iter().map(|(_, quantile)| quantile.value).collect();
        near(&format!("{key}_quantiles"), &quantiles);
        assert!(spread.quantiles.iter().all(|(_, quantile)| quantile.error > 0.0));
    };
    spread("kl", &agreement.kl);
    spread("dp", &agreement.dp);
    both("reverse_kl", agreement.reverse_kl);
    both("jensen_shannon", agreement.jensen_shannon);
    both("total_variation", agreement.total_variation);
    both("rms_dp", agreement.rms_dp);
    both("same_top", agreement.same_top);
    both("top5", agreement.top5);
    both("top10", agreement.top10);
    both("reference_ppl", agreement.reference_ppl);
    both("ppl", agreement.ppl);
    both("ppl_ratio", agreement.ppl_ratio);
    both("log_ppl_ratio", agreement.log_ppl_ratio);
    both("ppl_difference", agreement.ppl_difference);
    near("nll_correlation", &[agreement.nll_correlation.expect("both vary")]);
    assert_eq!(Agreement::new(&[]), None);
    let one = Agreement::new(&positions[..1]).expect("one");
    assert_eq!((one.kl.mean.error, one.nll_correlation), (0.0, None));
}
