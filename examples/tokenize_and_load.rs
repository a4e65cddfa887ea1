//! From a file to ragged batches: rows, labels and token ids, without libtorch.
//!
//! `tokenize_and_load [FILE TOKENIZER]`: the file has the columns `text` and `label`, with the labels `negative` and
//! `positive`; the tokenizer is a `tokenizer.json`. Without arguments, both are written first.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use sepal_core::LabelKind;
use sepal_data::{LabelSet, Loader, LoaderConfig, Table, TableSpec, TokenSpec, TokenTable};
use sepal_tokenize::Tokenizer;

const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": {"type":
    "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "warm": 2, "funny": 3, "mess": 4}, "unk_token": "[UNK]"}}"#;
const REVIEWS: &str = "text,label\na delight,positive\na mess,negative\n\"warm, and funny\",positive\n";

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let folder = tempfile::tempdir()?;
    let (file, tokenizer) = match args.as_slice() {
        [file, tokenizer] => (PathBuf::from(file), PathBuf::from(tokenizer)),
        _ => {
            let (file, tokenizer) = (folder.path().join("reviews.csv"), folder.path().join("tokenizer.json"));
            std::fs::write(&file, REVIEWS)?;
            std::fs::write(&tokenizer, TOKENIZER)?;
            (file, tokenizer)
        }
    };
    let table = Table::read(&TableSpec::new(file, "text").with_label("label"))?;
    let set = LabelSet::new(&["negative".to_owned(), "positive".to_owned()])?;
    let labels = set.labels_as(&table, LabelKind::Class)?;
    let tokens = TokenTable::build(&table, &Tokenizer::from_file(&tokenizer)?, &TokenSpec::new(16))?;

    let config = LoaderConfig { batch_size: 2, shuffle: false, ..LoaderConfig::default() };
    for batch in Loader::new(Arc::new(tokens), Some(labels), config)?.epoch(0) {
        println!("{} rows, {} tokens, {:?}", batch.n_rows(), batch.tokens.n_tokens(), batch.labels);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn example_runs() {
        super::main().expect("the example runs");
    }
}
