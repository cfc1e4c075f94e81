//! Rotary position embedding: the table that both passes use.

use std::f32::consts::PI;

use crate::checkpoint::Config;

/// Cosine and sine of every rotation, `[positions, e / 2]`.
///
/// Element `[p, i]` turns the pair (`x[i]`, `x[i + e / 2]`) of a head at position `p` by
/// `p * frequency[i]`. As in transformers' `LlamaRotaryEmbedding`, frequency and angle are rounded
/// to f32; the functions are taken in f64 of that angle and rounded once, so that the table is the
/// same on every machine.
pub(crate) fn rotary_table(config: &Config, positions: usize) -> Vec<[f32; 2]> {
    let frequencies = frequencies(config);
    let mut table = Vec::with_capacity(positions * frequencies.len());
    for position in 0..positions {
        for &frequency in &frequencies {
            #[expect(clippy::cast_possible_truncation, reason = "rounds to f32 on purpose")]
            let rounded = {
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                [cos as f32, sin as f32]
            };
            table.push(rounded);
        }
    }
    table
}

/// Radians a position, `[e / 2]`: `theta^(-2 i / e)`, stretched as the config says.
///
/// Formula and order of operations: transformers `_compute_llama3_parameters`, in f32 as there.
fn frequencies(config: &Config) -> Vec<f32> {
    let width = config.head_dim;
    let plain = (0..width / 2).map(|i| 1.0 / power(config.rope_theta, (2 * i) as f32 / width as f32));
    let Some(scaling) = config.rope_scaling else { return plain.collect() };

    let longest_kept = scaling.original_context / scaling.high_freq_factor;
    let shortest_stretched = scaling.original_context / scaling.low_freq_factor;
    plain
        .map(|frequency| {
            let wavelength = 2.0 * PI / frequency;
            if wavelength < longest_kept {
                frequency
            } else if wavelength > shortest_stretched {
                frequency / scaling.factor
            } else {
                let smooth = (scaling.original_context / wavelength - scaling.low_freq_factor)
                    / (scaling.high_freq_factor - scaling.low_freq_factor);
                (1.0 - smooth) * frequency / scaling.factor + smooth * frequency
            }
        })
        .collect()
}

/// `base^exponent`, taken in f64 and rounded once: f32 `powf` differs between platforms.
fn power(base: f32, exponent: f32) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounds to f32 on purpose")]
    let rounded = f64::from(base).powf(f64::from(exponent)) as f32;
    rounded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::RopeScaling;

    fn config(scaling: Option<RopeScaling>) -> Config {
        Config {
            hidden_size: 32,
            intermediate_size: 32,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            vocab_size: 32,
            context: 128,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: scaling,
            tied: true,
            attention_bias: false,
            eos: vec![],
        }
    }

    /// Output of transformers 5.23's `_compute_llama3_parameters` for this config (theta 5e5,
    /// e 16, factor 8, low 1, high 4): kept, in between, and stretched frequencies.
    #[test]
    fn llama3_frequencies_are_those_of_transformers() {
        let scaling = |original_context| RopeScaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context,
        };
        let want_64 = [
            1.0f32,
            0.079_403_01,
            0.004_700_754,
            0.000_911_583_13,
            0.000_176_776_68,
            3.428_102_4e-5,
            6.647_869_7e-6,
            1.289_173_2e-6,
        ];
        let want_8192 = [
            1.0f32,
            0.193_922_76,
            0.037_606_03,
            0.007_292_665,
            0.000_524_846,
            3.428_102_4e-5,
            6.647_869_7e-6,
            1.289_173_2e-6,
        ];
        for (original, want) in [(64.0, want_64), (8192.0, want_8192)] {
            let got = frequencies(&config(Some(scaling(original))));
            for (got, want) in got.iter().zip(want) {
                // `pow` may differ by an ulp, and each of the five operations after it rounds once.
                assert!((got - want).abs() <= 6.0 * f32::EPSILON * want, "{got} for {want}");
            }
        }
    }

    #[test]
    fn table_is_position_major() {
        let table = rotary_table(&config(None), 101);
        assert_eq!(table.len(), 101 * 8);
        assert_eq!(table[..8], [[1.0, 0.0]; 8]);
        let [cos, sin] = table[100 * 8];
        assert!((cos - 100f32.cos()).abs() < 1e-6 && (sin - 100f32.sin()).abs() < 1e-6);
        let [cos, sin] = table[100 * 8 + 1];
        let angle = 19.392_275f32;
        // The angle is right to a few ulp (2e-6 at this size).
        assert!((cos - angle.cos()).abs() < 1e-5 && (sin - angle.sin()).abs() < 1e-5);
    }
}
