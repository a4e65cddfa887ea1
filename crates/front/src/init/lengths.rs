//! Lengths of rows, in tokens if the model is cached.

use std::path::Path;

use sepal_assets::{AssetOptions, Assets, ignore_events};
use sepal_checkpoint::Checkpoint;
use sepal_data::{Survey, Table, TableSpec, Template, TokenSpec, TokenTable};

use super::draft::Draft;

/// Number of first rows to tokenize, enough for the 99th percentile.
const SAMPLE: usize = 5000;
/// Approximate number of tokens per word, without a tokenizer.
const PER_WORD: f64 = 1.5;
/// Largest proposal, as the cost of attention grows with the square.
const MOST: usize = 512;
const LEAST: usize = 16;

pub(super) fn max_length(data: &Path, draft: &Draft, survey: &Survey) -> (usize, String) {
    let (tokens, reason) = match by_tokenizer(data, draft) {
        Some((p99, rows, model)) => {
            (p99, format!("99 % of {} have at most {p99} tokens, by the tokenizer of {model}", super::rows(rows)))
        }
        None => by_words(draft, survey),
    };
    let length = tokens.next_multiple_of(8).clamp(LEAST, MOST);
    let cut = if tokens > MOST { format!("; {MOST} is as long as is proposed") } else { String::new() };
    (length, format!("{reason}{cut}"))
}

fn by_words(draft: &Draft, survey: &Survey) -> (usize, String) {
    let p99 = |column: &str| survey.column(column).map_or(0, |column| column.words.p99);
    let words = p99(&draft.text) + draft.pair.as_deref().map_or(0, p99);
    // The words of the template count, too.
    let around = draft.template().split_whitespace().filter(|word| !word.starts_with('{')).count() + 1;
    let tokens = (words as f64 * PER_WORD).ceil() as usize + 2 * around;
    let reason = format!(
        "99 % of rows have at most {words} words, taken for {PER_WORD} tokens each, as the model is not here yet"
    );
    (tokens, reason)
}

/// Returns the 99th percentile of tokens per row, the number of rows and the model, or `None` if the model is not cached.
fn by_tokenizer(data: &Path, draft: &Draft) -> Option<(usize, usize, String)> {
    let mut options = AssetOptions::from_env();
    // These settings keep the hub and pip from being used.
    options.hub_offline = true;
    options.python = "/dev/null/no-python".into();
    let asset = Assets::new(options).fetch_first_model(&draft.model, &mut |_| Ok(()), &mut ignore_events).ok()?;
    let tokenizer = Checkpoint::open(&asset.path).ok()?.tokenizer().ok()?;
    let text_pair = draft.pair.clone();
    let spec = TableSpec { dialect: draft.dialect, text_pair, ..TableSpec::new(data, &draft.text) };
    let files = sepal_data::training_files(data, None).ok()?;
    let table = Table::read_files(&spec.skipping_empty(), &files).ok()?;
    let table = table.select(&(0..table.len().min(SAMPLE)).collect::<Vec<_>>());
    let template = draft.template().parse::<Template>().ok()?;
    let tokens = TokenTable::build(&table, &tokenizer, &TokenSpec::new(usize::MAX).with_template(template)).ok()?;
    let mut lengths: Vec<usize> = tokens.sequences().lengths().collect();
    lengths.sort_unstable();
    let index = (lengths.len() * 99).div_ceil(100).max(1) - 1;
    Some((*lengths.get(index)?, lengths.len(), asset.source.to_string()))
}
