//! Tiny random models with a tokenizer, and labelled text that they can learn, for tests of complete runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sepal_core::Family;
use serde_json::json;

/// Returns the folder of the goldens: `tiny-NAME/` and `tiny-NAME.golden.safetensors`.
pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

/// Returns the sorted names of the tiny models: every family in every variant.
///
/// # Panics
/// If the folder cannot be read.
pub fn models() -> Vec<String> {
    let entries = std::fs::read_dir(goldens()).expect("the goldens");
    let folder = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        let name = path.file_name()?.to_str()?.strip_prefix("tiny-")?.to_owned();
        path.join("config.json").is_file().then_some(name)
    };
    let mut names: Vec<String> = entries.filter_map(folder).collect();
    names.sort();
    assert!(names.len() >= Family::ALL.len(), "models are missing among the goldens: {names:?}");
    names
}

/// Words of the tiny tokenizer: of bad sentences, of good sentences, and of both.
const BAD: [&str; 8] = ["awful", "boring", "clumsy", "dull", "empty", "flat", "grim", "hollow"];
const GOOD: [&str; 8] = ["bright", "clever", "funny", "gentle", "lively", "moving", "sharp", "warm"];
const BOTH: [&str; 12] = ["a", "the", "film", "plot", "cast", "scene", "was", "is", "and", "very", "with", "it"];

/// Copies the tiny model `name` into `folder`, with a tokenizer of 29 words beside it.
///
/// # Panics
/// If the files cannot be copied.
pub fn model(folder: &Path, name: &str) -> PathBuf {
    let (from, to) = (goldens().join(format!("tiny-{name}")), folder.join(name));
    std::fs::create_dir_all(&to).expect("a folder for the model");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(file), to.join(file)).expect("goldens are there");
    }
    let words = ["[UNK]"].iter().chain(&BAD).chain(&GOOD).chain(&BOTH);
    let vocab: BTreeMap<&str, usize> = words.enumerate().map(|(id, word)| (*word, id)).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    });
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
    to
}

/// Splits the weights of a model's folder into shards with an index, one for the ends and one for each block, and
/// removes `model.safetensors`. Returns the names of the shards, the ends first.
///
/// # Panics
/// If the files cannot be read or written.
pub fn shard(folder: &Path) -> Vec<String> {
    let single = folder.join("model.safetensors");
    let bytes = std::fs::read(&single).expect("weights in one file");
    let weights = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut shards: BTreeMap<Option<usize>, Vec<_>> = BTreeMap::new();
    for (name, view) in weights.tensors() {
        shards.entry(name.split('.').find_map(|part| part.parse().ok())).or_default().push((name, view));
    }
    let (n_shards, mut files, mut weight_map) = (shards.len(), Vec::new(), serde_json::Map::new());
    for (index, tensors) in shards.into_values().enumerate() {
        let file = format!("model-{:05}-of-{n_shards:05}.safetensors", index + 1);
        weight_map.extend(tensors.iter().map(|(name, _)| (name.clone(), json!(file))));
        let shard = safetensors::serialize(tensors, None).expect("serializes");
        std::fs::write(folder.join(&file), shard).expect("a shard");
        files.push(file);
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).expect("an index");
    std::fs::remove_file(single).expect("removed");
    files
}

/// Returns `rows` sentences of 3 to 9 words with their class (0 bad, 1 good), the same for the same seed. The last
/// word of a sentence determines its class.
pub fn sentences(rows: usize, seed: u64) -> Vec<(String, usize)> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    // Constants of Knuth's MMIX generator; its upper bits are the better ones.
    let mut draw = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let sentence = |row: usize| {
        let label = row % 2;
        let mut words: Vec<&str> = (0..2 + draw(7)).map(|_| BOTH[draw(BOTH.len())]).collect();
        words.push(if label == 1 { GOOD[draw(GOOD.len())] } else { BAD[draw(BAD.len())] });
        (words.join(" "), label)
    };
    (0..rows).map(sentence).collect()
}

/// Writes sentences to a CSV file with the columns `sentence` and `label`.
///
/// # Panics
/// If the file cannot be written.
pub fn csv(path: &Path, rows: usize, seed: u64) {
    let lines: String = sentences(rows, seed).iter().map(|(text, label)| format!("{text},{label}\n")).collect();
    std::fs::write(path, format!("sentence,label\n{lines}")).expect("a CSV file");
}

/// Writes sentences with a tag for each word to a JSON lines file with the columns `tokens` and `ner_tags`: the word that
/// determines the class of a sentence is an entity, `BAD` or `GOOD`.
///
/// # Panics
/// If the file cannot be written.
pub fn entities(path: &Path, rows: usize, seed: u64) {
    let row = |(text, label): (String, usize)| {
        let words: Vec<&str> = text.split(' ').collect();
        let mut tags = vec!["O"; words.len()];
        tags[words.len() - 1] = ["B-BAD", "B-GOOD"][label];
        json!({ "tokens": words, "ner_tags": tags })
    };
    write_lines(path, sentences(rows, seed).into_iter().map(row));
}

/// Writes texts with two endings, of which the good one is right, to a JSON lines file with the columns `startphrase`,
/// `ending0`, `ending1` and `label`.
///
/// # Panics
/// If the file cannot be written.
pub fn choices(path: &Path, rows: usize, seed: u64) {
    let row = |(index, (text, right)): (usize, (String, usize))| {
        let start = text.rsplit_once(' ').map_or("", |(start, _)| start);
        let (good, bad) = (GOOD[index % GOOD.len()], BAD[index * 3 % BAD.len()]);
        let endings = if right == 0 { [good, bad] } else { [bad, good] };
        json!({ "startphrase": start, "ending0": endings[0], "ending1": endings[1], "label": right })
    };
    write_lines(path, sentences(rows, seed).into_iter().enumerate().map(row));
}

/// Writes sentences to a JSON lines file with the columns `question` and `answer`: the answer says `it is bright` of good
/// sentences and `it is dull` of bad ones.
///
/// # Panics
/// If the file cannot be written.
pub fn answers(path: &Path, rows: usize, seed: u64) {
    let row = |(text, label): (String, usize)| {
        let answer = ["it is dull", "it is bright"][label];
        json!({ "question": text, "answer": answer })
    };
    write_lines(path, sentences(rows, seed).into_iter().map(row));
}

fn write_lines(path: &Path, rows: impl Iterator<Item = serde_json::Value>) {
    std::fs::write(path, rows.map(|row| format!("{row}\n")).collect::<String>()).expect("a file of rows");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_are_balanced_and_repeatable() {
        let rows = sentences(20, 3);
        assert_eq!(rows, sentences(20, 3));
        assert_ne!(rows, sentences(20, 4));
        assert_eq!(rows.iter().filter(|(_, label)| *label == 1).count(), 10);
        for (text, label) in &rows {
            let last = text.rsplit(' ').next().expect("a word");
            assert_eq!(GOOD.contains(&last), *label == 1, "{text}");
        }
    }
}
