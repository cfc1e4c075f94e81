//! What memory a run takes, and what it cost, for people who ask.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::grid::Grid;
use super::schema::{Counters, Memory};
use super::style::Style;

/// The plan as a table, and what is expected.
#[must_use]
pub fn memory_text(memory: &Memory) -> String {
    let mut text = String::new();
    let mut table = Grid::new(Style::PLAIN, &["memory", "", "bytes"].map(str::to_owned), 2);
    for item in &memory.items {
        table.add(&[item.name.clone(), item.detail.clone(), grouped(item.bytes)]);
    }
    let most = format!("of {}", grouped(memory.budget_bytes));
    table.add(&["at most".to_owned(), most, grouped(memory.peak_bytes)]);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{}", table.text());
    let _ = write!(
        text,
        "expected: {} passes over the weights, {} bytes read, {} bytes uploaded",
        memory.predicted_passes,
        grouped(memory.predicted_disk_bytes),
        grouped(memory.predicted_upload_bytes)
    );
    text
}

/// The counters as a table, with the device's own time by kernel where it has a clock.
#[must_use]
pub fn counters_text(counters: &Counters, gpu_seconds: &BTreeMap<String, f64>) -> String {
    let rate = |tokens: u64, seconds: f64| match tokens {
        0 => String::new(),
        tokens => format!("{:.1} tokens/s", tokens as f64 / seconds.max(1e-9)),
    };
    let seconds = counters.seconds;
    let rows = [
        ("bytes read", grouped(counters.disk_bytes), String::new()),
        ("bytes uploaded", grouped(counters.upload_bytes), String::new()),
        ("passes over the weights", grouped(counters.weight_passes), String::new()),
        ("kernel launches", grouped(counters.dispatches), String::new()),
        ("submissions", grouped(counters.submissions), String::new()),
        ("tokens scored", grouped(counters.tokens_scored), rate(counters.tokens_scored, seconds.score)),
        (
            "tokens generated",
            grouped(counters.tokens_generated),
            rate(counters.tokens_generated, seconds.generate),
        ),
        ("seconds loading", format!("{:.2}", seconds.load), String::new()),
        ("seconds scoring", format!("{:.2}", seconds.score), String::new()),
        ("seconds generating", format!("{:.2}", seconds.generate), String::new()),
        ("most device bytes", grouped(counters.peak_device_bytes), String::new()),
    ];
    let mut table = Grid::new(Style::PLAIN, &["it took", "", ""].map(str::to_owned), 2);
    rows.into_iter().for_each(|(name, value, rate)| table.add(&[name.to_owned(), rate, value]));
    if let Some(bytes) = counters.peak_allocated_bytes {
        let name = "most bytes by the driver's allocator".to_owned();
        table.add(&[name, String::new(), grouped(bytes)]);
    }
    if let Some(bytes) = counters.peak_host_bytes {
        table.add(&["most host bytes".to_owned(), String::new(), grouped(bytes)]);
    }
    let mut kernels: Vec<_> = gpu_seconds.iter().collect();
    kernels.sort_by(|a, b| b.1.total_cmp(a.1));
    for (kernel, seconds) in kernels {
        table.add(&["seconds of the device".to_owned(), kernel.clone(), format!("{seconds:.2}")]);
    }
    table.text()
}

/// Digits in threes.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_are_grouped() {
        let numbers = [0, 12, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(numbers, ["0", "12", "999", "1 000", "1 234 567"]);
    }
}
