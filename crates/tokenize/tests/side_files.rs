//! Comparison with transformers, by the golden of `goldens/make_side_files_golden.py`.

use sepal_tokenize::{EncodeError, Encoding, Tokenizer};
use serde_json::Value;

const PAIR: &str = "b c d a b";

#[test]
fn side_file_ids_match_transformers() {
    let golden: Value = serde_json::from_str(include_str!("goldens/side_files.json")).expect("a golden is JSON");
    let limit = golden["limit"].as_u64().expect("a number") as usize;
    let texts = golden["texts"].as_array().expect("texts");
    for case in golden["cases"].as_array().expect("cases") {
        let name = case["name"].as_str().expect("a name");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, case["definition"].to_string()).expect("writes");
        for (file, content) in case["files"].as_object().expect("files") {
            std::fs::write(folder.path().join(file), content.to_string()).expect("writes");
        }
        let tokenizer = Tokenizer::from_file(&path).expect(name);
        for (index, text) in texts.iter().enumerate() {
            let text = text.as_str().expect("a text");
            let check = |found: Result<Encoding, EncodeError>, key: &str| {
                let ids = found.expect(name).ids;
                assert_eq!(serde_json::json!(ids), case[key][index], "{name}, {key} of {text:?}");
            };
            check(tokenizer.encode(text, None, usize::MAX), "ids");
            check(tokenizer.encode(text, None, limit), "cut");
            check(tokenizer.encode(text, Some(PAIR), limit + 2), "pairs");
        }
    }
}
