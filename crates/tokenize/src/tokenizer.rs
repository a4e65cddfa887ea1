use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokenizers::parallelism::MaybeParallelIterator;
use tokenizers::{
    Encoding as Tokens, PostProcessor, PostProcessorWrapper, TruncationDirection, TruncationParams, TruncationStrategy,
    truncate_encodings,
};

use crate::gguf::{GgufVocab, VocabError, definition};

/// The error type of the `tokenizers` crate.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A model's tokenizer: immutable, shared by threads.
#[derive(Debug)]
pub struct Tokenizer {
    /// Everything but the post-processor, which runs after truncation.
    inner: tokenizers::Tokenizer,
    post: Option<PostProcessorWrapper>,
    vocab_size: usize,
    digest: String,
}

/// The token ids of one text, or of one pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The ids, special tokens included.
    pub ids: Vec<u32>,
    /// The bytes of the text, `start..end`, that each id stands for. Tokens that the post-processor
    /// added have `(0, 0)`. The second text of a pair counts from its own start.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// The tokenizer that a `tokenizer.json` defines. Its truncation and padding are not used.
    ///
    /// # Errors
    /// [`LoadError`] if the file cannot be read or is no definition.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Self::from_json(&bytes).map_err(|source| LoadError::File { path: path.to_owned(), source })
    }

    /// The tokenizer that the bytes of a `tokenizer.json` define.
    ///
    /// # Errors
    /// [`LoadError::Definition`] if they are no definition.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LoadError> {
        Self::from_json(bytes).map_err(|source| LoadError::Definition { source })
    }

    /// The tokenizer that the vocabulary in a GGUF file describes.
    ///
    /// # Errors
    /// [`VocabError`] if the model or its pre-tokenizer is not known, or the vocabulary contradicts itself.
    pub fn from_gguf_vocab(vocab: &GgufVocab) -> Result<Self, VocabError> {
        let definition = definition(vocab)?;
        serde_json::from_value(definition)
            .map_err(BoxError::from)
            .and_then(Self::new)
            .map_err(|source| VocabError::Build { source })
    }

    fn from_json(bytes: &[u8]) -> Result<Self, BoxError> {
        Self::new(serde_json::from_slice(bytes)?)
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self, BoxError> {
        inner.with_truncation(None)?;
        inner.with_padding(None);
        // The vocabulary is written by id, merges by rank, added tokens by id: equal tokenizers, equal bytes.
        let digest = hex::encode(Sha256::digest(serde_json::to_vec(&inner)?));
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let post = inner.get_post_processor().cloned();
        inner.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Self { inner, post, vocab_size, digest })
    }

    /// Encodes one text, or a pair, as the model wants it, in at most `max_length` tokens.
    ///
    /// A text that is too long loses its end; of a pair the longer one loses first. Texts such as
    /// `<|im_end|>` become the special tokens that they name.
    ///
    /// # Errors
    /// [`EncodeError`] if a text yields no token or `max_length` leaves none to it.
    pub fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoding, EncodeError> {
        let added = self.post.as_ref().map_or(0, |post| post.added_tokens(pair.is_some()));
        let least = added + 1 + usize::from(pair.is_some());
        if max_length < least {
            return Err(EncodeError::MaxLength { max_length, least });
        }
        let first = self.tokens(text, Which::First)?;
        let second = pair.map(|pair| self.tokens(pair, Which::Second)).transpose()?;
        let whole = self.finish(first, second, max_length - added).map_err(|source| EncodeError::Model { source })?;
        Ok(Encoding { ids: whole.get_ids().to_vec(), offsets: whole.get_offsets().to_vec() })
    }

    /// The ids of a text alone, without special tokens around it and however long it is.
    ///
    /// # Errors
    /// [`EncodeError`] if the text yields no token.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        Ok(self.tokens(text, Which::First)?.get_ids().to_vec())
    }

    /// Encodes rows as [`Tokenizer::encode`] does, in parallel (`TOKENIZERS_PARALLELISM=false` switches that off).
    ///
    /// # Errors
    /// [`BatchError`] for the first row that cannot be encoded.
    pub fn encode_batch(&self, rows: &[(&str, Option<&str>)], max_length: usize) -> Result<Vec<Encoding>, BatchError> {
        let encoded: Vec<Result<Encoding, BatchError>> = (0..rows.len())
            .into_maybe_par_iter()
            .map(|row| {
                let (text, pair) = rows[row];
                self.encode(text, pair, max_length).map_err(|source| BatchError { row, source })
            })
            .collect();
        encoded.into_iter().collect()
    }

    /// The sha256, in hex, of the canonical `tokenizer.json` of this tokenizer.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The text that an id stands for, with the space before it if it has one; `None` if there is no such id, or it is no
    /// text by itself.
    pub fn text_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)?;
        self.inner.decode(&[id], false).ok().filter(|text| !text.is_empty() && !text.contains('\u{fffd}'))
    }

    /// One more than the greatest id; the embedding matrix has at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn tokens(&self, text: &str, which: Which) -> Result<Tokens, EncodeError> {
        let tokens = self.inner.encode(text, false).map_err(|source| EncodeError::Model { source })?;
        if tokens.is_empty() { Err(EncodeError::NoToken { which }) } else { Ok(tokens) }
    }

    /// Truncates both texts to `room` tokens in all, then adds the special tokens.
    fn finish(&self, first: Tokens, second: Option<Tokens>, room: usize) -> Result<Tokens, BoxError> {
        let params = TruncationParams {
            direction: TruncationDirection::Right,
            max_length: room,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        let (first, second) = truncate_encodings(first, second, &params)?;
        match &self.post {
            Some(post) => post.process(first, second, true),
            None => Ok(Tokens::merge([first].into_iter().chain(second), false)),
        }
    }
}

/// One of the two texts of a pair; a single text is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The text.
    First,
    /// The text of the second column.
    Second,
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Which::First => "text",
            Which::Second => "second text",
        })
    }
}

/// Why a `tokenizer.json` was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read the tokenizer {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no tokenizer definition.
    #[error("take {} for a tokenizer definition", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The bytes are no tokenizer definition.
    #[error("take the bytes for a tokenizer definition")]
    Definition {
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// Why a text has no encoding.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// No token of text would be left.
    #[error("encode in max_length {max_length}: the special tokens and one token of each text need {least}")]
    MaxLength {
        /// What was asked for.
        max_length: usize,
        /// The least that works.
        least: usize,
    },
    /// The text is empty, or of characters that the vocabulary does not have.
    #[error("encode the {which}: it yields no token")]
    NoToken {
        /// Which text of a pair.
        which: Which,
    },
    /// The tokenizer failed.
    #[error("encode the text")]
    Model {
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// The row of a batch that has no encoding.
#[derive(Debug, thiserror::Error)]
#[error("encode row {row}")]
pub struct BatchError {
    /// Its index in the batch.
    pub row: usize,
    /// Why.
    #[source]
    pub source: EncodeError,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A word-level tokenizer whose post-processor writes `[CLS] A [SEP] B [SEP]`.
    fn bert_like() -> Tokenizer {
        let definition = json!({
            "version": "1.0",
            "truncation": {"direction": "Left", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
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

    #[test]
    fn special_tokens_survive_truncation() {
        let tokenizer = bert_like();
        assert_eq!(tokenizer.vocab_size(), 7);
        let whole = tokenizer.encode("A b c d", None, 64).expect("encodes");
        assert_eq!(whole.ids, [1, 3, 4, 5, 6, 2]);
        assert_eq!(whole.offsets, [(0, 0), (0, 1), (2, 3), (4, 5), (6, 7), (0, 0)]);
        assert_eq!(tokenizer.encode("a b c d", None, 4).expect("encodes").ids, [1, 3, 4, 2]);
        assert_eq!(tokenizer.encode_plain("A b c d").expect("encodes"), [3, 4, 5, 6]);
        assert!(matches!(tokenizer.encode_plain(" "), Err(EncodeError::NoToken { .. })));
    }

    #[test]
    fn the_longer_text_of_a_pair_is_cut_first() {
        let tokenizer = bert_like();
        let ids = |max_length| tokenizer.encode("a", Some("b c d"), max_length).map(|encoding| encoding.ids);
        assert_eq!(ids(7).expect("encodes"), [1, 3, 2, 4, 5, 6, 2]);
        assert_eq!(ids(6).expect("encodes"), [1, 3, 2, 4, 5, 2]);
        assert_eq!(ids(5).expect("encodes"), [1, 3, 2, 4, 2]);
        assert!(matches!(ids(4), Err(EncodeError::MaxLength { max_length: 4, least: 5 })));
    }

    #[test]
    fn offsets_are_bytes() {
        let encoding = bert_like().encode("é a", Some("ü b"), 64).expect("encodes");
        assert_eq!(encoding.ids, [1, 0, 3, 2, 0, 4, 2]);
        assert_eq!(encoding.offsets, [(0, 0), (0, 2), (3, 4), (0, 0), (0, 2), (3, 4), (0, 0)]);
    }

    #[test]
    fn texts_without_a_token_are_refused() {
        let tokenizer = bert_like();
        assert!(matches!(tokenizer.encode("a", None, 0), Err(EncodeError::MaxLength { least: 3, .. })));
        assert!(matches!(tokenizer.encode(" \n", None, 8), Err(EncodeError::NoToken { which: Which::First })));
        assert!(matches!(tokenizer.encode("a", Some(""), 8), Err(EncodeError::NoToken { which: Which::Second })));
        let error = tokenizer.encode_batch(&[("a", None), ("", None), ("", None)], 8).expect_err("row 1 is empty");
        assert_eq!((error.row, error.to_string()), (1, "encode row 1".to_owned()));
    }

    #[test]
    fn files_name_themselves_when_they_fail() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokenizer.json");
        assert!(matches!(Tokenizer::from_file(&path), Err(LoadError::Read { .. })));
        std::fs::write(&path, "{\"model\": 3}").expect("writes");
        let error = Tokenizer::from_file(&path).expect_err("no definition");
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }

    #[test]
    fn the_digest_is_of_the_definition() {
        let first = bert_like();
        assert_eq!(first.digest(), bert_like().digest());
        assert_eq!(first.digest().len(), 64);
        let other = json!({"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "unk_token": "x", "vocab": {"x": 0}}});
        let other = Tokenizer::from_bytes(other.to_string().as_bytes()).expect("a definition");
        assert_ne!(first.digest(), other.digest());
    }

    proptest! {
        #[test]
        fn a_batch_is_its_rows(
            rows in prop::collection::vec(("[abcd ]{0,12}[abcd]", prop::option::of("[abcd ]{0,12}[abcd]")), 1..20),
            max_length in 5_usize..20,
        ) {
            let tokenizer = bert_like();
            let rows: Vec<(&str, Option<&str>)> = rows.iter().map(|(text, pair)| (text.as_str(), pair.as_deref())).collect();
            let batch = tokenizer.encode_batch(&rows, max_length).expect("encodes");
            for (&(text, pair), encoding) in rows.iter().zip(&batch) {
                prop_assert!(encoding.ids.len() <= max_length);
                prop_assert_eq!(encoding.ids.len(), encoding.offsets.len());
                prop_assert_eq!(encoding.ids.iter().filter(|&&id| id == 2).count(), 1 + usize::from(pair.is_some()));
                prop_assert_eq!(&tokenizer.encode(text, pair, max_length).expect("encodes"), encoding);
            }
        }
    }
}
