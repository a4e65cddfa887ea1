//! SentencePiece BPE with byte fallback (`tokenizer.ggml.model = llama`).
//!
//! SentencePiece joins the neighbours whose union has the best score. The equivalent list of merges has all splits of a
//! token into two others, ordered by the token's score.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::{Value, json};

use super::{BYTE, CONTROL, GgufVocab, UNKNOWN, VocabError, added_tokens, model, post_processor};

/// Longest token of a vocabulary in bytes. All its splits are looked up.
const MAX_TOKEN_BYTES: usize = 512;
/// Most merges, several times those of the largest vocabularies.
const MAX_MERGES: usize = 1 << 21;

pub(super) fn definition(vocab: &GgufVocab) -> Result<Value, VocabError> {
    if vocab.scores.is_empty() {
        return Err(VocabError::Length { key: "scores", expected: vocab.tokens.len(), found: 0 });
    }
    let prefix = vocab.add_space_prefix.unwrap_or(true).then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let options = json!({"unk_token": unknown_token(vocab), "fuse_unk": true, "byte_fallback": true});
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
        "model": model(vocab, merges(vocab, MAX_MERGES)?, options),
    }))
}

/// Token of a character that the vocabulary lacks, including its bytes.
fn unknown_token(vocab: &GgufVocab) -> Option<&String> {
    let by_type = || vocab.token_types.iter().position(|&kind| kind == UNKNOWN);
    vocab.tokens.get(vocab.unk_id.map(|id| id as usize).or_else(by_type)?)
}

fn merges(vocab: &GgufVocab, greatest: usize) -> Result<Vec<Value>, VocabError> {
    let mut lengths = vocab.tokens.iter().map(String::len).enumerate();
    if let Some((id, length)) = lengths.find(|(_, length)| *length > MAX_TOKEN_BYTES) {
        return Err(VocabError::TokenLength { id, length, greatest: MAX_TOKEN_BYTES });
    }
    let ids: HashMap<&str, usize> = vocab.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let is_text = |id: usize| !matches!(vocab.token_types.get(id), Some(&(UNKNOWN | CONTROL | BYTE)));
    let mut splits: Vec<(usize, &str, &str)> = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate().filter(|&(id, _)| is_text(id)) {
        for (offset, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(offset);
            if ids.contains_key(left) && ids.contains_key(right) {
                splits.push((id, left, right));
            }
        }
        if splits.len() > greatest {
            return Err(VocabError::Merges { greatest });
        }
    }
    splits.sort_by(|&(first, first_left, _), &(second, second_left, _)| {
        let by_score = vocab.scores[second].total_cmp(&vocab.scores[first]);
        by_score.then_with(|| Reverse(first_left.len()).cmp(&Reverse(second_left.len()))).then(first.cmp(&second))
    });
    Ok(splits.into_iter().map(|(_, left, right)| json!([left, right])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tokenizer;
    use crate::gguf::tests::ids;

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

    #[test]
    fn best_score_is_joined_first() {
        // `bc` (-1) goes before `ab` (-2), and then `a bc` makes `abc`.
        assert_eq!(ids(&tiny(), "abc"), [1, 5, 12]);
        assert_eq!(ids(&tiny(), "ab"), [1, 11]);
        assert_eq!(ids(&tiny(), "a b"), [1, 5, 6, 5, 7]);
    }

    #[test]
    fn unknown_characters_fall_back_to_bytes() {
        assert_eq!(ids(&tiny(), "aé"), [1, 5, 6, 3, 4]);
        assert_eq!(ids(&tiny(), "a€€"), [1, 5, 6, 0]);
    }

    #[test]
    fn space_prefix_can_be_disabled() {
        let vocab = GgufVocab { add_space_prefix: Some(false), add_bos: Some(false), ..tiny() };
        assert_eq!(ids(&vocab, "ab</s> ab"), [9, 2, 11]);
    }

    #[test]
    fn tokens_beyond_any_vocabulary_are_refused() {
        let mut vocab = tiny();
        vocab.tokens[12] = "a".repeat(MAX_TOKEN_BYTES + 1);
        let error = Tokenizer::from_gguf_vocab(&vocab).expect_err("a long token");
        assert!(matches!(error, VocabError::TokenLength { id: 12, length: 513, .. }), "{error}");
        assert_eq!(merges(&tiny(), 5).expect("merges").len(), 5);
        let error = merges(&tiny(), 4).expect_err("too many merges");
        assert!(matches!(error, VocabError::Merges { greatest: 4 }), "{error}");
    }

    #[test]
    fn missing_scores_are_refused() {
        let error = Tokenizer::from_gguf_vocab(&GgufVocab { scores: Vec::new(), ..tiny() }).expect_err("no scores");
        assert!(matches!(error, VocabError::Length { key: "scores", .. }));
    }
}
