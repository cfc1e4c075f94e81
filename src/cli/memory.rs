//! How much device memory there is, and how it is used, in words.

use crate::engine::{Budget, MemoryPlan};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernels::KvFormat;
use crate::model::Residence;

/// What is assumed of an adapter that does not say how much memory it has.
const ASSUMED: u64 = 4 << 30;

/// Reads a size: a number of bytes, or one with KiB, MiB, GiB, KB, MB or GB.
pub(super) fn size(text: &str) -> Result<u64> {
    let wrong = || Error::Flag {
        flag: "--vram",
        found: text.to_owned(),
        expected: "a size such as 6GiB, 800MiB or 4.5GB".to_owned(),
    };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let bytes = number * factor as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
    if bytes >= 1.0 && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// The same size as [`size`] reads it.
pub(super) fn exact(bytes: u64) -> String {
    let mib = bytes >> 20;
    if bytes == mib << 20 { format!("{mib}MiB") } else { format!("{bytes}B") }
}

/// Reads the format of the cache.
pub(super) fn kv(text: &str) -> Result<KvFormat> {
    KvFormat::ALL.into_iter().find(|format| format.name() == text).ok_or_else(|| Error::Flag {
        flag: "--kv",
        found: text.to_owned(),
        expected: KvFormat::ALL.map(KvFormat::name).join(" or "),
    })
}

/// The memory that may be used: what the user says, or most of what the adapter has.
pub(super) fn budget(gpu: &Gpu, asked: Option<u64>) -> Budget {
    let binding = gpu.max_binding_bytes();
    let (bytes, source) = match (asked, gpu.memory_bytes()) {
        (Some(bytes), _) => (bytes, "--vram".to_owned()),
        // The rest is for the display and for others; memory shared with the host is needed there too.
        (None, Some(memory)) if gpu.info().kind == "discrete" => {
            (memory / 8 * 7, format!("seven eighths of the adapter's {}", human(memory)))
        }
        (None, Some(memory)) => {
            (memory / 2, format!("half of the {} that the adapter shares with the host", human(memory)))
        }
        (None, None) => {
            (ASSUMED, format!("the adapter does not say how much it has; {} are assumed", human(ASSUMED)))
        }
    };
    Budget { bytes, source, binding }
}

/// A number of bytes for people.
pub(super) fn human(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// One sentence on where the weights of `names` are, and why.
pub(super) fn verdict(plan: &MemoryPlan, names: &str, budget: &Budget) -> String {
    let where_ = match plan.layout.residence {
        Residence::Resident => "all weights fit and stay on the device",
        Residence::Streamed { .. } => {
            "the weights do not fit and are streamed through the device, pass by pass"
        }
    };
    format!(
        "{names}: {where_}; at most {} of {} are used ({})",
        human(plan.peak),
        human(budget.bytes),
        budget.source
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("96MiB").unwrap(), 96 << 20);
        assert_eq!(size("1.5 GiB").unwrap(), 3 << 29);
        assert_eq!(size("2gb").unwrap(), 2_000_000_000);
        assert_eq!(size("4096").unwrap(), 4096);
        for bad in ["", "GiB", "-1GiB", "0", "1TiBx", "nan", "1e30GiB"] {
            let error = size(bad).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}");
            assert!(error.to_string().contains("--vram"), "{error}");
        }
    }

    #[test]
    fn bytes_are_readable() {
        assert_eq!(human(1), "1 B");
        assert_eq!(human(96 << 20), "96.0 MiB");
        assert_eq!(human(5 << 29), "2.5 GiB");
    }
}
