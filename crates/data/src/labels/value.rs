//! Text and value of label names and cells.

use std::borrow::Cow;

use icu_normalizer::ComposingNormalizerBorrowed;

use crate::RawLabel;

/// The form in which texts are compared: composed (NFC), without blanks at the ends, other white space as a blank.
pub(crate) fn normalized(text: &str) -> Cow<'_, str> {
    // A tsv file has no other way to hold these characters.
    let is_control = |c: char| matches!(c, '\t' | '\n' | '\r' | '\0');
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    let spaced = match text.contains(is_control) {
        true => Cow::Owned(text.replace(is_control, " ")),
        false => Cow::Borrowed(text),
    };
    match ComposingNormalizerBorrowed::new_nfc().normalize(&spaced) {
        Cow::Borrowed(same) if same.len() == spaced.len() => spaced,
        other => Cow::Owned(other.into_owned()),
    }
}

/// Tests that a text stands for a missing cell: blank, or NaN or `<NA>` as pandas writes it.
pub(crate) fn is_missing(text: &str) -> bool {
    let text = text.trim();
    text.is_empty() || text == "<NA>" || text.parse::<f64>().is_ok_and(f64::is_nan)
}

/// A number or truth value, however it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Number(Decimal),
    Boolean(bool),
}

impl Value {
    /// The value of a text, if it is that of a finite number, or `true` or `false` in any case.
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        match text {
            _ if text.eq_ignore_ascii_case("true") => Some(Value::Boolean(true)),
            _ if text.eq_ignore_ascii_case("false") => Some(Value::Boolean(false)),
            _ => Decimal::parse(text).map(Value::Number),
        }
    }

    /// The values that a cell may mean: a number that is exactly one of 32 bits is also the shortest decimal of those.
    pub(crate) fn of_cell(cell: &RawLabel) -> Vec<Self> {
        let number = |text: String| Decimal::parse(&text).map(Value::Number);
        match cell {
            RawLabel::Bool(truth) => vec![Value::Boolean(*truth)],
            RawLabel::Int(n) => number(n.to_string()).into_iter().collect(),
            RawLabel::Float(x) => {
                let narrow = *x as f32;
                let of_narrow = (f64::from(narrow) == *x).then(|| number(narrow.to_string())).flatten();
                let wide = number(x.to_string());
                let of_narrow = of_narrow.filter(|narrow| wide.as_ref() != Some(narrow));
                wide.into_iter().chain(of_narrow).collect()
            }
            RawLabel::Name(text) => Self::of_text(&normalized(text)).into_iter().collect(),
            RawLabel::Many(_) => Vec::new(),
        }
    }

    /// The number, with truth values as 0 and 1.
    pub(crate) fn number(&self) -> Decimal {
        match self {
            Value::Number(number) => number.clone(),
            Value::Boolean(truth) => Decimal::from(*truth),
        }
    }
}

/// An exact decimal number: `0.digits * 10^exponent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decimal {
    is_negative: bool,
    /// Without zeros at its ends; empty for zero.
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// The number that a text is, if it is a finite one in digits, with sign, point and exponent or without.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let from_first = all.trim_start_matches('0');
        let digits = from_first.trim_end_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self { is_negative: false, digits, exponent: 0 });
        }
        let zeros = (all.len() - from_first.len()) as i64;
        let exponent = exponent.checked_add(whole.len() as i64 - zeros)?;
        Some(Self { is_negative: text.starts_with('-'), digits, exponent })
    }

    /// The number, if it is a whole one that fits.
    pub(crate) fn whole(&self) -> Option<i64> {
        if self.digits.is_empty() {
            return Some(0);
        }
        let zeros = self.exponent.checked_sub(self.digits.len() as i64)?;
        let zeros = usize::try_from(zeros).ok().filter(|zeros| *zeros < 20)?;
        let sign = if self.is_negative { "-" } else { "" };
        format!("{sign}{}{}", self.digits, "0".repeat(zeros)).parse().ok()
    }

    /// The number as one of floating point, as near as that can be.
    pub(crate) fn float(&self) -> f64 {
        let sign = if self.is_negative { "-" } else { "" };
        format!("{sign}0.{}e{}", self.digits, self.exponent).parse().unwrap_or(f64::NAN)
    }
}

impl From<bool> for Decimal {
    fn from(truth: bool) -> Self {
        let digits = if truth { "1" } else { "" }.to_owned();
        Self { is_negative: false, exponent: i64::from(truth), digits }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normalized_texts_of_one_name_are_equal() {
        assert_eq!(normalized("e\u{301}te\u{301} \n"), "été");
        assert_eq!(normalized("\ta\tb\u{a0}"), "a b");
        assert!(matches!(normalized("plain"), Cow::Borrowed("plain")));
        assert_ne!(normalized("Bad"), normalized("bad"));
        assert_ne!(normalized("ﬁ"), normalized("fi"), "compatibility forms are other names");
    }

    #[test]
    fn numbers_are_equal_however_they_are_written() {
        let of = |text: &str| Decimal::parse(text).unwrap_or_else(|| panic!("{text} is a number"));
        for (a, b) in
            [("1", "1.0"), ("1", "01"), ("1", "1e0"), ("1", "0.1E+1"), ("0", "-0.0"), (".5", "5e-1"), ("1.", "+1")]
        {
            assert_eq!(of(a), of(b), "{a} {b}");
        }
        for (a, b) in [("1", "-1"), ("1", "10"), ("0.1", "0.01"), ("9007199254740992", "9007199254740993")] {
            assert_ne!(of(a), of(b), "{a} {b}");
        }
        for text in
            ["", "-", ".", "e1", "1e", "0x1", "1_0", "1,5", "nan", "inf", "1 0", "--1", "1e99999999999999999999"]
        {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
        assert_eq!(of("1e19").whole(), None);
        assert_eq!(
            [of("120").whole(), of("-0").whole(), of("0.5").whole(), of("-7.0").whole()],
            [Some(120), Some(0), None, Some(-7)]
        );
    }

    #[test]
    fn numbers_of_32_bits_are_their_shortest_decimal() {
        let of = |x: f64| Value::of_cell(&RawLabel::Float(x));
        let tenth = Value::of_text("0.1").expect("a number");
        assert!(of(f64::from(0.1_f32)).contains(&tenth) && of(0.1).contains(&tenth));
        assert_eq!(of(2.0), [Value::of_text("2").expect("a number")]);
        assert_eq!(of(f64::NAN), []);
        assert_eq!(of(f64::INFINITY), []);
    }

    proptest! {
        #[test]
        fn whole_numbers_survive_any_spelling(n in any::<i64>(), zeros in 0_usize..4) {
            let sign = if n < 0 { "-" } else { "" };
            let text = format!("{sign}{}{}.{}", "0".repeat(zeros), n.unsigned_abs(), "0".repeat(zeros));
            let decimal = Decimal::parse(&text).expect("a number");
            prop_assert_eq!(decimal.whole(), Some(n));
            prop_assert_eq!(&Decimal::parse(&n.to_string()).expect("a number"), &decimal);
        }

        #[test]
        fn any_exponent_is_read_without_overflow(digits in "[0-9]{1,3}", exponent in prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX)]) {
            if let Some(decimal) = Decimal::parse(&format!("0.{digits}e{exponent}")) {
                let (whole, float) = (decimal.whole(), decimal.float());
                prop_assert!(whole.is_none_or(|whole| whole as f64 == float), "{whole:?}, {float}");
            }
        }

        #[test]
        fn floats_survive(x in any::<f64>().prop_filter("finite", |x| x.is_finite())) {
            for text in [format!("{x}"), format!("{x:e}")] {
                prop_assert_eq!(Decimal::parse(&text).expect("a number").float(), x);
            }
        }
    }
}
