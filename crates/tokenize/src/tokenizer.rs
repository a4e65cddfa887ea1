use std::path::Path;

use sepal_core::{LibraryPanic, catch_panic};
use sha2::{Digest, Sha256};
use tokenizers::parallelism::MaybeParallelIterator;
use tokenizers::{Encoding as Tokens, ModelWrapper, PostProcessor, PostProcessorWrapper, TruncationDirection};

use crate::check::{check_definition, check_special_ids};
use crate::error::{BatchError, BoxError, EncodeError, LoadError};
use crate::gguf::{GgufVocab, VocabError, definition};
use crate::input::Input;
use crate::side_files::SideFiles;
use crate::truncate::{Truncation, TruncationSide, retained_tokens, text_indices};

/// Immutable tokenizer of a model, which threads can share.
#[derive(Debug)]
pub struct Tokenizer {
    /// Tokenizer without the post-processor, which is applied to both texts of a pair at once.
    inner: tokenizers::Tokenizer,
    post: Option<PostProcessorWrapper>,
    vocab_size: usize,
    digest: String,
    truncation_side: TruncationSide,
}

/// Token ids of one text, or of one pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, including special tokens.
    pub ids: Vec<u32>,
    /// Bytes of the text, `start..end`, of each id; `(0, 0)` for tokens that the post-processor added. Offsets of the second
    /// text of a pair begin at its start.
    pub offsets: Vec<(usize, usize)>,
    /// Number of tokens of text that truncation removed.
    pub n_truncated: usize,
}

impl Encoding {
    /// Retained tokens of an input.
    pub(crate) fn new(tokens: &Tokens, retained: &[bool]) -> Self {
        let (ids, offsets) = (tokens.get_ids(), tokens.get_offsets());
        let is_retained = |token: &usize| retained[*token];
        Self {
            ids: (0..ids.len()).filter(is_retained).map(|token| ids[token]).collect(),
            offsets: (0..ids.len()).filter(is_retained).map(|token| offsets[token]).collect(),
            n_truncated: retained.iter().filter(|is_retained| !**is_retained).count(),
        }
    }
}

impl Tokenizer {
    /// Loads a `tokenizer.json` and the files beside it ([`SIDE_FILES`](crate::SIDE_FILES)). Their padding and greatest
    /// length are not used.
    ///
    /// # Errors
    /// [`LoadError`] if a file cannot be read or is not a definition.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        Self::load(path, SideFiles::read(path.parent().unwrap_or_else(|| Path::new("")))?)
    }

    /// Loads a `tokenizer.json` without the files beside it.
    ///
    /// # Errors
    /// [`LoadError`] if the file cannot be read or is not a definition.
    pub fn from_definition_file(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        Self::load(path.as_ref(), SideFiles::default())
    }

    fn load(path: &Path, side_files: SideFiles) -> Result<Self, LoadError> {
        let bytes =
            sepal_machine::regular::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Self::from_json(&bytes, side_files).map_err(|source| LoadError::File { path: path.to_owned(), source })
    }

    /// Loads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`LoadError::Definition`] if they are not a definition.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LoadError> {
        Self::from_json(bytes, SideFiles::default()).map_err(|source| LoadError::Definition { source })
    }

    /// Builds the tokenizer of a vocabulary in a GGUF file.
    ///
    /// # Errors
    /// [`VocabError`] if the model or its pre-tokenizer is unknown, or the vocabulary is inconsistent.
    pub fn from_gguf_vocab(vocab: &GgufVocab) -> Result<Self, VocabError> {
        Self::build(definition(vocab)?, SideFiles::default()).map_err(|source| VocabError::Build { source })
    }

    fn from_json(bytes: &[u8], side_files: SideFiles) -> Result<Self, BoxError> {
        let mut definition: serde_json::Value = serde_json::from_slice(bytes)?;
        side_files.edit(&mut definition);
        Self::build(definition, side_files)
    }

    /// Builds the tokenizer of a definition. The library panics on inconsistent ones, some of them at the first text.
    fn build(definition: serde_json::Value, side_files: SideFiles) -> Result<Self, BoxError> {
        check_definition(&definition)?;
        let built = catch_panic(|| -> Result<Self, BoxError> {
            let tokenizer = Self::new(serde_json::from_value(definition)?, side_files)?;
            // Not every vocabulary has a token for this text.
            let tokens = tokenizer.inner.encode("a é1", false).unwrap_or_default();
            let _ = tokenizer.post_process(tokens, None);
            Ok(tokenizer)
        });
        built.unwrap_or_else(|panic| Err(inconsistent(&panic)))
    }

    fn new(mut inner: tokenizers::Tokenizer, side_files: SideFiles) -> Result<Self, BoxError> {
        let own_side = inner.get_truncation().map(|truncation| match truncation.direction {
            TruncationDirection::Left => TruncationSide::Left,
            TruncationDirection::Right => TruncationSide::Right,
        });
        let truncation_side = side_files.truncation_side.or(own_side).unwrap_or_default();
        inner.with_truncation(None)?;
        inner.with_padding(None);
        side_files.apply(&mut inner)?;
        // Serialization is canonical: vocabulary and added tokens by id, merges by rank.
        let mut hash = Sha256::new_with_prefix(serde_json::to_vec(&inner)?);
        if inner.get_encode_special_tokens() {
            hash.update("split_special_tokens");
        }
        let digest = hex::encode(hash.finalize());
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let post = inner.get_post_processor().cloned();
        check_special_ids(&serde_json::to_value(&post)?, vocab_size)?;
        inner.with_post_processor(None::<PostProcessorWrapper>);
        disable_sampling(&mut inner);
        Ok(Self { inner, post, vocab_size, digest, truncation_side })
    }

    /// Encodes one text, or a pair, in at most `max_length` tokens. Truncation shortens the longer text of a pair first, on
    /// the [`truncation_side`](Tokenizer::truncation_side). Texts such as `<|im_end|>` become special tokens.
    ///
    /// # Errors
    /// [`EncodeError::MaxLength`] if `max_length` is too small for one token of each text.
    pub fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoding, EncodeError> {
        self.encode_input(&Input::new(text, pair), Truncation { max_length, side: self.truncation_side })
    }

    /// Encodes an input. Truncation removes tokens of its texts, of the longest text first, but no special tokens and fixed
    /// words. A text of blanks or unknown characters may yield no token.
    ///
    /// # Errors
    /// [`EncodeError::MaxLength`] if the limit is too small for one token of each text.
    pub fn encode_input(&self, input: &Input<'_>, truncation: Truncation) -> Result<Encoding, EncodeError> {
        let tokens = self.input_tokens(input)?;
        if tokens.len() <= truncation.max_length {
            return Ok(Encoding::new(&tokens, &vec![true; tokens.len()]));
        }
        Ok(Encoding::new(&tokens, &retained_tokens(&text_indices(input, &tokens), truncation)?))
    }

    /// Token ids of a text without special tokens and truncation.
    ///
    /// # Errors
    /// [`EncodeError`] if the text yields no token.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let tokens = self.tokens(text)?;
        if tokens.is_empty() { Err(EncodeError::NoToken) } else { Ok(tokens.get_ids().to_vec()) }
    }

    /// Encodes rows by [`Tokenizer::encode_input`], in parallel unless `TOKENIZERS_PARALLELISM=false`.
    ///
    /// # Errors
    /// [`BatchError`] for the first row that cannot be encoded.
    pub fn encode_batch(&self, rows: &[Input<'_>], truncation: Truncation) -> Result<Vec<Encoding>, BatchError> {
        let encoded: Vec<Result<Encoding, BatchError>> = (0..rows.len())
            .into_maybe_par_iter()
            .map(|row| self.encode_input(&rows[row], truncation).map_err(|source| BatchError { row, source }))
            .collect();
        encoded.into_iter().collect()
    }

    /// Hexadecimal sha256 of the canonical `tokenizer.json` of this tokenizer.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Text of a token id, including a leading space; `None` for unknown ids and for parts of characters.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)?;
        let text = catch_panic(|| self.inner.decode(&[id], false)).ok()?.ok()?;
        Some(text).filter(|text| !text.is_empty() && !text.contains('\u{fffd}'))
    }

    /// Text of these token ids, without special tokens; `None` if an id is unknown to the decoder.
    pub fn decode(&self, ids: &[u32]) -> Option<String> {
        catch_panic(|| self.inner.decode(ids, true)).ok()?.ok()
    }

    /// Side of long texts that truncation removes, by the tokenizer's files; right by default.
    pub fn truncation_side(&self) -> TruncationSide {
        self.truncation_side
    }

    /// Greatest id plus one; the embedding matrix has at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Token with the greatest id, as written in the vocabulary.
    pub fn last_token(&self) -> Option<String> {
        u32::try_from(self.vocab_size.checked_sub(1)?).ok().and_then(|id| self.inner.id_to_token(id))
    }

    /// Tokens of all texts of an input with the special tokens, without truncation.
    pub(crate) fn input_tokens(&self, input: &Input<'_>) -> Result<Tokens, EncodeError> {
        let first = self.tokens(&input.first())?;
        let second = input.second().map(|text| self.tokens(text)).transpose()?;
        guarded(|| self.post_process(first, second))
    }

    fn tokens(&self, text: &str) -> Result<Tokens, EncodeError> {
        guarded(|| self.inner.encode(text, false))
    }

    /// Joins the sequences and adds the special tokens.
    fn post_process(&self, first: Tokens, second: Option<Tokens>) -> Result<Tokens, BoxError> {
        if let Some(post) = &self.post {
            return post.process(first, second, true);
        }
        let mut sequences: Vec<Tokens> = [first].into_iter().chain(second).collect();
        for (sequence, tokens) in sequences.iter_mut().enumerate() {
            tokens.set_sequence_id(sequence);
        }
        Ok(Tokens::merge(sequences, false))
    }
}

/// Calls the library, which panics if the definition is inconsistent.
fn guarded<T>(call: impl FnOnce() -> Result<T, BoxError>) -> Result<T, EncodeError> {
    let result = catch_panic(call).unwrap_or_else(|panic| Err(inconsistent(&panic)));
    result.map_err(|source| EncodeError::Model { source })
}

fn inconsistent(panic: &LibraryPanic) -> BoxError {
    format!("the definition of the tokenizer is inconsistent: {panic}").into()
}

/// Disables dropout of merges and sampling, which are for training from scratch, so that segmentation is deterministic.
fn disable_sampling(tokenizer: &mut tokenizers::Tokenizer) {
    let model = match tokenizer.get_model() {
        ModelWrapper::BPE(model) if model.dropout.is_some() => {
            let mut model = model.clone();
            model.dropout = None;
            ModelWrapper::BPE(model)
        }
        ModelWrapper::Unigram(model) if model.alpha.is_some() || model.nbest_size.is_some() => {
            let mut model = model.clone();
            (model.alpha, model.nbest_size) = (None, None);
            ModelWrapper::Unigram(model)
        }
        _ => return,
    };
    tokenizer.with_model(model);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::input::Piece;

    /// Word-level tokenizer whose post-processor writes `[CLS] A [SEP] B [SEP]`.
    fn bert_like() -> Tokenizer {
        let definition = json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"},
            "added_tokens": [],
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "decoder": null,
            "model": {"type": "WordLevel", "unk_token": "[UNK]",
                      "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5, "d": 6}},
        });
        Tokenizer::from_bytes(definition.to_string().as_bytes()).expect("a definition")
    }

    fn word_level() -> Tokenizer {
        let definition = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model":
            {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1, "b": 2, "c": 3}}});
        Tokenizer::from_bytes(definition.to_string().as_bytes()).expect("a definition")
    }

    #[test]
    fn special_tokens_survive_truncation() {
        let tokenizer = bert_like();
        assert_eq!(tokenizer.vocab_size(), 7);
        let complete = tokenizer.encode("A b c d", None, 64).expect("encodes");
        assert_eq!(complete.ids, [1, 3, 4, 5, 6, 2]);
        assert_eq!(complete.offsets, [(0, 0), (0, 1), (2, 3), (4, 5), (6, 7), (0, 0)]);
        assert_eq!(tokenizer.encode("a b c d", None, 4).expect("encodes").ids, [1, 3, 4, 2]);
        assert_eq!(tokenizer.encode_plain("A b c d").expect("encodes"), [3, 4, 5, 6]);
        assert!(matches!(tokenizer.encode_plain(" "), Err(EncodeError::NoToken)));
    }

    #[test]
    fn longer_text_of_a_pair_is_truncated_first() {
        let tokenizer = bert_like();
        let ids = |max_length| tokenizer.encode("a", Some("b c d"), max_length).map(|encoding| encoding.ids);
        assert_eq!(ids(7).expect("encodes"), [1, 3, 2, 4, 5, 6, 2]);
        assert_eq!(ids(6).expect("encodes"), [1, 3, 2, 4, 5, 2]);
        assert_eq!(ids(5).expect("encodes"), [1, 3, 2, 4, 2]);
        assert!(matches!(ids(4), Err(EncodeError::MaxLength { max_length: 4, least: 5 })));
    }

    #[test]
    fn offsets_count_bytes() {
        let encoding = bert_like().encode("é a", Some("ü b"), 64).expect("encodes");
        assert_eq!(encoding.ids, [1, 0, 3, 2, 0, 4, 2]);
        assert_eq!(encoding.offsets, [(0, 0), (0, 2), (3, 4), (0, 0), (0, 2), (3, 4), (0, 0)]);
    }

    #[test]
    fn text_without_a_token_leaves_special_tokens() {
        let tokenizer = bert_like();
        let ids = |text, pair| tokenizer.encode(text, pair, 8).map(|encoding| encoding.ids);
        assert_eq!(ids(" \n", None).expect("encodes"), [1, 2]);
        assert_eq!(ids("a", Some("  ")).expect("encodes"), [1, 3, 2, 2]);
        assert!(matches!(tokenizer.encode("a", None, 0), Err(EncodeError::MaxLength { least: 3, .. })));
        assert_eq!(word_level().encode(" \n", None, 8).expect("encodes").ids, [] as [u32; 0]);
    }

    #[test]
    fn batch_error_names_the_row() {
        let tokenizer = bert_like();
        let rows = [("a", None), ("a", Some("b")), ("a", Some("b"))].map(|(text, pair)| Input::new(text, pair));
        let truncation = Truncation { max_length: 4, side: TruncationSide::Right };
        let error = tokenizer.encode_batch(&rows, truncation).expect_err("row 1 is too long");
        assert_eq!((error.row, error.to_string()), (1, "encode row 1".to_owned()));
    }

    #[test]
    fn template_survives_truncation() {
        let tokenizer = bert_like();
        let encode = |text: &str, max_length, side| {
            let pieces = vec![Piece::Fixed("d "), Piece::Text(text), Piece::Fixed(" d")];
            let input = Input::from_pieces(pieces, None);
            let encoding = tokenizer.encode_input(&input, Truncation { max_length, side });
            encoding.map(|encoding| (encoding.ids, encoding.n_truncated))
        };
        let (right, left) = (TruncationSide::Right, TruncationSide::Left);
        assert_eq!(encode("a b c", 7, right).expect("encodes"), (vec![1, 6, 3, 4, 5, 6, 2], 0));
        assert_eq!(encode("a b c", 6, right).expect("encodes"), (vec![1, 6, 3, 4, 6, 2], 1));
        assert_eq!(encode("a b c", 5, left).expect("encodes"), (vec![1, 6, 5, 6, 2], 2));
        assert!(matches!(encode("a b c", 4, right), Err(EncodeError::MaxLength { max_length: 4, least: 5 })));
        assert_eq!(encode(" ", 4, right).expect("encodes"), (vec![1, 6, 6, 2], 0), "a text without a token");
    }

    #[test]
    fn merge_dropout_is_disabled() {
        let model = |dropout: Value| {
            let vocab = json!({"a": 0, "b": 1, "ab": 2, "abab": 3});
            json!({"version": "1.0", "added_tokens": [], "model":
                {"type": "BPE", "dropout": dropout, "vocab": vocab, "merges": [["a", "b"], ["ab", "ab"]]}})
        };
        let tokenizer = Tokenizer::from_bytes(model(json!(0.9)).to_string().as_bytes()).expect("a definition");
        for _ in 0..50 {
            assert_eq!(tokenizer.encode("abab", None, 8).expect("encodes").ids, [3]);
        }
    }

    #[test]
    fn prefix_space_follows_the_tokenizer_class() {
        let ids = |pre_tokenizer: Value, config: Value| {
            let folder = tempfile::tempdir().expect("a folder");
            let vocab = json!({"a": 0, "\u{0120}": 1, "\u{2581}": 2});
            let definition = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer,
                "model": {"type": "BPE", "vocab": vocab, "merges": []}});
            std::fs::write(folder.path().join("tokenizer.json"), definition.to_string()).expect("writes");
            std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("writes");
            let tokenizer = Tokenizer::from_file(folder.path().join("tokenizer.json")).expect("a definition");
            tokenizer.encode("a", None, 8).expect("encodes").ids
        };
        let class = |class: &str, is_added: Value| json!({"tokenizer_class": class, "add_prefix_space": is_added});
        let bytes = json!({"type": "Sequence", "pretokenizers":
            [{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]});
        assert_eq!(ids(bytes.clone(), class("GPT2TokenizerFast", true.into())), [1, 0]);
        assert_eq!(ids(bytes.clone(), class("GPT2Tokenizer", Value::Null)), [0]);
        let unchanged = ids(bytes, class("PreTrainedTokenizerFast", true.into()));
        assert_eq!(unchanged, [0], "this class uses tokenizer.json unchanged");
        let metaspace =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false});
        assert_eq!(ids(metaspace.clone(), class("LlamaTokenizer", false.into())), [0]);
        assert_eq!(ids(metaspace, class("LlamaTokenizerFast", true.into())), [2, 0]);
    }

    #[test]
    fn invalid_side_file_is_reported() {
        let check = |name: &str, content: Value, needle: &str| {
            let folder = tempfile::tempdir().expect("a folder");
            let definition = json!({"version": "1.0", "added_tokens": [], "model":
                {"type": "WordLevel", "unk_token": "x", "vocab": {"x": 0}}});
            std::fs::write(folder.path().join("tokenizer.json"), definition.to_string()).expect("writes");
            std::fs::write(folder.path().join(name), content.to_string()).expect("writes");
            let error = Tokenizer::from_file(folder.path().join("tokenizer.json")).expect_err(needle);
            let source = std::error::Error::source(&error).expect("a cause").to_string();
            assert!(error.to_string().contains(name) && source.contains(needle), "{error}: {source}");
        };
        check("tokenizer_config.json", json!([]), "expected a map");
        check("tokenizer_config.json", json!({"truncation_side": "up"}), "`truncation_side` is \"up\"");
        check("tokenizer_config.json", json!({"added_tokens_decoder": {"x": "<t>"}}), "the id \"x\"");
        check("tokenizer_config.json", json!({"added_tokens_decoder": {"3": {}}}), "id 3: it has no `content`");
        check("tokenizer_config.json", json!({"pad_token": 3}), "`pad_token`: found 3");
        check("tokenizer_config.json", json!({"extra_special_tokens": "a"}), "`extra_special_tokens` is \"a\"");
        check("special_tokens_map.json", json!({"pad_token": 3}), "`pad_token`: found 3");
        check("added_tokens.json", json!({"<t>": -1}), "`<t>` has the id -1");
    }

    #[test]
    fn load_error_names_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokenizer.json");
        assert!(matches!(Tokenizer::from_file(&path), Err(LoadError::Read { .. })));
        std::fs::write(&path, "{\"model\": 3}").expect("writes");
        let error = Tokenizer::from_file(&path).expect_err("no definition");
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }

    #[test]
    fn digest_depends_on_the_definition() {
        let first = bert_like();
        assert_eq!(first.digest(), bert_like().digest());
        assert_eq!(first.digest().len(), 64);
        assert_ne!(first.digest(), word_level().digest());
    }

    proptest! {
        #[test]
        fn batch_encoding_equals_row_encodings(
            rows in prop::collection::vec(("[abcd ]{0,12}[abcd]", prop::option::of("[abcd ]{0,12}[abcd]")), 1..20),
            max_length in 5_usize..20,
        ) {
            let tokenizer = bert_like();
            let rows: Vec<(&str, Option<&str>)> = rows.iter().map(|(text, pair)| (text.as_str(), pair.as_deref())).collect();
            let inputs: Vec<Input<'_>> = rows.iter().map(|&(text, pair)| Input::new(text, pair)).collect();
            let truncation = Truncation { max_length, side: TruncationSide::Right };
            let batch = tokenizer.encode_batch(&inputs, truncation).expect("encodes");
            for (&(text, pair), encoding) in rows.iter().zip(&batch) {
                prop_assert!(encoding.ids.len() <= max_length);
                prop_assert_eq!(encoding.ids.len(), encoding.offsets.len());
                prop_assert_eq!(encoding.ids.iter().filter(|&&id| id == 2).count(), 1 + usize::from(pair.is_some()));
                prop_assert_eq!(&tokenizer.encode(text, pair, max_length).expect("encodes"), encoding);
            }
        }

        #[test]
        fn truncation_removes_only_tokens_of_texts(
            before in "[a-d]{0,2}[: ]{0,2}", text in "[abcd ]{0,30}", after in "[\n ]{0,2}[a-d]{0,3}:?",
            pair in prop::option::of("[abcd ]{0,30}"), is_left in any::<bool>(), max_length in 1_usize..24,
        ) {
            let tokenizer = bert_like();
            let pieces = vec![Piece::Fixed(&before), Piece::Text(&text), Piece::Fixed(&after)];
            let input = Input::from_pieces(pieces, pair.as_deref());
            let side = if is_left { TruncationSide::Left } else { TruncationSide::Right };
            let complete = tokenizer.encode_input(&input, Truncation { max_length: usize::MAX, side }).expect("encodes");
            match tokenizer.encode_input(&input, Truncation { max_length, side }) {
                Err(EncodeError::MaxLength { least, .. }) => prop_assert!(max_length < least && least <= complete.ids.len()),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
                Ok(cut) => {
                    prop_assert_eq!(cut.ids.len(), complete.ids.len().min(max_length));
                    prop_assert_eq!(cut.ids.len() + cut.n_truncated, complete.ids.len());
                    // The words around the text remain, apart from blanks.
                    let bare = Input::from_pieces(vec![Piece::Fixed(&before), Piece::Fixed(" "), Piece::Fixed(&after)], pair.as_deref().map(|_| ""));
                    let bare = tokenizer.encode_input(&bare, Truncation { max_length: usize::MAX, side }).expect("encodes");
                    if before.ends_with(' ') && after.starts_with(['\n', ' ']) {
                        let mut ids = cut.ids.iter();
                        prop_assert!(bare.ids.iter().all(|id| ids.any(|found| found == id)), "{:?} in {:?}", bare.ids, cut.ids);
                    }
                }
            }
        }
    }
}
