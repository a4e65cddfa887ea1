//! Formatting of numbers and texts.

use sepal_metrics::Metric;

/// Count with separators: `9,596`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Count with a noun: `1 step`, `2,000 steps`.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// Bytes with three digits: `1.03 GB`.
pub(crate) fn bytes(number: u64) -> String {
    let (unit, name) = byte_unit(number as f64);
    if unit == 1.0 {
        format!("{number}\u{a0}{name}")
    } else {
        format!("{}\u{a0}{name}", digits(number as f64 / unit, 3))
    }
}

/// Decimal unit for an amount of bytes: its size and name.
pub(crate) fn byte_unit(bytes: f64) -> (f64, &'static str) {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    units.into_iter().find(|(unit, _)| bytes >= unit * 0.9995).unwrap_or((1.0, "B"))
}

/// Duration: `0.23 s`, `42 s`, `11:51`, `3:07:15`.
pub(crate) fn seconds(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return MISSING.to_owned();
    }
    if seconds < 59.5 {
        return format!("{}\u{a0}s", if seconds < 10.0 { digits(seconds, 2) } else { format!("{seconds:.0}") });
    }
    let total = seconds.round() as u64;
    let (hours, minutes, rest) = (total / 3600, total / 60 % 60, total % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{rest:02}") } else { format!("{minutes}:{rest:02}") }
}

/// Placeholder of a missing number.
pub(crate) const MISSING: &str = "–";

/// Number with `significant` digits, in powers of ten if very large or small.
pub(crate) fn digits(number: f64, significant: usize) -> String {
    if !number.is_finite() {
        return MISSING.to_owned();
    }
    let size = split(number, significant).1;
    if !(-4..7).contains(&size) {
        return scientific(number, significant);
    }
    let places = usize::try_from(significant as i32 - 1 - size).unwrap_or(0);
    let text = format!("{number:.places$}");
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let grouped = match whole.trim_start_matches('-').parse() {
        Ok(whole @ 10_000..) => count(whole),
        _ => whole.trim_start_matches('-').to_owned(),
    };
    let sign = if whole.starts_with('-') { "−" } else { "" };
    if rest.is_empty() { format!("{sign}{grouped}") } else { format!("{sign}{grouped}.{rest}") }
}

/// Number as `2.5×10⁻⁴`.
pub(crate) fn scientific(number: f64, significant: usize) -> String {
    let (mantissa, exponent) = split(number, significant);
    let mantissa = trimmed(&mantissa).replace('-', "−");
    format!("{mantissa}×10{}", exponent.to_string().chars().map(superscript).collect::<String>())
}

/// Rounded digits and power of ten of a finite number.
fn split(number: f64, significant: usize) -> (String, i32) {
    let text = format!("{number:.*e}", significant.saturating_sub(1));
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    (mantissa.to_owned(), exponent.parse().unwrap_or(0))
}

/// Number without trailing zeros of its fraction.
pub(crate) fn trimmed(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

fn superscript(digit: char) -> char {
    match digit {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        other => other.to_digit(10).and_then(|digit| char::from_u32(0x2070 + digit)).unwrap_or(other),
    }
}

/// Share from 0 to 1 in percent: `86.17 %`.
pub(crate) fn percent(share: f64, places: usize) -> String {
    if share.is_finite() {
        format!("{:.places$}\u{a0}%", share * 100.0).replace('-', "−")
    } else {
        MISSING.to_owned()
    }
}

/// Value of a metric: accuracies in percent, others with four digits.
pub(crate) fn metric(name: &str, value: f64) -> String {
    if name.ends_with("accuracy") {
        return percent(value, 2);
    }
    if value.abs() < 10.0 {
        format!("{value:.4}").replace('-', "−").replace("NaN", MISSING)
    } else {
        digits(value, 5)
    }
}

/// Title of a metric; the name of a label is kept.
pub(crate) fn metric_name(name: &str) -> String {
    match (Metric::find(name), name.split_once('/')) {
        (Ok(metric), Some((_, label))) => format!("{} of {label}", metric.title),
        (Ok(metric), None) => metric.title.to_owned(),
        // Metric of a custom head, known by its name only.
        (Err(_), _) => capital(&name.replace('_', " ")),
    }
}

/// Capitalized text.
pub(crate) fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

/// Returns true if a smaller value of a metric is better; false for metrics of custom heads.
pub(crate) fn less_is_better(name: &str) -> bool {
    Metric::find(name).is_ok_and(|metric| !metric.larger_is_better)
}

/// Formatted number, or the placeholder.
pub(crate) fn or_missing(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.filter(|value| value.is_finite()).map_or_else(|| MISSING.to_owned(), show)
}

/// Text truncated to `limit` characters, with an ellipsis.
pub(crate) fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
    }
}

/// Readable form of a time in RFC 3339: `2026-11-24 17:15:19 +01:00`.
pub(crate) fn moment(stamp: &str) -> String {
    let spaced = stamp.replacen('T', " ", 1);
    match spaced.rfind(['+', '-']).filter(|&index| index > 18) {
        Some(index) => format!("{} {}", &spaced[..index], &spaced[index..]),
        None => spaced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_and_bytes_are_formatted() {
        assert_eq!([0, 999, 1000, 9596, 1_234_567].map(count), ["0", "999", "1,000", "9,596", "1,234,567"]);
        assert_eq!([0, 999, 1000, 354_900_000].map(bytes), ["0\u{a0}B", "999\u{a0}B", "1.00\u{a0}kB", "355\u{a0}MB"]);
        assert_eq!((bytes(999_999), bytes(1_034_000_000_000)), ("1.00\u{a0}MB".to_owned(), "1.03\u{a0}TB".to_owned()));
        assert_eq!((counted(1, "step", "steps"), counted(0, "step", "steps")), ("1 step".into(), "0 steps".into()));
    }

    #[test]
    fn seconds_are_formatted() {
        let found = [0.2256, 9.99, 42.4, 59.6, 711.0, 11_235.0].map(seconds);
        assert_eq!(found, ["0.23\u{a0}s", "10\u{a0}s", "42\u{a0}s", "1:00", "11:51", "3:07:15"]);
        assert_eq!(seconds(f64::NAN), MISSING);
    }

    #[test]
    fn digits_are_formatted() {
        let found = [0.0, 0.003, -0.25, 12.3456, 401.4, 123_456.0, 6.67e-5, 1.0e-8, 2.5e9].map(|n| digits(n, 3));
        assert_eq!(found, ["0.00", "0.00300", "−0.250", "12.3", "401", "123,456", "6.67×10⁻⁵", "1×10⁻⁸", "2.5×10⁹"]);
        assert_eq!((metric("accuracy", 0.8617), metric("mcc", -0.25)), ("86.17\u{a0}%".into(), "−0.2500".into()));
        assert_eq!((metric("mse", 1234.5678), metric("f1", f64::NAN)), ("1234.6".into(), MISSING.into()));
        assert_eq!(["0.500", "10", "2.0"].map(trimmed), ["0.5", "10", "2"]);
    }

    #[test]
    fn cut_keeps_whole_characters() {
        assert_eq!((cut("añb", 2), cut("añb", 3), cut("", 0)), ("añ…".into(), "añb".into(), "".into()));
        assert_eq!(moment("2026-11-24T17:15:19+01:00"), "2026-11-24 17:15:19 +01:00");
        assert_eq!(moment("2026-11-24T17:15:19Z"), "2026-11-24 17:15:19Z");
        assert!(less_is_better("loss") && less_is_better("mse") && !less_is_better("accuracy"));
        assert!(!less_is_better("f1/weight_loss"), "the name of a label says nothing");
    }

    #[test]
    fn metric_names_are_titles() {
        let found = ["f1", "f1_macro", "ece", "f1/weight_loss", "own_score"].map(metric_name);
        assert_eq!(found, ["F1", "F1 macro", "Calibration error", "F1 of weight_loss", "Own score"]);
    }
}
