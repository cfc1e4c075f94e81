//! Scales, paths and text of inline SVG.

use std::fmt::{self, Write};

/// A straight map from values to the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    domain: [f64; 2],
    range: [f64; 2],
}

impl Scale {
    pub(super) fn new(domain: [f64; 2], range: [f64; 2]) -> Self {
        Self { domain, range }
    }

    /// Where `value` is; the middle if the domain is a point or the value is not a number.
    pub(super) fn at(&self, value: f64) -> f64 {
        let ([low, high], [from, to]) = (self.domain, self.range);
        let share = (value - low) / (high - low);
        from + (to - from) * if share.is_finite() { share } else { 0.5 }
    }

    /// The same, within the picture.
    pub(super) fn clamped(&self, value: f64) -> f64 {
        let [from, to] = self.range;
        self.at(value).clamp(from.min(to), from.max(to))
    }
}

/// Round numbers within `domain`, at most about `count` of them.
pub(super) fn ticks([low, high]: [f64; 2], count: usize) -> Vec<f64> {
    let step = step((high - low) / count.max(1) as f64);
    if step <= 0.0 {
        return vec![low];
    }
    let first = (low / step - 1e-9).ceil();
    (0..=2 * count)
        .map(|index| (first + index as f64) * step + 0.0)
        .take_while(|tick| *tick <= high + 1e-9 * step)
        .collect()
}

/// The least domain with round ends that holds `values` and 0; 0 to 1 without any.
pub(super) fn domain(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((0.0, 0.0), |(low, high): (f64, f64), value| (low.min(value), high.max(value)));
    if low >= high {
        return [0.0, 1.0];
    }
    let step = step((high - low) / 4.0);
    [(low / step + 1e-9).floor() * step + 0.0, (high / step - 1e-9).ceil() * step]
}

/// 1, 2 or 5 times a power of ten, not below `least`; 0 if there is none.
fn step(least: f64) -> f64 {
    if !(least > 0.0 && least.is_finite()) {
        return 0.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least * (1.0 - 1e-9));
    power * factor.unwrap_or(10.0)
}

/// A path's `d` through `points`; it breaks where one is missing.
pub(super) fn path(points: impl IntoIterator<Item = Option<[f64; 2]>>) -> String {
    let mut d = String::new();
    let mut pen_is_down = false;
    for point in points {
        if let Some([x, y]) = point {
            // Writing to a string cannot fail.
            let _ = write!(d, "{}{x:.1} {y:.1}", if pen_is_down { 'L' } else { 'M' });
        }
        pen_is_down = point.is_some();
    }
    d
}

/// Places near those that are wanted, at least `gap` apart and within the ends as far as there is room; in the order asked.
pub(super) fn apart(wanted: &[f64], gap: f64, [low, high]: [f64; 2]) -> Vec<f64> {
    let mut order: Vec<_> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));
    let mut places = wanted.to_vec();
    let mut least = low;
    for &index in &order {
        places[index] = places[index].max(least);
        least = places[index] + gap;
    }
    let mut most = high;
    for &index in order.iter().rev() {
        places[index] = places[index].min(most);
        most = places[index] - gap;
    }
    places
}

/// Text inside an element or an attribute. Characters that XML does not know become U+FFFD.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                control if control.is_control() => f.write_char('\u{fffd}')?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// Text at a place.
pub(super) fn text(
    f: &mut dyn Write,
    [x, y]: [f64; 2],
    class: &str,
    anchor: &str,
    text: &str,
) -> fmt::Result {
    write!(
        f,
        r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#,
        Escaped(text)
    )
}

/// The first `most` characters.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_map_ends_to_ends() {
        let scale = Scale::new([0.0, 100.0], [150.0, 30.0]);
        assert_eq!([0.0, 25.0, 100.0].map(|value| scale.at(value)), [150.0, 120.0, 30.0]);
        assert_eq!([-10.0, 110.0].map(|value| scale.clamped(value)), [150.0, 30.0]);
        assert_eq!(Scale::new([3.0, 3.0], [0.0, 10.0]).at(3.0), 5.0, "a point is in the middle");
        assert_eq!(scale.at(f64::NAN), 90.0);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks([0.0, 100.0], 4), [0.0, 50.0, 100.0]);
        assert_eq!(ticks([0.0, 100.0], 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks([-100.0, 20.0], 3), [-100.0, -50.0, 0.0]);
        assert_eq!(ticks([0.0, 0.03], 3), [0.0, 0.01, 0.02, 0.03]);
        assert_eq!(ticks([5.0, 5.0], 3), [5.0]);
        assert_eq!(ticks([0.0, f64::INFINITY], 3), [0.0]);
    }

    #[test]
    fn domains_hold_their_values() {
        assert_eq!(domain([1.7, 0.3].into_iter()), [0.0, 2.0]);
        assert_eq!(domain([-100.0, 3.2].into_iter()), [-100.0, 50.0]);
        assert_eq!(domain([].into_iter()), [0.0, 1.0]);
        assert_eq!(domain([f64::NAN].into_iter()), [0.0, 1.0]);
    }

    #[test]
    fn paths_break_where_a_point_is_missing() {
        let points = [Some([0.0, 1.0]), Some([2.0, 3.25]), None, Some([4.0, 5.0])];
        assert_eq!(path(points), "M0.0 1.0L2.0 3.2M4.0 5.0");
        assert_eq!(path([None]), "");
    }

    #[test]
    fn labels_give_way_to_each_other() {
        assert_eq!(apart(&[10.0, 50.0], 12.0, [0.0, 100.0]), [10.0, 50.0]);
        assert_eq!(apart(&[50.0, 48.0, 49.0], 12.0, [0.0, 100.0]), [72.0, 48.0, 60.0]);
        assert_eq!(apart(&[99.0, 98.0], 12.0, [0.0, 100.0]), [100.0, 88.0]);
    }

    #[test]
    fn hostile_text_is_only_text() {
        let text = Escaped("<script>alert('1')</script>\u{1b}[31m & \"").to_string();
        assert_eq!(text, "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;\u{fffd}[31m &amp; &quot;");
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(shortened("äöüß", 4), "äöüß");
    }
}
