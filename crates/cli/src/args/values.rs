//! Parsers of argument values.

use std::path::Path;

use sepal_data::Format;

/// Parses KEY=VALUE. `--set` takes every word that follows it, so a file name may end up here.
pub(super) fn setting(text: &str) -> Result<String, &'static str> {
    match text.contains('=') {
        true => Ok(text.to_owned()),
        false if Path::new(text).exists() => Err("expected KEY=VALUE; names of files go before --set"),
        false => Err("expected KEY=VALUE, for example train.seed=7"),
    }
}

/// All formats; the last one has no columns.
const FORMATS: [Format; 6] = [Format::Parquet, Format::Arrow, Format::Csv, Format::Tsv, Format::Jsonl, Format::Lines];

pub(super) fn format(text: &str) -> Result<Format, String> {
    one_of(&FORMATS, text)
}

/// Parses a format whose rows may have labels.
pub(super) fn table_format(text: &str) -> Result<Format, String> {
    one_of(&FORMATS[..5], text)
}

fn one_of(formats: &[Format], text: &str) -> Result<Format, String> {
    let found = formats.iter().copied().find(|format| format.name() == text);
    let names = || formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| format!("expected one of {}", names()))
}

/// Parses a number from 1 to one million, so that no sum of sizes overflows.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=1_000_000).contains(&number) => Ok(number),
        _ => Err("expected a whole number from 1 to 1000000".into()),
    }
}

/// Parses a number above zero, which may have a fraction.
pub(super) fn positive_number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("expected a number above zero".into()),
    }
}
