//! Data files.

use sepal_data::{SurveyOptions, metrics_parquet, survey};

use crate::with_files;

pub(crate) fn csv(bytes: &[u8]) {
    survey_of("rows.csv", bytes);
}

pub(crate) fn json(bytes: &[u8]) {
    survey_of("rows.json", bytes);
}

pub(crate) fn jsonl(bytes: &[u8]) {
    survey_of("rows.jsonl", bytes);
}

pub(crate) fn parquet(bytes: &[u8]) {
    survey_of("rows.parquet", bytes);
}

fn survey_of(name: &str, bytes: &[u8]) {
    with_files(&[(name, bytes)], |folder| {
        let _ = survey(&folder.join(name), &SurveyOptions::default()).is_ok();
    });
}

/// A file of two rows.
pub(crate) fn parquet_seeds() -> Vec<Vec<u8>> {
    const ROWS: &[u8] = b"{\"text\":\"good\",\"label\":1,\"score\":0.5}\n{\"text\":\"bad\",\"label\":0}\n";
    let mut seeds = Vec::new();
    with_files(&[("rows.jsonl", ROWS)], |folder| seeds.extend(metrics_parquet(&folder.join("rows.jsonl"))));
    seeds
}
