//! Checks of a definition before the library `tokenizers` gets it. The library trusts its numbers: it allocates by the
//! greatest id, and text may grow without bounds.

use serde_json::{Map, Value};

use crate::charsmap;

/// Greatest id of a token, far above those of any vocabulary. The library walks over all smaller ones.
const MAX_ID: u64 = 1 << 22;
/// Greatest factor by which the steps lengthen a text. The library keeps 16 bytes beside each byte of it.
const MAX_GROWTH: u64 = 1 << 10;
/// Most bytes of added tokens after the normalizer. The library searches for all of them at once.
const MAX_ADDED_BYTES: u64 = 1 << 24;
/// Greatest factor if each regular expression with a replacement also doubles a text, as one that matches nothing does.
const MAX_REGEX_GROWTH: u64 = 1 << 14;
/// Most special tokens and texts in a template, and most ids of all its special tokens.
const MAX_PIECES: usize = 1024;
/// Most normalizers, pre-tokenizers, decoders and post-processors, each of which walks over every text.
const MAX_STEPS: usize = 256;
/// Most bytes of all regular expressions. The time to compile one grows with the square of its length.
const MAX_REGEX_BYTES: usize = 1 << 15;
/// Most bytes of a token of a Unigram model. The library keeps a tree of them, which is as deep as the longest.
const MAX_PIECE_BYTES: usize = 512;
/// Most bytes of all tokens of a Unigram model. Each has hundreds of bytes in the tree.
const MAX_PIECES_BYTES: usize = 1 << 23;
/// Most bytes of a prefix or suffix of word parts. The library adds it to each part of a word that it looks for.
const MAX_AFFIX_BYTES: usize = 256;
/// Most characters of a word that WordPiece divides, in a time that grows with the cube of them.
const MAX_WORD_CHARS: u64 = 2048;
/// Steps of a definition, each with the key of the list in a sequence of them.
const STEPS: [(&str, &str); 4] = [
    ("normalizer", "normalizers"),
    ("pre_tokenizer", "pretokenizers"),
    ("decoder", "decoders"),
    ("post_processor", "processors"),
];

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
    check_steps(definition)?;
    let mut growth = Growth { factor: 1, regexes: 0 };
    definition.get("normalizer").map_or(Ok(()), |part| growth.add(part))?;
    check_added_bytes(definition, growth.factor)?;
    for key in ["pre_tokenizer", "decoder"] {
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
    check_pieces(model)?;
    let affix = |key: &str| model.get(key).and_then(Value::as_str).unwrap_or("");
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        let length = affix(key).len();
        if length > MAX_AFFIX_BYTES {
            return Err(format!("its `{key}` has {length} bytes, more than the {MAX_AFFIX_BYTES} of any tokenizer"));
        }
    }
    let chars = model.get("max_input_chars_per_word").and_then(Value::as_u64);
    if let Some(chars) = chars.filter(|chars| *chars > MAX_WORD_CHARS) {
        return Err(format!("its `max_input_chars_per_word` is {chars}, expected at most {MAX_WORD_CHARS}"));
    }
    let prefix = affix("continuing_subword_prefix");
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

/// Checks the tokens of a Unigram model, whose vocabulary is a list.
fn check_pieces(model: &Value) -> Result<(), String> {
    let pieces = model.get("vocab").and_then(Value::as_array);
    let mut sum = 0;
    for piece in pieces.into_iter().flatten() {
        let length = piece.get(0).and_then(Value::as_str).map_or(0, str::len);
        sum += length;
        if length > MAX_PIECE_BYTES {
            return Err(format!("a token has {length} bytes, more than the {MAX_PIECE_BYTES} of any vocabulary"));
        }
    }
    match sum > MAX_PIECES_BYTES {
        true => Err(format!("its tokens have {sum} bytes, more than the {MAX_PIECES_BYTES} of any vocabulary")),
        false => Ok(()),
    }
}

/// Checks the number of all steps, and the lengths of their regular expressions.
fn check_steps(definition: &Value) -> Result<(), String> {
    let step = |(key, list): &(&str, &str)| definition.get(*key).map(|part| parts(part, list));
    let steps: Vec<&Value> = STEPS.iter().filter_map(step).flatten().collect();
    if steps.len() > MAX_STEPS {
        return Err(format!("it has {} steps, more than the {MAX_STEPS} of any tokenizer", steps.len()));
    }
    let regexes = steps.iter().filter_map(|step| step.get("pattern")?.get("Regex")?.as_str());
    match regexes.map(str::len).sum::<usize>() {
        bytes if bytes > MAX_REGEX_BYTES => {
            Err(format!("its regular expressions have {bytes} bytes, more than the {MAX_REGEX_BYTES} of any tokenizer"))
        }
        _ => Ok(()),
    }
}

/// Checks the bytes of added tokens, of which those that are normalized become up to `growth` times as long.
fn check_added_bytes(definition: &Value, growth: u64) -> Result<(), String> {
    let added = definition.get("added_tokens").and_then(Value::as_array);
    let length = |token: &Value| {
        let is_normalized = token.get("normalized").and_then(Value::as_bool).unwrap_or(false);
        let bytes = token.get("content").and_then(Value::as_str).map_or(0, str::len) as u64;
        bytes.saturating_mul(if is_normalized { growth } else { 1 })
    };
    match added.into_iter().flatten().map(length).fold(0, u64::saturating_add) {
        bytes if bytes > MAX_ADDED_BYTES => {
            Err(format!("its added tokens have up to {bytes} bytes, more than the {MAX_ADDED_BYTES} of any tokenizer"))
        }
        _ => Ok(()),
    }
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
        let lists = ["normalizers", "pretokenizers", "decoders"];
        let parts =
            lists.iter().fold(vec![part], |found, list| found.into_iter().flat_map(|part| parts(part, list)).collect());
        for part in parts {
            match part.get("type").and_then(Value::as_str) {
                Some("Replace") => self.add_replacement(part),
                // The text may be of one byte.
                Some("Prepend") => {
                    let added = part.get("prepend").and_then(Value::as_str).map_or(0, str::len) as u64;
                    self.factor = self.factor.saturating_mul(added + 1);
                }
                // Each byte becomes a character of at most two.
                Some("ByteLevel") => self.factor = self.factor.saturating_mul(2),
                Some("Precompiled") => {
                    let longest = part.get("precompiled_charsmap").and_then(Value::as_str).map(charsmap::check);
                    self.factor = self.factor.saturating_mul(longest.transpose()?.unwrap_or(1).max(1));
                }
                _ => {}
            }
        }
        let doubled = self.factor.saturating_mul(1 << self.regexes.min(32));
        match self.factor > MAX_GROWTH || doubled > MAX_REGEX_GROWTH {
            true => Err("its steps lengthen a text more than those of any tokenizer".to_owned()),
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
        let most = ids.map(Vec::len).max().unwrap_or(0);
        let pieces = ["single", "pair"].iter().filter_map(|key| Some(part.get(*key)?.as_array()?.len()));
        if most.saturating_mul(pieces.max().unwrap_or(1)) > MAX_PIECES {
            return Err(format!("a special token of its template has {most} ids, and the template may repeat it"));
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
        check(&with("/normalizer", steps(replace(json!({"Regex": "x?"}), "a"), 15)), needle);
        check(&with("/normalizer", steps(json!({"type": "ByteLevel"}), 17)), needle);
        let nested = steps(steps(replace(json!({"String": "a"}), &"a".repeat(300)), 2), 1);
        check(&with("/normalizer", nested), needle);
        let metaspace = steps(replace(json!({"String": " "}), "\u{2581}"), 1);
        assert!(check_definition(&with("/normalizer", metaspace)).is_ok());
    }

    #[test]
    fn steps_beyond_any_tokenizer_are_refused() {
        let sequence = |key: &str, list: &str, step: Value, count: usize| {
            with(key, json!({"type": "Sequence", list: vec![step; count]}))
        };
        let steps = |step: Value, count| sequence("/normalizer", "normalizers", step, count);
        check(&steps(json!({"type": "NFKD"}), MAX_STEPS), "257 steps");
        check(&steps(json!({"type": "Prepend", "prepend": "x".repeat(30)}), 3), "lengthen a text more");
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        check(&sequence("/pre_tokenizer", "pretokenizers", bytes, 34), "lengthen a text more");
        let split = |pattern: &str| {
            let regex = json!({"Regex": pattern});
            with("/pre_tokenizer", json!({"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": false}))
        };
        check(&split(&"(?=a)".repeat(7000)), "35000 bytes");
        assert!(check_definition(&split(r"\p{L}+|\s")).is_ok());
        let tokens = |normalized: bool| {
            let token = json!({"id": 4, "content": "x".repeat(1 << 20), "normalized": normalized});
            let mut definition = steps(json!({"type": "Prepend", "prepend": "x".repeat(30)}), 1);
            definition["added_tokens"] = json!([token]);
            definition
        };
        check(&tokens(true), "added tokens have up to");
        assert!(check_definition(&tokens(false)).is_ok());
    }

    #[test]
    fn models_beyond_any_vocabulary_are_refused() {
        let unigram = |vocab: Value| with("/model", json!({"type": "Unigram", "unk_id": 0, "vocab": vocab}));
        check(&unigram(json!([["a".repeat(100_000), 0.0]])), "a token has 100000 bytes");
        let many = vec![json!(["a".repeat(MAX_PIECE_BYTES), 0.0]); MAX_PIECES_BYTES / MAX_PIECE_BYTES + 1];
        check(&unigram(many.into()), "its tokens have 8389120 bytes");
        let word_piece = |key: &str, value: Value| {
            let mut model = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1, "##b": 2}});
            model[key] = value;
            with("/model", model)
        };
        assert!(check_definition(&word_piece("max_input_chars_per_word", json!(200))).is_ok());
        check(&word_piece("max_input_chars_per_word", json!(1_u64 << 63)), "expected at most 2048");
        check(&word_piece("continuing_subword_prefix", "#".repeat(300).into()), "has 300 bytes");
        let template = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"a": {"id": "a", "ids": vec![1; 600], "tokens": vec!["a"; 600]}}});
        check(&with("/post_processor", template), "600 ids");
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
