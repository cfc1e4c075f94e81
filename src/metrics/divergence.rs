//! What sets two distributions over the vocabulary apart, from their logits.

/// Divergences of an arm's distribution q from a reference's p at one position. All are 0 for equal ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Kullback-Leibler divergence KL(p || q), in nats.
    pub kl: f64,
    /// KL(q || p), in nats.
    pub reverse_kl: f64,
    /// Jensen-Shannon divergence, in nats; at most ln 2.
    pub jensen_shannon: f64,
    /// Total variation, half the sum of |p - q|; at most 1.
    pub total_variation: f64,
}

/// Where `exp(d) - 1 - d` is better computed as a series.
const SMALL: f64 = 1e-2;

impl Divergence {
    /// Adds what tokens contribute whose logits are `reference` and `arm`; the log-sum-exps are those of all tokens.
    ///
    /// KL(p || q) is summed as p (exp(d) - 1 - d) with d = log q - log p, which is the same because p and q each sum
    /// to 1: no term is negative, equal logits give exactly 0, and an error that all d share cancels to first order.
    pub fn add(&mut self, reference: &[f32], arm: &[f32], log_sum_exps: [f64; 2]) {
        let shift = log_sum_exps[1] - log_sum_exps[0];
        for (&x, &y) in reference.iter().zip(arm) {
            let (x, y) = (f64::from(x), f64::from(y));
            let (p, q) = ((x - log_sum_exps[0]).exp(), (y - log_sum_exps[1]).exp());
            let d = (y - x) - shift;
            if d.abs() < SMALL {
                self.kl += p * excess(d);
                self.reverse_kl += q * excess(-d);
            } else {
                self.kl += (q - p - p * d).max(0.0);
                self.reverse_kl += (p - q + q * d).max(0.0);
            }
            // q = p exp(d), so that (q - p) / (q + p) = tanh(d / 2).
            let t = (0.5 * d).tanh();
            self.jensen_shannon += 0.25 * (p + q) * mixed(t);
            self.total_variation += 0.5 * (p + q) * t.abs();
        }
    }
}

/// `exp(d) - 1 - d` for a small d.
fn excess(d: f64) -> f64 {
    d * d * (1.0 / 2.0 + d * (1.0 / 6.0 + d * (1.0 / 24.0 + d * (1.0 / 120.0 + d / 720.0))))
}

/// `(1 - t) ln(1 - t) + (1 + t) ln(1 + t)` for t in -1..=1.
fn mixed(t: f64) -> f64 {
    if t.abs() < SMALL {
        let s = t * t;
        return s * (1.0 + s * (1.0 / 6.0 + s * (1.0 / 15.0 + s / 28.0)));
    }
    let entropic = |x: f64| if x > 0.0 { x * x.ln() } else { 0.0 };
    entropic(1.0 - t) + entropic(1.0 + t)
}

/// Natural log of the sum of `exp(logit)`; NaN without logits.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(top) + logits.iter().map(|logit| (f64::from(*logit) - f64::from(top)).exp()).sum::<f64>().ln()
}

/// What tokens of these `logits` add to the entropy of their distribution, in nats.
#[must_use]
pub fn entropy(logits: &[f32], log_sum_exp: f64) -> f64 {
    let surprise = logits.iter().map(|logit| log_sum_exp - f64::from(*logit));
    surprise.map(|surprise| (-surprise).exp() * surprise).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(p: &[f32], q: &[f32]) -> Divergence {
        let mut divergence = Divergence::default();
        divergence.add(p, q, [log_sum_exp(p), log_sum_exp(q)]);
        divergence
    }

    #[test]
    fn known_pair() {
        // p = (1/2, 1/2), q = (1/4, 3/4).
        let divergence = of(&[0.0, 0.0], &[0.25f32.ln(), 0.75f32.ln()]);
        let kl = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        let reverse = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        let js = 0.5
            * (0.5 * (0.5f64 / 0.375).ln()
                + 0.5 * (0.5f64 / 0.625).ln()
                + 0.25 * (0.25f64 / 0.375).ln()
                + 0.75 * (0.75f64 / 0.625).ln());
        for (got, want) in [
            (divergence.kl, kl),
            (divergence.reverse_kl, reverse),
            (divergence.jensen_shannon, js),
            (divergence.total_variation, 0.25),
        ] {
            assert!((got - want).abs() < 1e-7, "{got} {want}");
        }
        assert!((entropy(&[0.0, 0.0], log_sum_exp(&[0.0, 0.0])) - 2f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn shifted_logits_are_the_same_distribution() {
        let p: Vec<f32> = (0..100).map(|i| (i % 17) as f32).collect();
        let q: Vec<f32> = p.iter().map(|logit| logit + 4.0).collect();
        let Divergence { kl, reverse_kl, jensen_shannon, total_variation } = of(&p, &q);
        assert!(kl < 1e-28 && reverse_kl < 1e-28 && jensen_shannon < 1e-28 && total_variation < 1e-14);
        assert_eq!(of(&p, &p), Divergence::default());
    }

    #[test]
    fn disjoint_distributions_are_as_far_apart_as_can_be() {
        let divergence = of(&[0.0, -1000.0], &[-1000.0, 0.0]);
        assert_eq!((divergence.kl, divergence.reverse_kl), (1000.0, 1000.0));
        assert!((divergence.jensen_shannon - 2f64.ln()).abs() < 1e-12);
        assert!((divergence.total_variation - 1.0).abs() < 1e-12);
    }
}
