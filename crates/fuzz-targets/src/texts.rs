//! Tokenizers, pipeline files and run folders.

use std::path::Path;
use std::sync::OnceLock;

use sepal_catalog::Catalog;
use sepal_config::Layers;
use sepal_tokenize::{Input, Tokenizer, Truncation, TruncationSide};

use crate::with_files;

const TEXTS: [&str; 4] = ["", "a film and a plot", "é 情感\u{0}\u{202e}\u{301} 😀", "<s> [UNK] ab"];
const LIMIT: Truncation = Truncation { max_length: 8, side: TruncationSide::Right };
/// Tokenizer beside the files of [`tokenizer_config`].
const DEFINITION: &[u8] = include_bytes!("../seeds/tokenizer/word-level.json");
/// Most ids that are converted to texts.
const MAX_IDS: u32 = 64;

/// A `tokenizer.json`.
pub(crate) fn tokenizer(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes(bytes) {
        encode(&tokenizer);
    }
}

/// A `tokenizer_config.json` and a `special_tokens_map.json` beside a tokenizer.
pub(crate) fn tokenizer_config(bytes: &[u8]) {
    let files = [
        ("tokenizer.json", DEFINITION),
        ("tokenizer_config.json", bytes),
        ("special_tokens_map.json", bytes),
        ("added_tokens.json", &b"{\"<x>\": 9}"[..]),
    ];
    with_files(&files, |folder| {
        if let Ok(tokenizer) = Tokenizer::from_file(folder.join("tokenizer.json")) {
            encode(&tokenizer);
        }
    });
}

/// Uses a tokenizer as runs do. Errors are answers.
fn encode(tokenizer: &Tokenizer) {
    for text in TEXTS {
        let pair = Input::new(text, Some("a pair"));
        let _ = (tokenizer.encode(text, None, 64).is_ok(), tokenizer.encode_plain(text).is_ok());
        let _ = (tokenizer.encode_input(&pair, LIMIT).is_ok(), tokenizer.encode_batch(&[pair], LIMIT).is_ok());
    }
    let ids = 0..MAX_IDS.min(u32::try_from(tokenizer.vocab_size()).unwrap_or(MAX_IDS));
    let texts = ids.clone().filter_map(|id| tokenizer.token_text(id)).count();
    let ids: Vec<u32> = ids.collect();
    let _ = (texts, tokenizer.decode(&ids), tokenizer.last_token());
}

/// A pipeline file, also as a sweep.
pub(crate) fn pipeline(bytes: &[u8]) {
    static CATALOG: OnceLock<Option<Catalog>> = OnceLock::new();
    let catalog = CATALOG.get_or_init(|| {
        let mut catalog = Catalog::new();
        sepal_options::register(&mut catalog).ok()?;
        Some(catalog)
    });
    let (Some(catalog), Ok(text)) = (catalog, std::str::from_utf8(bytes)) else { return };
    let layers = Layers::text("pipeline.yaml", text);
    let loaded = layers.load(catalog).map(|loaded| loaded.spec.to_yaml().is_ok());
    let _ = (loaded.map_err(|problems| problems.to_string()), layers.is_sweep());
}

/// The manifest of a run folder, and its report.
pub(crate) fn run_folder(bytes: &[u8]) {
    let page = |folder: &Path| sepal_report::Run::read(folder).map(|run| sepal_report::report(&run).len());
    with_files(&[("manifest.json", bytes), ("metrics.jsonl", bytes), ("pipeline.yaml", bytes)], |folder| {
        let _ = page(folder).is_ok();
    });
}
