//! Comparison with llama.cpp, by the goldens of `goldens/make_tokenizer_goldens.py`.

use std::collections::BTreeMap;

use sepal_tokenize::{GgufVocab, Tokenizer};
use serde_json::Value;

fn golden(text: &str) -> Value {
    serde_json::from_str(text).expect("a golden is JSON")
}

fn pre_tokenizers() -> Value {
    golden(include_str!("goldens/pre_tokenizers.json"))
}

fn list<T>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    let items = value.as_array().expect("an array");
    items.iter().map(|item| convert(item).expect("an entry of the right type")).collect()
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(String::from)
}

fn vocab(model: &str, from: &Value) -> GgufVocab {
    GgufVocab {
        model: model.into(),
        tokens: list(&from["tokens"], text),
        token_types: list(&from["token_types"], number),
        bos_id: number(&from["bos_id"]),
        eos_id: number(&from["eos_id"]),
        ..GgufVocab::default()
    }
}

/// Texts whose ids differ from the golden, with both ids.
fn differences(tokenizer: &Tokenizer, texts: &Value, ids: &Value) -> BTreeMap<String, (Vec<u32>, Vec<u32>)> {
    let texts = list(texts, text);
    let ids = list(ids, |ids| Some(list(ids, number)));
    assert_eq!(texts.len(), ids.len());
    let mut differences = BTreeMap::new();
    for (text, expected) in texts.into_iter().zip(ids) {
        let found = tokenizer.encode(&text, None, 1 << 20).expect("encodes").ids;
        if found != expected {
            differences.insert(text, (found, expected));
        }
    }
    differences
}

#[test]
fn pre_tokenizers_match_llama_cpp() {
    let golden = pre_tokenizers();
    let merges = list(&golden["byte_level"]["merges"], text);
    for case in golden["cases"].as_array().expect("cases") {
        let pre = case["pre"].as_str().expect("a name");
        let vocab = GgufVocab {
            pre: Some(pre.into()),
            merges: merges.clone(),
            add_bos: Some(false),
            ..vocab("gpt2", &golden["byte_level"])
        };
        let tokenizer = Tokenizer::from_gguf_vocab(&vocab).expect("a vocabulary");
        let mut differences = differences(&tokenizer, &golden["texts"], &case["ids"]);
        if pre == "qwen2" {
            // Qwen2 composes characters first (NFC), which llama.cpp does not.
            assert!(differences.remove("e\u{301} \u{301} a\u{300}\u{301}b").is_some());
        }
        assert!(differences.is_empty(), "{pre}: {differences:#?}");
    }
}

#[test]
fn sentencepiece_matches_llama_cpp() {
    let golden = &pre_tokenizers()["sentencepiece"];
    let scores = list(&golden["scores"], |score| score.as_f64().map(|score| score as f32));
    let vocab = GgufVocab { scores, unk_id: number(&golden["unk_id"]), ..vocab("llama", golden) };
    let tokenizer = Tokenizer::from_gguf_vocab(&vocab).expect("a vocabulary");
    let differences = differences(&tokenizer, &golden["texts"], &golden["ids"]);
    assert!(differences.is_empty(), "{differences:#?}");
}
