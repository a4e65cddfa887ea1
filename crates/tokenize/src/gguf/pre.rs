//! Pre-tokenizers of byte-level BPE models, by the names of `tokenizer.ggml.pre`.
//!
//! Patterns come from the `tokenizer.json` of the models; `default` has the meaning of llama.cpp.
//! `tests/goldens.rs` compares each with llama.cpp.

use serde_json::{Value, json};

/// Pattern of GPT-2, which is built into `ByteLevel`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

pub(super) struct Scheme {
    names: &'static [&'static str],
    splits: &'static [Split],
    nfc: bool,
    /// True if a piece that is a token is not merged from characters.
    pub(super) ignore_merges: bool,
    /// True if `bos` is added by default.
    pub(super) add_bos: bool,
}

/// Split into matches and the texts between them.
enum Split {
    Digits,
    Pattern(&'static str),
}

/// Scheme of these splits, with default options.
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

pub(super) fn scheme(name: &str) -> Option<&'static Scheme> {
    SCHEMES.iter().find(|scheme| scheme.names.contains(&name))
}

pub(super) fn names() -> String {
    SCHEMES.iter().flat_map(|scheme| scheme.names).copied().collect::<Vec<_>>().join(", ")
}

impl Scheme {
    pub(super) fn normalizer(&self) -> Value {
        if self.nfc { json!({"type": "NFC"}) } else { Value::Null }
    }

    pub(super) fn pre_tokenizer(&self) -> Value {
        let built_in = matches!(self.splits.last(), Some(Split::Pattern(GPT2)));
        let explicit = if built_in { &self.splits[..self.splits.len() - 1] } else { self.splits };
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": built_in});
        let mut steps: Vec<Value> = explicit.iter().map(Split::definition).collect();
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
    fn scheme_names_are_unique() {
        let names: Vec<&str> = SCHEMES.iter().flat_map(|scheme| scheme.names).copied().collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        for name in ["smollm", "gpt-2", "llama-bpe", "qwen2", "bloom", "default"] {
            assert!(scheme(name).is_some(), "{name}");
        }
        assert!(scheme("tekken").is_none());
    }
}
