//! Files beside a `tokenizer.json`, with the semantics of transformers 5.
//!
//! | file | keys that change ids |
//! | --- | --- |
//! | `tokenizer_config.json` | `added_tokens_decoder`; `bos_token`, `eos_token` and other names that end in `_token`; `extra_special_tokens`, formerly `additional_special_tokens`; `split_special_tokens`; `truncation_side`; `add_prefix_space` where `tokenizer_class` is one of GPT-2, GPT-NeoX, Qwen2 or Llama |
//! | `special_tokens_map.json` | the same tokens. It wins over `tokenizer_config.json`, and counts only where that has no `added_tokens_decoder` |
//! | `added_tokens.json` | ids of tokens, which count on the same condition |
//!
//! Other keys, among them `add_bos_token`, `add_eos_token`, `model_max_length` and `padding_side`, do not change ids if there
//! is a `tokenizer.json`: its post-processor adds special tokens.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::error::{BoxError, LoadError};
use crate::truncate::TruncationSide;

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const ADDED_TOKENS: &str = "added_tokens.json";

/// Names of all files that [`Tokenizer::from_file`](crate::Tokenizer::from_file) reads beside `tokenizer.json`.
pub const SIDE_FILES: [&str; 3] = [CONFIG, SPECIAL_TOKENS, ADDED_TOKENS];

/// Names of special tokens, in the order of their ids.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const EXTRA: &str = "extra_special_tokens";
/// Key that marks an object as a token.
const TYPE: &str = "__type";
/// Name of [`EXTRA`] before transformers 5.
const LEGACY_EXTRA: &str = "additional_special_tokens";

/// Settings of a tokenizer outside of its `tokenizer.json`.
#[derive(Debug, Default)]
pub(crate) struct SideFiles {
    /// Tokens by id, from `added_tokens_decoder` or `added_tokens.json`.
    added: BTreeMap<u32, AddedToken>,
    /// True if tokens come from `added_tokens_decoder`.
    has_decoder: bool,
    named: Vec<AddedToken>,
    extra: Vec<AddedToken>,
    splits_special_tokens: bool,
    pub(crate) truncation_side: Option<TruncationSide>,
    prefix_space: Option<PrefixSpace>,
}

/// Prefix of texts, for tokenizer classes that rebuild their pre-tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PrefixSpace {
    /// True if a byte-level pre-tokenizer adds a space.
    ByteLevel(bool),
    /// Scheme of a metaspace: `always`, `first` or `never`.
    Metaspace(&'static str),
}

impl PrefixSpace {
    /// Prefix in `settings`, if their tokenizer class uses it.
    fn from_settings(settings: &Map<String, Value>) -> Option<Self> {
        let is_added = settings.get("add_prefix_space")?.as_bool()?;
        let is_legacy = settings.get("legacy").and_then(Value::as_bool).unwrap_or(false);
        match settings.get("tokenizer_class")?.as_str()?.trim_end_matches("Fast") {
            "GPT2Tokenizer" | "Qwen2Tokenizer" | "GPTNeoXTokenizer" => Some(Self::ByteLevel(is_added)),
            "LlamaTokenizer" => Some(Self::Metaspace(match (is_added, is_legacy) {
                (false, _) => "never",
                (true, false) => "first",
                (true, true) => "always",
            })),
            _ => None,
        }
    }

    fn apply(self, pre_tokenizer: &mut Value) {
        match (self, pre_tokenizer["type"].as_str()) {
            (Self::ByteLevel(is_added), Some("ByteLevel")) => pre_tokenizer["add_prefix_space"] = is_added.into(),
            (Self::Metaspace(scheme), Some("Metaspace")) => pre_tokenizer["prepend_scheme"] = scheme.into(),
            (_, Some("Sequence")) => {
                let parts = pre_tokenizer["pretokenizers"].as_array_mut();
                parts.into_iter().flatten().for_each(|part| self.apply(part));
            }
            _ => {}
        }
    }
}

impl SideFiles {
    /// Reads the existing files in `folder`.
    pub(crate) fn read(folder: &Path) -> Result<Self, LoadError> {
        let invalid = |name: &str, problem: String| LoadError::File { path: folder.join(name), source: problem.into() };
        let mut settings = read_object(folder, CONFIG)?.unwrap_or_default();
        let has_decoder = settings.contains_key("added_tokens_decoder");
        let added = match settings.get("added_tokens_decoder") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(decoder) => parse_decoder(decoder).map_err(|problem| invalid(CONFIG, problem))?,
        };
        let mut files = Self { has_decoder, added, ..Self::default() };
        rename_extra(&mut settings);
        if !files.has_decoder {
            let mut special = read_object(folder, SPECIAL_TOKENS)?.unwrap_or_default();
            rename_extra(&mut special);
            // Objects of this file are tokens without a mark.
            let objects =
                special.iter_mut().filter(|(name, _)| *name != EXTRA).filter_map(|(_, value)| value.as_object_mut());
            objects.for_each(|object| drop(object.insert(TYPE.to_owned(), "AddedToken".into())));
            Self::default().take_special(&special).map_err(|problem| invalid(SPECIAL_TOKENS, problem))?;
            join_extra(&settings, &mut special);
            settings.extend(special);
        }
        files.take_special(&settings).map_err(|problem| invalid(CONFIG, problem))?;
        if !files.has_decoder
            && let Some(ids) = read_object(folder, ADDED_TOKENS)?
        {
            files.added = files.numbered(&ids).map_err(|problem| invalid(ADDED_TOKENS, problem))?;
        }
        files.prefix_space = PrefixSpace::from_settings(&settings);
        files.splits_special_tokens = settings.get("split_special_tokens").and_then(Value::as_bool).unwrap_or(false);
        files.truncation_side = match settings.get("truncation_side").unwrap_or(&Value::Null) {
            Value::Null => None,
            Value::String(side) if side == "left" => Some(TruncationSide::Left),
            Value::String(side) if side == "right" => Some(TruncationSide::Right),
            other => {
                let problem = format!("`truncation_side` is {other}, expected \"left\" or \"right\"");
                return Err(invalid(CONFIG, problem));
            }
        };
        Ok(files)
    }

    pub(crate) fn edit(&self, definition: &mut Value) {
        if let (Some(prefix_space), Some(pre_tokenizer)) = (self.prefix_space, definition.get_mut("pre_tokenizer")) {
            prefix_space.apply(pre_tokenizer);
        }
    }

    /// Adds the tokens to a tokenizer. Tokens of its vocabulary keep their ids, others get the following ids.
    pub(crate) fn apply(self, tokenizer: &mut tokenizers::Tokenizer) -> Result<(), BoxError> {
        let own = tokenizer.get_added_tokens_decoder();
        let mut by_id = self.added;
        if !self.has_decoder {
            by_id.extend(own.iter().map(|(id, token)| (*id, token.clone())));
        }
        // Files may have very many tokens, so they are found by their texts. Of equal ones, that of the least id counts.
        let by_text: HashMap<&str, &AddedToken> =
            by_id.values().rev().map(|token| (token.content.as_str(), token)).collect();
        let find = |token: AddedToken| by_text.get(token.content.as_str()).map_or(token, |found| (*found).clone());
        let named: Vec<AddedToken> = self.named.into_iter().map(find).collect();
        let mut known: HashSet<&str> = texts(own.values().chain(by_id.values()));
        let mut tokens: Vec<AddedToken> = by_id.values().cloned().collect();
        let further = named.iter().chain(&self.extra).filter(|token| known.insert(&token.content));
        tokens.extend(further.cloned());
        let special = texts(&named);
        for token in &mut tokens {
            token.special |= special.contains(token.content.as_str());
        }
        tokenizer.add_tokens(tokens)?;
        tokenizer.set_encode_special_tokens(self.splits_special_tokens);
        Ok(())
    }

    fn take_special(&mut self, settings: &Map<String, Value>) -> Result<(), String> {
        let is_custom_name = |name: &&String| name.ends_with("_token") && !NAMED.contains(&name.as_str());
        let mut named: Vec<(&str, &Value)> =
            NAMED.into_iter().filter_map(|name| settings.get(name).map(|value| (name, value))).collect();
        // Flags such as `add_bos_token` end in `_token`, too.
        let is_token = |value: &Value| value.is_string() || value.get(TYPE).is_some_and(|kind| kind == "AddedToken");
        let custom_names = settings.keys().filter(is_custom_name).map(|name| (name.as_str(), &settings[name]));
        named.extend(custom_names.filter(|(_, value)| is_token(value)));
        match settings.get(EXTRA) {
            None | Some(Value::Null) => {}
            Some(Value::Object(tokens)) => named.extend(tokens.iter().map(|(name, value)| (name.as_str(), value))),
            Some(Value::Array(tokens)) => {
                let read = |value: &Value| parse_token(value, true).map_err(|problem| format!("`{EXTRA}`: {problem}"));
                self.extra = tokens.iter().map(read).collect::<Result<_, _>>()?;
            }
            Some(other) => return Err(format!("`{EXTRA}` is {other}, expected a list of tokens")),
        }
        let read =
            |(name, value): (&str, &Value)| parse_token(value, true).map_err(|problem| format!("`{name}`: {problem}"));
        self.named = named.into_iter().filter(|(_, value)| !value.is_null()).map(read).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn numbered(&self, ids: &Map<String, Value>) -> Result<BTreeMap<u32, AddedToken>, String> {
        let special = texts(self.named.iter().chain(&self.extra));
        let read = |(content, id): (&String, &Value)| {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number = number.ok_or_else(|| format!("`{content}` has the id {id}, expected a whole number"))?;
            Ok((number, AddedToken::from(content.as_str(), special.contains(content.as_str()))))
        };
        ids.iter().map(read).collect()
    }
}

/// Texts of tokens.
fn texts<'a>(tokens: impl IntoIterator<Item = &'a AddedToken>) -> HashSet<&'a str> {
    tokens.into_iter().map(|token| token.content.as_str()).collect()
}

fn read_object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>, LoadError> {
    let path = folder.join(name);
    let bytes = match sepal_machine::regular::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| LoadError::Read { path: path.clone(), source })?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| LoadError::File { path, source: source.into() })
}

fn rename_extra(settings: &mut Map<String, Value>) {
    let is_present = |value: &Value| match value {
        Value::Null => false,
        Value::Array(tokens) => !tokens.is_empty(),
        Value::Object(tokens) => !tokens.is_empty(),
        _ => true,
    };
    if !settings.get(EXTRA).is_some_and(is_present)
        && let Some(tokens) = settings.shift_remove(LEGACY_EXTRA)
    {
        settings.insert(EXTRA.to_owned(), tokens);
    }
}

fn join_extra(settings: &Map<String, Value>, special: &mut Map<String, Value>) {
    if let (Some(Value::Array(before)), Some(Value::Array(tokens))) = (settings.get(EXTRA), special.get_mut(EXTRA)) {
        let known: HashSet<&Value> = before.iter().collect();
        let new: Vec<Value> = tokens.drain(..).filter(|token| !known.contains(token)).collect();
        tokens.extend(before.iter().cloned().chain(new));
    }
}

fn parse_decoder(decoder: &Value) -> Result<BTreeMap<u32, AddedToken>, String> {
    let key = "`added_tokens_decoder`";
    let decoder = decoder.as_object().ok_or_else(|| format!("{key} is no object of ids"))?;
    let read = |(id, value): (&String, &Value)| {
        let number = id.parse::<u32>().map_err(|_| format!("{key} has the id \"{id}\", expected a whole number"))?;
        Ok((number, parse_token(value, false).map_err(|problem| format!("{key}, id {id}: {problem}"))?))
    };
    decoder.iter().map(read).collect()
}

/// Token given by its text, or by an object with matching options. `is_special` is the default of objects.
fn parse_token(value: &Value, is_special: bool) -> Result<AddedToken, String> {
    match value {
        Value::String(content) => Ok(AddedToken::from(content.as_str(), is_special)),
        Value::Object(map) => {
            let content = map.get("content").and_then(Value::as_str).ok_or("it has no `content`")?;
            let flag = |name: &str, default: bool| map.get(name).and_then(Value::as_bool).unwrap_or(default);
            let special = flag("special", is_special);
            let token = AddedToken::from(content, special);
            Ok(AddedToken {
                single_word: flag("single_word", false),
                lstrip: flag("lstrip", false),
                rstrip: flag("rstrip", false),
                normalized: flag("normalized", !special),
                ..token
            })
        }
        other => Err(format!("found {other}, expected a token")),
    }
}
