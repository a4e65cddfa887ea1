//! Axes with ticks at round numbers.

use crate::text;

/// Most ticks of an axis behind the first one; about five are usual.
const MAX_TICKS: i64 = 20;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) log: bool,
    pub(crate) ticks: Vec<Tick>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tick {
    /// Position from 0 to 1.
    pub(crate) position: f64,
    pub(crate) label: String,
}

impl Axis {
    /// Axis from the tick below the lowest number to the tick above the highest.
    pub(crate) fn enclosing(low: f64, high: f64) -> Self {
        Self::within(low, high, f64::NEG_INFINITY, f64::INFINITY)
    }

    /// The same axis for shares in percent: it ends at 0 and 100 if the numbers do.
    pub(crate) fn of_percent(low: f64, high: f64) -> Self {
        let least = if low >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
        let most = if high <= 100.0 { 100.0 } else { f64::INFINITY };
        Self::within(low, high, least, most)
    }

    /// Axis from the tick below the lowest number to the tick above the highest, but not beyond these ends.
    fn within(low: f64, high: f64, least: f64, most: f64) -> Self {
        let (low, high) = widened(low, high);
        let step = step(low, high, 4.0);
        Self::linear(((low / step).floor() * step).max(least), ((high / step).ceil() * step).min(most), step)
    }

    /// Axis that ends at the highest number.
    pub(crate) fn exact(low: f64, high: f64) -> Self {
        let (low, high) = widened(low, high);
        Self::linear(low, high, step(low, high, 4.0))
    }

    /// Axis of powers of ten, for numbers above 0.
    pub(crate) fn powers(low: f64, high: f64) -> Self {
        let (low, high) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let high = high.max(low + 1);
        let every = usize::try_from((high - low + 4) / 5).unwrap_or(1).max(1);
        let mut axis = Self { from: 10f64.powi(low), to: 10f64.powi(high), log: true, ticks: Vec::new() };
        let label = |power| match power {
            -3..4 => trimmed_power(power),
            _ => text::scientific(10f64.powi(power), 1),
        };
        axis.ticks = (low..=high).step_by(every).map(|power| axis.tick(10f64.powi(power), label(power))).collect();
        axis
    }

    fn linear(from: f64, to: f64, step: f64) -> Self {
        let mut axis = Self { from, to, log: false, ticks: Vec::new() };
        let (first, last) = ((from / step - 1e-9).ceil() as i64, (to / step + 1e-9).floor() as i64);
        // The step of the smallest and of the largest numbers is rounded to 0 or infinite.
        let last = last.min(first.saturating_add(MAX_TICKS));
        let most = from.abs().max(to.abs());
        axis.ticks = (first..=last).map(|i| axis.tick(i as f64 * step, label(i as f64 * step, step, most))).collect();
        axis
    }

    fn tick(&self, number: f64, label: String) -> Tick {
        Tick { position: self.position(number), label }
    }

    /// Position of a number, from 0 to 1 within the axis.
    pub(crate) fn position(&self, number: f64) -> f64 {
        if self.log {
            (number / self.from).log10() / (self.to / self.from).log10()
        } else {
            (number - self.from) / (self.to - self.from)
        }
    }
}

fn trimmed_power(power: i32) -> String {
    format!("{:.*}", usize::try_from(-power).unwrap_or(0), 10f64.powi(power))
}

/// Widens an empty span.
fn widened(low: f64, high: f64) -> (f64, f64) {
    let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
    if (high - low).abs() > low.abs().max(high.abs()) * 1e-9 { (low, high) } else { (low - margin, high + margin) }
}

/// Step of 1, 2 or 5 times a power of ten, for about `steps` steps.
fn step(low: f64, high: f64, steps: f64) -> f64 {
    let rough = (high - low) / steps;
    let power = 10f64.powf(rough.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].into_iter().find(|nice| nice * power >= rough * 0.85).unwrap_or(10.0);
    nice * power
}

/// Label of a tick: as many digits as its neighbours need to differ, thousands as k and M.
fn label(number: f64, step: f64, most: f64) -> String {
    let (unit, name) = match most {
        1e9.. => (1e9, "G"),
        1e6.. => (1e6, "M"),
        1e4.. => (1e3, "k"),
        _ => (1.0, ""),
    };
    if number.abs() < step * 1e-6 {
        return "0".to_owned();
    }
    if most < 1e-3 {
        return text::scientific(number, 2);
    }
    let places = usize::try_from(-((step / unit).log10() + 1e-9).floor() as i32).unwrap_or(0).min(300);
    let text = format!("{:.places$}", number / unit);
    format!("{}{name}", text.replace('-', "−"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn axes_of_any_numbers_have_few_ticks() {
        let extremes = [0.0, 5e-324, 1e-320, 1e-300, 1.0, 1.0 + f64::EPSILON, 1e300, f64::MAX];
        for low in extremes.into_iter().chain(extremes.map(|number: f64| -number)) {
            for high in extremes.into_iter().filter(|high| *high >= low) {
                for axis in [Axis::enclosing(low, high), Axis::exact(low, high)] {
                    assert!(axis.ticks.len() <= 21, "{low} {high}");
                }
            }
        }
        assert!(Axis::powers(5e-324, f64::MAX).ticks.len() <= 21);
    }

    #[test]
    fn axes_of_percent_end_at_0_and_100() {
        assert_eq!(labels(&Axis::of_percent(100.0, 100.0)), ["90", "95", "100"]);
        assert_eq!(labels(&Axis::of_percent(0.0, 0.0)), ["0", "0.5", "1.0"]);
        assert_eq!(Axis::of_percent(81.0, 97.0), Axis::enclosing(81.0, 97.0));
        assert_eq!(Axis::of_percent(-3.0, 130.0), Axis::enclosing(-3.0, 130.0));
    }

    #[test]
    fn axes_have_round_ticks() {
        assert_eq!(labels(&Axis::enclosing(0.0, 0.97)), ["0", "0.5", "1.0"]);
        assert_eq!(labels(&Axis::exact(0.0, 290.0)), ["0", "100", "200"]);
        assert_eq!(labels(&Axis::exact(0.0, 200_000.0)), ["0", "50k", "100k", "150k", "200k"]);
        assert_eq!(labels(&Axis::enclosing(-0.3, 0.3)), ["−0.4", "−0.2", "0", "0.2", "0.4"]);
        assert_eq!(labels(&Axis::enclosing(0.0, 3e-4)), ["0", "1×10⁻⁴", "2×10⁻⁴", "3×10⁻⁴"]);
        assert_eq!(labels(&Axis::enclosing(72.0, 88.0)), ["70", "75", "80", "85", "90"]);
        assert_eq!(labels(&Axis::powers(0.02, 30.0)), ["0.01", "0.1", "1", "10", "100"]);
        assert_eq!(labels(&Axis::powers(1024.0, 65536.0)), ["1000", "1×10⁴", "1×10⁵"]);
    }

    #[test]
    fn axes_have_span_and_few_ticks() {
        for (low, high) in [(0.0, 0.0), (5.0, 5.0), (-1e-9, 1e12), (0.1, 0.100_001), (3.0, 1e5), (1e-7, 2e-7)] {
            for axis in [Axis::enclosing(low, high), Axis::exact(low, high)] {
                assert!(axis.from < axis.to && axis.from <= low && axis.to >= high, "{axis:?}");
                assert!((1..=8).contains(&axis.ticks.len()), "{axis:?}");
                assert!(axis.ticks.iter().all(|tick| (-1e-6..=1.000_001).contains(&tick.position)), "{axis:?}");
            }
        }
        let axis = Axis::powers(0.5, 0.5);
        assert_eq!((axis.from, axis.to, axis.position(1.0)), (0.1, 1.0, 1.0));
    }
}
