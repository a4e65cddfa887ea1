//! Parsers of argument values.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use sepal_data::Format;

/// Folder of a run, with a name or without: `RUN` or `NAME=RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunArg {
    pub name: Option<String>,
    pub folder: PathBuf,
}

impl From<OsString> for RunArg {
    fn from(text: OsString) -> Self {
        let is_name = |name: &&str| !name.is_empty() && !name.contains(['/', '\\']);
        // Folders of a sweep's runs hold `=`, as in `001-lr=0.001`.
        let text_with_name = text.to_str().filter(|text| !Path::new(text).is_dir());
        let named = text_with_name.and_then(|text| text.split_once('=')).filter(|(name, _)| is_name(name));
        match named {
            Some((name, folder)) => Self { name: Some(name.to_owned()), folder: folder.into() },
            None => Self { name: None, folder: text.into() },
        }
    }
}

/// Parses the folder of a run with or without a name. A text that is a folder has no name.
pub(super) fn run() -> impl TypedValueParser<Value = RunArg> {
    OsStringValueParser::new().map(RunArg::from)
}

/// Parses KEY=VALUE. `--set` takes every word that follows it, so a file name may end up here.
pub(super) fn setting(text: &str) -> Result<String, &'static str> {
    match text.contains('=') {
        true => Ok(text.to_owned()),
        false if Path::new(text).exists() => Err("expected KEY=VALUE; names of files go before --set"),
        false => Err("expected KEY=VALUE, for example train.seed=7"),
    }
}

/// All formats; the last one has no columns.
const FORMATS: [Format; 7] =
    [Format::Parquet, Format::Arrow, Format::Csv, Format::Tsv, Format::Json, Format::Jsonl, Format::Lines];

pub(super) fn format(text: &str) -> Result<Format, String> {
    one_of(&FORMATS, text)
}

/// Parses a format whose rows may have labels.
pub(super) fn table_format(text: &str) -> Result<Format, String> {
    one_of(&FORMATS[..6], text)
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

/// Parses a probability.
pub(super) fn probability(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_run_stands_before_the_first_equals_sign() {
        for (text, name, folder) in [
            ("runs/a", None, "runs/a"),
            ("films=runs/a", Some("films"), "runs/a"),
            ("films=runs/a=b", Some("films"), "runs/a=b"),
            ("./a=b", None, "./a=b"),
            ("=runs/a", None, "=runs/a"),
        ] {
            let expected = RunArg { name: name.map(str::to_owned), folder: folder.into() };
            assert_eq!(RunArg::from(OsString::from(text)), expected, "{text}");
        }
    }
}
