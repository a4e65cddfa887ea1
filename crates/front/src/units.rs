//! Numbers, sizes and times as text.

/// Groups digits: `1234567` is `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// Formats bytes in the largest unit with a digit before the point.
pub fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Formats a loss scale: `65536`, but `2.50e11` and `1.22e-4`.
pub fn scale_text(scale: f64) -> String {
    if (1.0..1e7).contains(&scale) { format!("{scale:.0}") } else { format!("{scale:.2e}") }
}

/// Formats seconds as `1:02:03` or `2:03`.
pub fn clock(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.round() as u64 } else { 0 };
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sizes_and_times_are_readable() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_500_000), "1.5 MB");
        assert_eq!((scale_text(65536.0), scale_text(2.5e11)), ("65536".to_owned(), "2.50e11".to_owned()));
        assert_eq!(clock(59.6), "1:00");
        assert_eq!(clock(3723.0), "1:02:03");
    }
}
