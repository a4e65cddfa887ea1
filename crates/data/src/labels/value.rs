//! Text and value of label names and cells.

use std::borrow::Cow;

use unicode_normalization::{UnicodeNormalization, is_nfc};

use crate::RawLabel;

/// Normal form for comparisons: composed (NFC), trimmed, control characters as blanks.
pub(crate) fn normalized(text: &str) -> Cow<'_, str> {
    // Tsv files have blanks in place of these characters.
    let is_control = |c: char| matches!(c, '\t' | '\n' | '\r' | '\0');
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    let spaced = match text.contains(is_control) {
        true => Cow::Owned(text.replace(is_control, " ")),
        false => Cow::Borrowed(text),
    };
    if is_nfc(&spaced) { spaced } else { Cow::Owned(spaced.chars().nfc().collect()) }
}

/// Returns true if a text represents a missing cell: blank, or NaN or `<NA>` as pandas writes them.
pub(crate) fn is_missing(text: &str) -> bool {
    let text = text.trim();
    text.is_empty() || text == "<NA>" || text.parse::<f64>().is_ok_and(f64::is_nan)
}

/// Share of a label, from 0 to 1, in an item of a multi-hot vector.
pub(crate) fn share(item: &RawLabel) -> Option<f32> {
    let share = match item {
        RawLabel::Float(share) => *share,
        other => Value::candidates(other).first()?.number().to_float(),
    };
    (0.0..=1.0).contains(&share).then_some(share as f32)
}

/// Number or truth value, independent of its spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Number(Decimal),
    Boolean(bool),
}

impl Value {
    /// Value of a text that is a finite number, or `true` or `false` in any case.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        match text {
            _ if text.eq_ignore_ascii_case("true") => Some(Value::Boolean(true)),
            _ if text.eq_ignore_ascii_case("false") => Some(Value::Boolean(false)),
            _ => Decimal::parse(text).map(Value::Number),
        }
    }

    /// Possible values of a cell: a number that is exact in 32 bits is also its shortest 32-bit decimal.
    pub(crate) fn candidates(cell: &RawLabel) -> Vec<Self> {
        let number = |text: String| Decimal::parse(&text).map(Value::Number);
        match cell {
            RawLabel::Bool(truth) => vec![Value::Boolean(*truth)],
            RawLabel::Int(n) => number(n.to_string()).into_iter().collect(),
            RawLabel::Float(x) => {
                let narrow = *x as f32;
                let from_narrow = (f64::from(narrow) == *x).then(|| number(narrow.to_string())).flatten();
                let wide = number(x.to_string());
                let from_narrow = from_narrow.filter(|narrow| wide.as_ref() != Some(narrow));
                wide.into_iter().chain(from_narrow).collect()
            }
            RawLabel::Name(text) | RawLabel::Quoted(text) => Self::from_text(&normalized(text)).into_iter().collect(),
            RawLabel::Many(_) => Vec::new(),
        }
    }

    /// Number, with truth values as 0 and 1.
    pub(crate) fn number(&self) -> Decimal {
        match self {
            Value::Number(number) => number.clone(),
            Value::Boolean(truth) => Decimal::from(*truth),
        }
    }
}

/// Exact decimal number: `0.digits * 10^exponent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decimal {
    is_negative: bool,
    /// Digits without zeros at both ends; empty for zero.
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Parses a finite number in digits, with optional sign, point and exponent.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (unsigned, 0),
        };
        let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{integer}{fraction}");
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let significant = all.trim_start_matches('0');
        let digits = significant.trim_end_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self { is_negative: false, digits, exponent: 0 });
        }
        let zeros = (all.len() - significant.len()) as i64;
        let exponent = exponent.checked_add(integer.len() as i64 - zeros)?;
        Some(Self { is_negative: text.starts_with('-'), digits, exponent })
    }

    pub(crate) fn to_integer(&self) -> Option<i64> {
        if self.digits.is_empty() {
            return Some(0);
        }
        let zeros = self.exponent.checked_sub(self.digits.len() as i64)?;
        let zeros = usize::try_from(zeros).ok().filter(|zeros| *zeros < 20)?;
        let sign = if self.is_negative { "-" } else { "" };
        format!("{sign}{}{}", self.digits, "0".repeat(zeros)).parse().ok()
    }

    pub(crate) fn to_float(&self) -> f64 {
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
    fn normalized_spellings_of_a_name_are_equal() {
        assert_eq!(normalized("e\u{301}te\u{301} \n"), "été");
        assert_eq!(normalized("\ta\tb\u{a0}"), "a b");
        assert!(matches!(normalized("plain"), Cow::Borrowed("plain")));
        assert_ne!(normalized("Bad"), normalized("bad"));
        assert_ne!(normalized("ﬁ"), normalized("fi"), "compatibility forms are other names");
    }

    #[test]
    fn decimal_spellings_of_a_number_are_equal() {
        let decimal = |text: &str| Decimal::parse(text).unwrap_or_else(|| panic!("{text} is a number"));
        for (a, b) in
            [("1", "1.0"), ("1", "01"), ("1", "1e0"), ("1", "0.1E+1"), ("0", "-0.0"), (".5", "5e-1"), ("1.", "+1")]
        {
            assert_eq!(decimal(a), decimal(b), "{a} {b}");
        }
        for (a, b) in [("1", "-1"), ("1", "10"), ("0.1", "0.01"), ("9007199254740992", "9007199254740993")] {
            assert_ne!(decimal(a), decimal(b), "{a} {b}");
        }
        for text in
            ["", "-", ".", "e1", "1e", "0x1", "1_0", "1,5", "nan", "inf", "1 0", "--1", "1e99999999999999999999"]
        {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
        assert_eq!(decimal("1e19").to_integer(), None);
        let integers = ["120", "-0", "0.5", "-7.0"].map(|text| decimal(text).to_integer());
        assert_eq!(integers, [Some(120), Some(0), None, Some(-7)]);
    }

    #[test]
    fn f32_numbers_are_their_shortest_decimal() {
        let candidates = |x: f64| Value::candidates(&RawLabel::Float(x));
        let tenth = Value::from_text("0.1").expect("a number");
        assert!(candidates(f64::from(0.1_f32)).contains(&tenth) && candidates(0.1).contains(&tenth));
        assert_eq!(candidates(2.0), [Value::from_text("2").expect("a number")]);
        assert_eq!(candidates(f64::NAN), []);
        assert_eq!(candidates(f64::INFINITY), []);
    }

    proptest! {
        #[test]
        fn integers_survive_any_spelling(n in any::<i64>(), zeros in 0_usize..4) {
            let sign = if n < 0 { "-" } else { "" };
            let text = format!("{sign}{}{}.{}", "0".repeat(zeros), n.unsigned_abs(), "0".repeat(zeros));
            let decimal = Decimal::parse(&text).expect("a number");
            prop_assert_eq!(decimal.to_integer(), Some(n));
            prop_assert_eq!(&Decimal::parse(&n.to_string()).expect("a number"), &decimal);
        }

        #[test]
        fn exponents_are_parsed_without_overflow(digits in "[0-9]{1,3}", exponent in prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX)]) {
            if let Some(decimal) = Decimal::parse(&format!("0.{digits}e{exponent}")) {
                let (integer, float) = (decimal.to_integer(), decimal.to_float());
                prop_assert!(integer.is_none_or(|integer| integer as f64 == float), "{integer:?}, {float}");
            }
        }

        #[test]
        fn floats_survive_parsing(x in any::<f64>().prop_filter("finite", |x| x.is_finite())) {
            for text in [format!("{x}"), format!("{x:e}")] {
                prop_assert_eq!(Decimal::parse(&text).expect("a number").to_float(), x);
            }
        }
    }
}
