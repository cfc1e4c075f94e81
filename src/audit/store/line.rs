//! One line of a store's file.
//!
//! `{"check":"<16 hex digits>","arm":…,"task":…,…}`: the check is the start of the BLAKE3 hash of what follows it on the line, so
//! that a line that was torn, or changed, is known for what it is. Floats are written as the shortest text that reads back as
//! the same bits; those that are not finite as `"NaN"`, `"inf"`, `"-inf"`.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::engine::Observation;
use crate::metrics::divergence::Divergence;

/// A hash of what an answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Key([u8; 16]);

impl From<&blake3::Hasher> for Key {
    fn from(hasher: &blake3::Hasher) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for Key {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let number = u128::from_str_radix(&text, 16).map_err(|_| "expected 32 hex digits")?;
        if text.len() == 32 { Ok(Self(number.to_be_bytes())) } else { Err("expected 32 hex digits") }
    }
}

/// A float that survives JSON, whatever it is.
#[derive(Clone, Copy, Debug)]
struct Real<T>(T);

macro_rules! real {
    ($float:ty) => {
        impl Serialize for Real<$float> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if self.0.is_finite() {
                    self.0.serialize(serializer)
                } else {
                    serializer.collect_str(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for Real<$float> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Either<'a> {
                    Finite($float),
                    Text(Cow<'a, str>),
                }
                match Either::deserialize(deserializer)? {
                    Either::Finite(value) => Ok(Self(value)),
                    Either::Text(text) => match &*text {
                        "NaN" => Ok(Self(<$float>::NAN)),
                        "inf" => Ok(Self(<$float>::INFINITY)),
                        "-inf" => Ok(Self(<$float>::NEG_INFINITY)),
                        _ => Err(serde::de::Error::custom("expected a number, NaN, inf or -inf")),
                    },
                }
            }
        }
    };
}

real!(f32);
real!(f64);

/// What sets two arms apart on a task: sums over the tokens that it asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::audit) struct Sums {
    /// Tokens.
    pub(in crate::audit) positions: usize,
    /// KL(reference || arm), nats.
    pub(in crate::audit) kl: f64,
    /// KL(arm || reference), nats.
    pub(in crate::audit) reverse_kl: f64,
}

impl Sums {
    /// Over the tokens of a task.
    pub(in crate::audit) fn of(tokens: &[Divergence]) -> Self {
        let mut sums = Self::default();
        for apart in tokens {
            sums.positions += 1;
            sums.kl += apart.kl;
            sums.reverse_kl += apart.reverse_kl;
        }
        sums
    }

    /// To tell whether two are the very same.
    pub(super) fn bits(self) -> [u64; 3] {
        [self.positions as u64, self.kl.to_bits(), self.reverse_kl.to_bits()]
    }
}

/// What was answered.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// New tokens.
    Generated { tokens: Vec<u32>, log_probs: Vec<f32>, text: Option<String> },
    /// Given tokens.
    Scored { log_probs: Vec<f32>, argmax: Vec<u32> },
    /// Beside another arm.
    Apart { reference: Key, sums: Sums },
}

impl Answer {
    /// Of an observation; what arms are compared by is not kept with it.
    pub(super) fn of(observation: &Observation, text: Option<String>) -> Self {
        match observation {
            Observation::Generated { tokens, log_probs } => {
                Self::Generated { tokens: tokens.clone(), log_probs: log_probs.clone(), text }
            }
            Observation::Scored { log_probs, argmax, .. } => {
                Self::Scored { log_probs: log_probs.clone(), argmax: argmax.clone() }
            }
        }
    }

    /// The observation, if it is one.
    pub(super) fn into_observation(self) -> Option<Observation> {
        match self {
            Self::Generated { tokens, log_probs, .. } => Some(Observation::Generated { tokens, log_probs }),
            Self::Scored { log_probs, argmax } => {
                Some(Observation::Scored { log_probs, argmax, details: Vec::new() })
            }
            Self::Apart { .. } => None,
        }
    }
}

/// A line's content.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// What the arm's answers depend on.
    pub(super) arm: Key,
    /// The task.
    pub(super) task: Key,
    /// The first task of the suite that was the same, for those who read the file.
    pub(super) index: usize,
    /// Its metric, for those who read the file.
    pub(super) metric: Cow<'static, str>,
    /// What was answered.
    pub(super) answer: Answer,
}

/// As it stands in the file.
#[derive(Serialize, Deserialize)]
struct Written {
    arm: Key,
    task: Key,
    index: usize,
    metric: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_probs: Option<Vec<Real<f32>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    argmax: Option<Vec<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    apart: Option<Apart>,
}

#[derive(Serialize, Deserialize)]
struct Apart {
    reference: Key,
    positions: usize,
    kl: Real<f64>,
    reverse_kl: Real<f64>,
}

/// What a line begins with, before and after the check's digits.
const BEFORE: &str = "{\"check\":\"";
const AFTER: &str = "\",";
const DIGITS: usize = 16;

fn check(rest: &str) -> String {
    blake3::hash(rest.as_bytes()).to_hex().as_str()[..DIGITS].to_owned()
}

impl Line {
    /// The line, with its end.
    pub(super) fn to_text(&self) -> Result<String, serde_json::Error> {
        let mut written = Written {
            arm: self.arm,
            task: self.task,
            index: self.index,
            metric: self.metric.clone().into_owned(),
            text: None,
            tokens: None,
            log_probs: None,
            argmax: None,
            apart: None,
        };
        let reals = |values: &[f32]| Some(values.iter().map(|&value| Real(value)).collect());
        match &self.answer {
            Answer::Generated { tokens, log_probs, text } => {
                written.text.clone_from(text);
                written.tokens = Some(tokens.clone());
                written.log_probs = reals(log_probs);
            }
            Answer::Scored { log_probs, argmax } => {
                written.log_probs = reals(log_probs);
                written.argmax = Some(argmax.clone());
            }
            Answer::Apart { reference, sums } => {
                let (kl, reverse_kl) = (Real(sums.kl), Real(sums.reverse_kl));
                written.apart =
                    Some(Apart { reference: *reference, positions: sums.positions, kl, reverse_kl });
            }
        }
        let json = serde_json::to_string(&written)?;
        let rest = &json[1..];
        Ok(format!("{BEFORE}{}{AFTER}{rest}\n", check(rest)))
    }

    /// Reads a line without its end; `None` if it is not whole, was changed, or is none of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let after = text.strip_prefix(BEFORE)?;
        let (digits, rest) = (after.get(..DIGITS)?, after.get(DIGITS..)?.strip_prefix(AFTER)?);
        if check(rest) != digits {
            return None;
        }
        let Written { arm, task, index, metric, text, tokens, log_probs, argmax, apart } =
            serde_json::from_str(&format!("{{{rest}")).ok()?;
        let log_probs = log_probs.map(|values| values.into_iter().map(|value| value.0).collect::<Vec<_>>());
        let answer = match (tokens, log_probs, argmax, apart) {
            (Some(tokens), Some(log_probs), None, None) => Answer::Generated { tokens, log_probs, text },
            (None, Some(log_probs), Some(argmax), None) => Answer::Scored { log_probs, argmax },
            (None, None, None, Some(apart)) => Answer::Apart {
                reference: apart.reference,
                sums: Sums { positions: apart.positions, kl: apart.kl.0, reverse_kl: apart.reverse_kl.0 },
            },
            _ => return None,
        };
        Some(Self { arm, task, index, metric: metric.into(), answer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        let mut hasher = blake3::Hasher::new();
        hasher.update(text.as_bytes());
        Key::from(&hasher)
    }

    fn line(answer: Answer) -> Line {
        Line { arm: key("arm"), task: key("task"), index: 3, metric: "privleak".into(), answer }
    }

    fn back(line: &Line) -> Line {
        let text = line.to_text().unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let read = Line::parse(text.trim_end()).unwrap();
        assert_eq!((read.arm, read.task, read.index), (line.arm, line.task, line.index));
        read
    }

    #[test]
    fn every_float_comes_back_to_the_bit() {
        let mut values =
            vec![0.0, -0.0, f32::MIN_POSITIVE, f32::MAX, f32::EPSILON, f32::INFINITY, f32::NEG_INFINITY];
        let mut state = 1_u32;
        for _ in 0..20_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            values.extend([f32::from_bits(state)].into_iter().filter(|value| !value.is_nan()));
        }
        let read = back(&line(Answer::Scored { log_probs: values.clone(), argmax: vec![] }));
        let Answer::Scored { log_probs, .. } = read.answer else { panic!("{read:?}") };
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&log_probs), bits(&values));

        let mut state = 1_u64;
        for _ in 0..5_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let sums = Sums { positions: 2, kl: f64::from_bits(state), reverse_kl: f64::NEG_INFINITY };
            let read = back(&line(Answer::Apart { reference: key("other"), sums }));
            let Answer::Apart { sums: got, .. } = read.answer else { panic!("{read:?}") };
            assert!(got.bits() == sums.bits() || got.kl.is_nan() && sums.kl.is_nan(), "{sums:?} {got:?}");
        }
    }

    #[test]
    fn nan_is_still_nan() {
        let read = back(&line(Answer::Scored { log_probs: vec![f32::NAN], argmax: vec![1] }));
        assert!(matches!(read.answer, Answer::Scored { log_probs, .. } if log_probs[0].is_nan()));
    }

    #[test]
    fn a_line_that_was_cut_or_changed_is_none() {
        let text = Some("say \"no\"\n".to_owned());
        let whole = line(Answer::Generated { tokens: vec![5, 61], log_probs: vec![-0.25, -1.5], text });
        let whole = whole.to_text().unwrap();
        let whole = whole.trim_end();
        assert!(Line::parse(whole).is_some());
        for end in 0..whole.len() {
            assert!(Line::parse(&whole[..end]).is_none(), "cut at {end}");
        }
        assert!(Line::parse(&whole.replace("61", "62")).is_none());
        assert!(Line::parse(&whole.replace("-0.25", "-0.26")).is_none());
        assert!(Line::parse("").is_none() && Line::parse("{}").is_none());
    }
}
