//! Checks of a definition before the library `tokenizers` gets it. The library trusts its numbers: it allocates by the
//! greatest id, and text may grow without bounds.

use serde_json::{Map, Value};

use crate::charsmap;

/// Greatest id of a token, far above those of any vocabulary. The library walks over all smaller ones.
const MAX_ID: u64 = 1 << 22;
/// Greatest factor by which replacements lengthen a text.
const MAX_GROWTH: u64 = 1 << 16;
/// Most regular expressions with a replacement; each may double a text.
const MAX_REGEX_REPLACEMENTS: usize = 24;
/// Most special tokens and texts in a template.
const MAX_PIECES: usize = 1024;

/// Checks the numbers and sizes of a definition.
///
/// # Errors
/// The problem.
pub(crate) fn check_definition(definition: &Value) -> Result<(), String> {
    let added = definition.get("added_tokens").and_then(Value::as_array);
    if let Some(id) = added.into_iter().flatten().filter_map(|token| token.get("id")).find(|id| is_beyond(id)) {
        return Err(format!("an added token has the id {id}, more than the {MAX_ID} of any vocabulary"));
    }
    if let Some(model) = definition.get("model") {
        check_model(model)?;
    }
    let mut growth = Growth { factor: 1, regexes: 0 };
    for key in ["normalizer", "decoder"] {
        definition.get(key).map_or(Ok(()), |part| growth.add(part))?;
    }
    definition.get("post_processor").map_or(Ok(()), check_post_processor)
}

/// Checks that a post-processor adds only ids of the vocabulary.
///
/// # Errors
/// The problem.
pub(crate) fn check_special_ids(post_processor: &Value, vocab_size: usize) -> Result<(), String> {
    let check = |id: &Value| match id.as_u64() {
        Some(id) if id >= vocab_size as u64 => Err(format!(
            "the post-processor adds the id {id}, but the greatest of the vocabulary is below {vocab_size}"
        )),
        _ => Ok(()),
    };
    for part in parts(post_processor, "processors") {
        for key in ["sep", "cls"] {
            part.get(key).and_then(|token| token.get(1)).map_or(Ok(()), check)?;
        }
        let tokens = part.get("special_tokens").and_then(Value::as_object);
        let ids = tokens.into_iter().flat_map(Map::values).filter_map(|token| token.get("ids")?.as_array());
        ids.flatten().try_for_each(check)?;
    }
    Ok(())
}

fn is_beyond(id: &Value) -> bool {
    id.as_u64().is_some_and(|id| id > MAX_ID)
}

fn check_model(model: &Value) -> Result<(), String> {
    let vocab = model.get("vocab").and_then(Value::as_object);
    if let Some((token, id)) = vocab.into_iter().flatten().find(|(_, id)| is_beyond(id)) {
        return Err(format!("the token `{token}` has the id {id}, more than the {MAX_ID} of any vocabulary"));
    }
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or("");
    // The library cuts the prefix off the right part of each merge without looking.
    let merges = model.get("merges").and_then(Value::as_array).filter(|_| !prefix.is_empty());
    for merge in merges.into_iter().flatten() {
        let right = match merge {
            Value::String(pair) => pair.split(' ').nth(1),
            pair => pair.get(1).and_then(Value::as_str),
        };
        if right.is_some_and(|right| !right.starts_with(prefix)) {
            return Err(format!("the merge {merge} does not continue a word by `{prefix}`"));
        }
    }
    Ok(())
}

/// A part and, if it is a sequence, the parts in it, which `key` lists.
fn parts<'a>(part: &'a Value, key: &str) -> Vec<&'a Value> {
    match part.get(key).and_then(Value::as_array) {
        Some(inner) => inner.iter().flat_map(|part| parts(part, key)).collect(),
        None => vec![part],
    }
}

/// Growth of a text by all steps of a definition.
struct Growth {
    factor: u64,
    regexes: usize,
}

impl Growth {
    fn add(&mut self, part: &Value) -> Result<(), String> {
        for part in parts(part, "normalizers").into_iter().flat_map(|part| parts(part, "decoders")) {
            match part.get("type").and_then(Value::as_str) {
                Some("Replace") => self.add_replacement(part),
                // Each byte becomes a character of at most two.
                Some("ByteLevel") => self.factor = self.factor.saturating_mul(2),
                Some("Precompiled") => {
                    let longest = part.get("precompiled_charsmap").and_then(Value::as_str).map(charsmap::check);
                    self.factor = self.factor.saturating_mul(longest.transpose()?.unwrap_or(1).max(1));
                }
                _ => {}
            }
        }
        match self.factor > MAX_GROWTH || self.regexes > MAX_REGEX_REPLACEMENTS {
            true => Err("its replacements lengthen a text more than those of any tokenizer".to_owned()),
            false => Ok(()),
        }
    }

    fn add_replacement(&mut self, part: &Value) {
        let content = part.get("content").and_then(Value::as_str).map_or(0, str::len) as u64;
        let pattern = part.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
        let factor = match pattern {
            // The empty text is between all characters.
            Some("") => content + 1,
            Some(pattern) => content.div_ceil(pattern.len() as u64),
            None => {
                self.regexes += usize::from(content > 0);
                content
            }
        };
        self.factor = self.factor.saturating_mul(factor.max(1));
    }
}

fn check_post_processor(post_processor: &Value) -> Result<(), String> {
    for part in parts(post_processor, "processors") {
        for (key, most) in [("single", 1), ("pair", 2)] {
            let Some(pieces) = part.get(key).and_then(Value::as_array) else { continue };
            let texts = pieces.iter().filter(|piece| piece.get("Sequence").is_some()).count();
            if texts > most || pieces.len() > MAX_PIECES {
                return Err(format!("its template `{key}` has {} parts and {texts} times a text", pieces.len()));
            }
        }
        let tokens = part.get("special_tokens").and_then(Value::as_object);
        let ids = tokens.into_iter().flat_map(Map::values).filter_map(|token| token.get("ids")?.as_array());
        if let Some(ids) = ids.map(Vec::len).find(|ids| *ids > MAX_PIECES) {
            return Err(format!("a special token of its template has {ids} ids"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Tokenizer;

    fn word_level() -> Value {
        json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model":
            {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1, "b": 2, "[CLS]": 3}}})
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut definition = word_level();
        let (parent, key) = pointer.rsplit_once('/').expect("a path");
        definition.pointer_mut(parent).expect("an object")[key] = value;
        definition
    }

    /// Error and causes of loading a definition.
    fn error(definition: &Value) -> String {
        let error = Tokenizer::from_bytes(definition.to_string().as_bytes()).expect_err("refused");
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {source}")
    }

    fn check(definition: &Value, needle: &str) {
        let error = error(definition);
        assert!(error.contains(needle), "{error}");
    }

    #[test]
    fn ids_beyond_any_vocabulary_are_refused() {
        assert!(check_definition(&word_level()).is_ok());
        check(&with("/model/vocab/a", json!(2_147_483_648_u64)), "the token `a` has the id 2147483648");
        check(
            &with("/added_tokens", json!([{"id": 4_294_967_295_u64, "content": "<x>"}])),
            "an added token has the id",
        );
    }

    #[test]
    fn templates_beyond_the_vocabulary_are_refused() {
        let template = |single: Value, specials: Value| {
            let pair = json!([{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]);
            let post =
                json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials});
            with("/post_processor", post)
        };
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let cls = json!({"SpecialToken": {"id": "[CLS]", "type_id": 0}});
        let special = |id: u64| json!({"[CLS]": {"id": "[CLS]", "ids": [id], "tokens": ["[CLS]"]}});
        let valid = template(json!([cls, text]), special(3));
        let tokenizer = Tokenizer::from_bytes(valid.to_string().as_bytes()).expect("a definition");
        assert_eq!(tokenizer.encode("a", None, 8).expect("encodes").ids, [3, 1]);
        check(&template(json!([cls, text]), special(9)), "adds the id 9");
        check(&template(json!([text, text]), special(3)), "2 times a text");
        check(&template(json!(vec![cls.clone(); MAX_PIECES + 1]), special(3)), "1025 parts");
        // A special token that the template lacks.
        error(&template(json!([cls, text]), json!({})));
        check(
            &with("/post_processor", json!({"type": "BertProcessing", "sep": ["x", 9], "cls": ["y", 0]})),
            "the id 9",
        );
    }

    #[test]
    fn texts_that_grow_without_bounds_are_refused() {
        let replace =
            |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let steps = |step: Value, count| json!({"type": "Sequence", "normalizers": vec![step; count]});
        let needle = "lengthen a text more";
        check(&with("/normalizer", steps(replace(json!({"String": "a"}), "aa"), 17)), needle);
        check(&with("/normalizer", steps(replace(json!({"String": ""}), "a"), 17)), needle);
        check(&with("/normalizer", steps(replace(json!({"Regex": "x?"}), "a"), 25)), needle);
        check(&with("/normalizer", steps(json!({"type": "ByteLevel"}), 17)), needle);
        let nested = steps(steps(replace(json!({"String": "a"}), &"a".repeat(300)), 2), 1);
        check(&with("/normalizer", nested), needle);
        let metaspace = steps(replace(json!({"String": " "}), "\u{2581}"), 1);
        assert!(check_definition(&with("/normalizer", metaspace)).is_ok());
    }

    #[test]
    fn merges_that_do_not_continue_a_word_are_refused() {
        let model = json!({"type": "BPE", "continuing_subword_prefix": "##", "vocab": {"a": 0, "é": 1, "aé": 2},
            "merges": [["a", "é"]]});
        check(&with("/model", model), "does not continue a word");
        let model = json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]});
        error(&with("/model", model));
    }

    #[test]
    fn panics_of_the_library_are_errors() {
        // Chunks of no character panic in the library.
        check(&with("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})), "inconsistent");
        for decoder in [json!({"type": "Strip", "content": " ", "start": 9, "stop": 9}), json!({"type": "CTC"})] {
            if let Ok(tokenizer) = Tokenizer::from_bytes(with("/decoder", decoder).to_string().as_bytes()) {
                let _ = (tokenizer.decode(&[1, 2]), tokenizer.token_text(1));
            }
        }
    }
}
