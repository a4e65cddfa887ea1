mod pre;
mod sentencepiece;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// Vocabulary of a GGUF file: the values of its `tokenizer.ggml.*` keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE with byte fallback).
    pub model: String,
    /// `pre`: name of the pre-tokenizer of a `gpt2` model.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `scores`, by id; required for `llama` models.
    pub scores: Vec<f32>,
    /// `merges`, best first, each of two tokens separated by a space.
    pub merges: Vec<String>,
    /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; empty if all are normal.
    pub token_types: Vec<u32>,
    /// `add_bos_token`; the default of the model if absent.
    pub add_bos: Option<bool>,
    /// `add_eos_token`; false if absent.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`; true if absent. `gpt2` models do not use it.
    pub add_space_prefix: Option<bool>,
    /// `bos_token_id`.
    pub bos_id: Option<u32>,
    /// `eos_token_id`.
    pub eos_id: Option<u32>,
    /// `unknown_token_id`.
    pub unk_id: Option<u32>,
}

const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const BYTE: u32 = 6;

/// `tokenizer.json` of the vocabulary.
pub(crate) fn definition(vocab: &GgufVocab) -> Result<Value, VocabError> {
    check(vocab)?;
    match vocab.model.as_str() {
        "gpt2" => byte_level(vocab),
        "llama" => sentencepiece::definition(vocab),
        model => Err(VocabError::Model { model: model.to_owned() }),
    }
}

fn byte_level(vocab: &GgufVocab) -> Result<Value, VocabError> {
    let name = vocab.pre.as_deref().ok_or(VocabError::NoPre)?;
    let scheme = pre::scheme(name).ok_or_else(|| VocabError::Pre { pre: name.to_owned() })?;
    let merges =
        vocab.merges.iter().enumerate().map(|(rank, text)| merge(rank, text)).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": added_tokens(vocab),
        "normalizer": scheme.normalizer(),
        "pre_tokenizer": scheme.pre_tokenizer(),
        "post_processor": post_processor(vocab, scheme.add_bos)?,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        // There is no unknown token: a byte that the vocabulary lacks yields nothing.
        "model": model(vocab, merges, json!({"ignore_merges": scheme.ignore_merges})),
    }))
}

/// BPE model with these options, and the defaults of `tokenizers` for others.
fn model(vocab: &GgufVocab, merges: Vec<Value>, options: Value) -> Value {
    let ids: Map<String, Value> =
        vocab.tokens.iter().enumerate().map(|(id, token)| (token.clone(), Value::from(id))).collect();
    let mut model = json!({"type": "BPE", "vocab": ids, "merges": merges});
    if let (Value::Object(model), Value::Object(options)) = (&mut model, options) {
        model.extend(options);
    }
    model
}

fn merge(rank: usize, text: &str) -> Result<Value, VocabError> {
    match text.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok(json!([left, right]))
        }
        _ => Err(VocabError::Merge { rank, text: text.to_owned() }),
    }
}

/// Tokens that are split off first: control tokens (special) and user-defined ones.
fn added_tokens(vocab: &GgufVocab) -> Vec<Value> {
    let added = |(id, &kind): (usize, &u32)| {
        let special = match kind {
            CONTROL | UNKNOWN => true,
            USER_DEFINED => false,
            _ => return None,
        };
        Some(json!({
            "id": id, "content": vocab.tokens[id], "special": special,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        }))
    };
    vocab.token_types.iter().enumerate().filter_map(added).collect()
}

/// `bos A eos bos B eos`, without the tokens that are not to be added.
fn post_processor(vocab: &GgufVocab, add_bos: bool) -> Result<Value, VocabError> {
    let special = |is_added: bool, id: Option<u32>, key| {
        if !is_added {
            return Ok(None);
        }
        let id = id.ok_or(VocabError::NoId { key })?;
        let token = vocab.tokens.get(id as usize).ok_or(VocabError::Id { key, id, tokens: vocab.tokens.len() })?;
        Ok(Some((id, token)))
    };
    let bos = special(vocab.add_bos.unwrap_or(add_bos), vocab.bos_id, "bos_token_id")?;
    let eos = special(vocab.add_eos.unwrap_or(false), vocab.eos_id, "eos_token_id")?;
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let sequence = |letter: &str, type_id: u32| {
        let token = |(_, token)| json!({"SpecialToken": {"id": token, "type_id": type_id}});
        let text = json!({"Sequence": {"id": letter, "type_id": type_id}});
        [bos.map(token), Some(text), eos.map(token)].into_iter().flatten().collect::<Vec<_>>()
    };
    let pair = [sequence("A", 0), sequence("B", 1)].concat();
    let specials: Map<String, Value> = bos
        .iter()
        .chain(&eos)
        .map(|&(id, token)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": pair,
        "special_tokens": specials,
    }))
}

fn check(vocab: &GgufVocab) -> Result<(), VocabError> {
    if vocab.tokens.is_empty() {
        return Err(VocabError::Length { key: "tokens", expected: 1, found: 0 });
    }
    for (key, found) in [("token_type", vocab.token_types.len()), ("scores", vocab.scores.len())] {
        if found != 0 && found != vocab.tokens.len() {
            return Err(VocabError::Length { key, expected: vocab.tokens.len(), found });
        }
    }
    let mut ids = HashMap::with_capacity(vocab.tokens.len());
    for (id, token) in vocab.tokens.iter().enumerate() {
        if let Some(first) = ids.insert(token.as_str(), id) {
            return Err(VocabError::Duplicate { token: token.clone(), first, second: id });
        }
    }
    Ok(())
}

/// Error of building a tokenizer of a GGUF vocabulary.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum VocabError {
    /// Unknown kind of tokenizer.
    #[error(
        "use the vocabulary: tokenizer.ggml.model is `{model}`, supported are gpt2 and llama; put a tokenizer.json beside the model"
    )]
    Model {
        /// `tokenizer.ggml.model`.
        model: String,
    },
    /// Unknown pre-tokenizer.
    #[error(
        "use the vocabulary: tokenizer.ggml.pre is `{pre}`, supported are {}; put a tokenizer.json beside the model",
        pre::names()
    )]
    Pre {
        /// `tokenizer.ggml.pre`.
        pre: String,
    },
    /// No pre-tokenizer is named, as in files of old converters. A guess could silently yield wrong ids.
    #[error(
        "use the vocabulary: the file has no tokenizer.ggml.pre; convert the model anew or put a tokenizer.json beside it"
    )]
    NoPre,
    /// An array without one entry for each token.
    #[error("use the vocabulary: tokenizer.ggml.{key} has {found} entries, expected {expected}")]
    Length {
        /// The key without `tokenizer.ggml.`.
        key: &'static str,
        expected: usize,
        found: usize,
    },
    /// Two ids of one text.
    #[error("use the vocabulary: token `{token}` has the ids {first} and {second}")]
    Duplicate { token: String, first: usize, second: usize },
    /// A merge that is not two tokens separated by a space.
    #[error("use the vocabulary: merge {rank} is `{text}`, expected two tokens with a space between")]
    Merge {
        /// Its index in `tokenizer.ggml.merges`.
        rank: usize,
        text: String,
    },
    /// A token to add that the file does not name.
    #[error("use the vocabulary: it wants a special token added but has no tokenizer.ggml.{key}")]
    NoId {
        /// The key without `tokenizer.ggml.`.
        key: &'static str,
    },
    /// A token to add that the vocabulary lacks.
    #[error("use the vocabulary: tokenizer.ggml.{key} is {id}, but there are {tokens} tokens")]
    Id {
        /// The key without `tokenizer.ggml.`.
        key: &'static str,
        id: u32,
        tokens: usize,
    },
    /// A token that is longer than those of any vocabulary.
    #[error("use the vocabulary: token {id} has {length} bytes, expected at most {greatest}")]
    TokenLength { id: usize, length: usize, greatest: usize },
    /// More merges than those of any vocabulary.
    #[error("use the vocabulary: its tokens consist of others in more than {greatest} ways, which no model needs")]
    Merges { greatest: usize },
    /// The parts are inconsistent, for example a merge of unknown tokens.
    #[error("build a tokenizer of the vocabulary")]
    Build { source: Box<dyn std::error::Error + Send + Sync> },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    /// Vocabulary of three special tokens, bytes `a` to `d` and space, and a few merges.
    fn tiny() -> GgufVocab {
        let tokens = ["<s>", "</s>", "<tool>", "a", "b", "c", "d", "Ġ", "1", "ab", "cd", "Ġab", "abcd", "11"];
        GgufVocab {
            model: "gpt2".into(),
            pre: Some("smollm".into()),
            tokens: tokens.map(String::from).to_vec(),
            merges: ["a b", "c d", "Ġ ab", "ab cd", "1 1"].map(String::from).to_vec(),
            token_types: vec![3, 3, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
            bos_id: Some(0),
            eos_id: Some(1),
            ..GgufVocab::default()
        }
    }

    pub(super) fn ids(vocab: &GgufVocab, text: &str) -> Vec<u32> {
        Tokenizer::from_gguf_vocab(vocab).expect("a vocabulary").encode(text, None, 64).expect("encodes").ids
    }

    #[test]
    fn gguf_vocabulary_equals_its_tokenizer_json() {
        let json = r#"{"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [
              {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
              {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
              {"id": 2, "content": "<tool>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}],
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
              {"type": "Digits", "individual_digits": true},
              {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
              "vocab": {"<s>": 0, "</s>": 1, "<tool>": 2, "a": 3, "b": 4, "c": 5, "d": 6, "Ġ": 7, "1": 8,
                        "ab": 9, "cd": 10, "Ġab": 11, "abcd": 12, "11": 13},
              "merges": ["a b", "c d", "Ġ ab", "ab cd", "1 1"]}}"#;
        let from_json = Tokenizer::from_bytes(json.as_bytes()).expect("a definition");
        let from_gguf = Tokenizer::from_gguf_vocab(&tiny()).expect("a vocabulary");
        assert_eq!(from_gguf.digest(), from_json.digest());
        for text in ["abcd ab", "<s>ab<tool>11 1</s>", "a<s", "  ab  ", "ab\u{4}ab"] {
            let (gguf, json) = (from_gguf.encode(text, None, 64), from_json.encode(text, None, 64));
            assert_eq!(gguf.expect("encodes"), json.expect("encodes"), "{text}");
        }
    }

    #[test]
    fn control_and_user_defined_tokens_are_split_off() {
        assert_eq!(ids(&tiny(), "ab<s>abcd<tool> ab"), [9, 0, 12, 2, 11]);
        assert_eq!(ids(&tiny(), "11"), [8, 8], "digits are separate");
        assert_eq!(ids(&GgufVocab { pre: Some("gpt-2".into()), ..tiny() }, "11"), [13]);
    }

    #[test]
    fn bos_and_eos_follow_the_file() {
        let vocab = GgufVocab { add_bos: Some(true), add_eos: Some(true), ..tiny() };
        let tokenizer = Tokenizer::from_gguf_vocab(&vocab).expect("a vocabulary");
        assert_eq!(tokenizer.encode("ab cd", None, 3).expect("encodes").ids, [0, 9, 1]);
        assert_eq!(tokenizer.encode("ab", Some("cd"), 64).expect("encodes").ids, [0, 9, 1, 0, 10, 1]);
        assert_eq!(ids(&GgufVocab { pre: Some("llama-bpe".into()), ..tiny() }, "ab"), [0, 9], "its default");
    }

    #[test]
    fn invalid_vocabulary_is_refused() {
        let error = |vocab: GgufVocab| Tokenizer::from_gguf_vocab(&vocab).expect_err("nonsense");
        assert!(matches!(error(GgufVocab { model: "rwkv".into(), ..tiny() }), VocabError::Model { .. }));
        assert!(matches!(error(GgufVocab { pre: None, ..tiny() }), VocabError::NoPre));
        let unknown = error(GgufVocab { pre: Some("tekken".into()), ..tiny() }).to_string();
        assert!(unknown.contains("`tekken`") && unknown.contains("smollm"), "{unknown}");
        assert!(matches!(error(GgufVocab { token_types: vec![1], ..tiny() }), VocabError::Length { found: 1, .. }));
        assert!(matches!(error(GgufVocab { tokens: Vec::new(), ..tiny() }), VocabError::Length { .. }));
        let merge = error(GgufVocab { merges: vec!["ab".into()], ..tiny() });
        assert!(matches!(merge, VocabError::Merge { rank: 0, .. }));
        let unknown_merge = error(GgufVocab { merges: vec!["a d".into()], ..tiny() });
        assert!(matches!(unknown_merge, VocabError::Build { .. }));
        let mut twice = tiny();
        twice.tokens[4] = "a".into();
        assert!(matches!(error(twice), VocabError::Duplicate { first: 3, second: 4, .. }));
        let bos = GgufVocab { add_bos: Some(true), bos_id: None, ..tiny() };
        assert!(matches!(error(bos), VocabError::NoId { key: "bos_token_id" }));
        let bos = GgufVocab { add_bos: Some(true), bos_id: Some(99), ..tiny() };
        assert!(matches!(error(bos), VocabError::Id { id: 99, .. }));
    }
}
