//! Comparison of truncated rows with transformers, by the golden of
//! `crates/tokenize/tests/goldens/make_templates_golden.py`.

use sepal_data::{Template, encode_texts};
use sepal_tokenize::{Tokenizer, Truncation, TruncationSide};
use serde_json::Value;

#[test]
fn template_truncation_matches_python() {
    let golden = include_str!("../../../tokenize/tests/goldens/templates.json");
    let golden: Value = serde_json::from_str(golden).expect("a golden is JSON");
    let mut n_refused = 0;
    for case in golden["cases"].as_array().expect("cases") {
        let text = |key: &str| case[key].as_str();
        let definition = &golden["tokenizers"][text("tokenizer").expect("a name")];
        let tokenizer = Tokenizer::from_bytes(definition.to_string().as_bytes()).expect("a definition");
        let template: Template = text("template").expect("a template").parse().expect("a template");
        let max_length = case["limit"].as_u64().expect("a number") as usize;
        for side in [TruncationSide::Right, TruncationSide::Left] {
            let pair = text("pair").map(|pair| [pair]);
            let pairs = pair.as_ref().map(|pair| &pair[..]);
            let texts = [text("text").expect("a text")];
            let truncation = Truncation { max_length, side };
            let found = encode_texts(&texts, pairs, Some(&template), &tokenizer, truncation);
            match &case[side.name()] {
                Value::Null => {
                    n_refused += 1;
                    found.expect_err("the template does not fit");
                }
                expected => {
                    let found = found.expect("encodes").remove(0);
                    assert_eq!(&serde_json::json!(found.ids), expected, "{} of {case}", side.name());
                }
            }
        }
    }
    assert!(n_refused > 0, "the golden has templates that do not fit");
}
