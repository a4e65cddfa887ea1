//! How byte-level BPE models split text before BPE, by the names of `tokenizer.ggml.pre`.
//!
//! The patterns are those of the models' own `tokenizer.json`; `default` is what llama.cpp means by
//! that name. `tests/goldens.rs` compares each with llama.cpp.

use serde_json::{Value, json};

/// GPT-2's pattern, which `ByteLevel` has built in.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// One way to split, under the names that files give it.
pub(super) struct Scheme {
    names: &'static [&'static str],
    splits: &'static [Split],
    nfc: bool,
    /// Whether a piece that is a token as it stands is not merged from characters.
    pub(super) ignore_merges: bool,
    /// Whether these models start with `bos` where the file says nothing.
    pub(super) add_bos: bool,
}

/// Matches become pieces, and so does what lies between them.
enum Split {
    /// Each digit.
    Digits,
    /// Each match of the pattern.
    Pattern(&'static str),
}

/// A scheme of these splits, without anything special.
const fn plain(names: &'static [&'static str], splits: &'static [Split]) -> Scheme {
    Scheme { names, splits, nfc: false, ignore_merges: false, add_bos: false }
}

const SCHEMES: &[Scheme] = &[
    plain(&["smollm"], &[Split::Digits, Split::Pattern(GPT2)]),
    plain(&["gpt-2"], &[Split::Pattern(GPT2)]),
    Scheme {
        ignore_merges: true,
        add_bos: true,
        ..plain(&["llama-bpe", "llama3", "llama-v3"], &[Split::Pattern(LLAMA3)])
    },
    Scheme { nfc: true, ..plain(&["qwen2", "deepseek-r1-qwen"], &[Split::Pattern(QWEN2)]) },
    plain(&["bloom"], &[Split::Pattern(BLOOM)]),
    plain(
        &["default"],
        &[
            Split::Pattern(r"[\p{P}\$\+<=>\^~\|]+"),
            Split::Pattern(GPT2),
            Split::Pattern(r"\p{N}+"),
            Split::Pattern("[0-9][0-9][0-9]"),
        ],
    ),
];

/// The scheme of that name.
pub(super) fn scheme(name: &str) -> Option<&'static Scheme> {
    SCHEMES.iter().find(|scheme| scheme.names.contains(&name))
}

/// Every name, for messages.
pub(super) fn names() -> String {
    SCHEMES.iter().flat_map(|scheme| scheme.names).copied().collect::<Vec<_>>().join(", ")
}

impl Scheme {
    pub(super) fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    pub(super) fn pre_tokenizer(&self) -> Value {
        let built_in = matches!(self.splits.last(), Some(Split::Pattern(GPT2)));
        let spelt_out = if built_in { &self.splits[..self.splits.len() - 1] } else { self.splits };
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": built_in});
        let mut steps: Vec<Value> = spelt_out.iter().map(Split::definition).collect();
        if steps.is_empty() {
            return byte_level;
        }
        steps.push(byte_level);
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

impl Split {
    fn definition(&self) -> Value {
        match self {
            Split::Digits => json!({"type": "Digits", "individual_digits": true}),
            Split::Pattern(pattern) => {
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_name_is_there_once() {
        let names: Vec<&str> = SCHEMES.iter().flat_map(|scheme| scheme.names).copied().collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        for name in ["smollm", "gpt-2", "llama-bpe", "qwen2", "bloom", "default"] {
            assert!(scheme(name).is_some(), "{name}");
        }
        assert!(scheme("tekken").is_none());
    }
}
