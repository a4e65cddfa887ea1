//! SentencePiece BPE with byte fallback (`tokenizer.ggml.model = llama`).
//!
//! SentencePiece joins the neighbours whose union has the best score. The same as a list of merges:
//! every way to cut a token into two others, ordered by the token's score.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::{Value, json};

use super::{BYTE, CONTROL, GgufVocab, UNKNOWN, VocabError, added_tokens, model, post_processor};

pub(super) fn definition(vocab: &GgufVocab) -> Result<Value, VocabError> {
    if vocab.scores.is_empty() {
        return Err(VocabError::Length { key: "scores", expected: vocab.tokens.len(), found: 0 });
    }
    let prefix = vocab.add_space_prefix.unwrap_or(true).then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let options = json!({"unk_token": unknown(vocab), "fuse_unk": true, "byte_fallback": true});
    Ok(json!({
        "version": "1.0",
        "added_tokens": added_tokens(vocab),
        "normalizer": {"type": "Sequence", "normalizers": prefix.into_iter().chain([spaces]).collect::<Vec<_>>()},
        "pre_tokenizer": null,
        "post_processor": post_processor(vocab, true)?,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": model(vocab, merges(vocab), options),
    }))
}

/// What stands for a character that the vocabulary has neither whole nor as bytes.
fn unknown(vocab: &GgufVocab) -> Option<&String> {
    let by_type = || vocab.token_types.iter().position(|&kind| kind == UNKNOWN);
    vocab.tokens.get(vocab.unk_id.map(|id| id as usize).or_else(by_type)?)
}

fn merges(vocab: &GgufVocab) -> Vec<Value> {
    let ids: HashMap<&str, usize> = vocab.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let of_text = |id: usize| !matches!(vocab.token_types.get(id), Some(&(UNKNOWN | CONTROL | BYTE)));
    let mut cuts: Vec<(usize, &str, &str)> = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate().filter(|&(id, _)| of_text(id)) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                cuts.push((id, left, right));
            }
        }
    }
    cuts.sort_by(|&(first, first_left, _), &(second, second_left, _)| {
        let by_score = vocab.scores[second].total_cmp(&vocab.scores[first]);
        by_score.then_with(|| Reverse(first_left.len()).cmp(&Reverse(second_left.len()))).then(first.cmp(&second))
    });
    cuts.into_iter().map(|(_, left, right)| json!([left, right])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;

    fn tiny() -> GgufVocab {
        let tokens = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "c", "ab", "bc", "▁ab", "abc"];
        GgufVocab {
            model: "llama".into(),
            tokens: tokens.map(String::from).to_vec(),
            scores: vec![0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -4.0],
            token_types: vec![2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1],
            bos_id: Some(1),
            eos_id: Some(2),
            ..GgufVocab::default()
        }
    }

    fn ids(vocab: &GgufVocab, text: &str) -> Vec<u32> {
        Tokenizer::from_gguf_vocab(vocab).expect("a vocabulary").encode(text, None, 64).expect("encodes").ids
    }

    #[test]
    fn the_best_score_is_joined_first() {
        // `bc` (-1) goes before `ab` (-2), and then `a bc` makes `abc`.
        assert_eq!(ids(&tiny(), "abc"), [1, 5, 12]);
        assert_eq!(ids(&tiny(), "ab"), [1, 11]);
        assert_eq!(ids(&tiny(), "a b"), [1, 5, 6, 5, 7]);
    }

    #[test]
    fn bytes_stand_in_for_characters_and_unknown_for_bytes() {
        assert_eq!(ids(&tiny(), "aé"), [1, 5, 6, 3, 4]);
        assert_eq!(ids(&tiny(), "a€€"), [1, 5, 6, 0]);
    }

    #[test]
    fn the_space_prefix_can_be_off() {
        let vocab = GgufVocab { add_space_prefix: Some(false), add_bos: Some(false), ..tiny() };
        assert_eq!(ids(&vocab, "ab</s> ab"), [9, 2, 11]);
    }

    #[test]
    fn scores_are_needed() {
        let error = Tokenizer::from_gguf_vocab(&GgufVocab { scores: Vec::new(), ..tiny() }).expect_err("no scores");
        assert!(matches!(error, VocabError::Length { key: "scores", .. }));
    }
}
