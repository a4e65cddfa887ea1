use std::path::PathBuf;

use sepal_core::{Ragged, RaggedError};
use sepal_tokenize::{Encoding, Input, Tokenizer, Truncation, TruncationSide};

use crate::token_cache::TokenCache;
use crate::{BoxError, RowLocation, Table, Template};

const CHUNK: usize = 4096;

/// Encoder of texts as token ids.
pub trait Encode {
    /// Encodes each input, including special tokens, within the limit. Rows without tokens are allowed.
    ///
    /// # Errors
    /// Error if an input cannot be encoded.
    fn encode_batch(&self, rows: &[Input<'_>], truncation: Truncation) -> Result<Vec<TokenRow>, BoxError>;

    /// Digest of its definition, unique to the encoder.
    fn digest(&self) -> &str;
}

/// Tokens of one row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenRow {
    /// Token ids, including special tokens.
    pub ids: Vec<u32>,
    /// Number of tokens of text that truncation removed.
    pub n_truncated: usize,
}

impl Encode for Tokenizer {
    fn encode_batch(&self, rows: &[Input<'_>], truncation: Truncation) -> Result<Vec<TokenRow>, BoxError> {
        let encodings = Tokenizer::encode_batch(self, rows, truncation)?;
        Ok(encodings.into_iter().map(|Encoding { ids, n_truncated, .. }| TokenRow { ids, n_truncated }).collect())
    }

    fn digest(&self) -> &str {
        Tokenizer::digest(self)
    }
}

/// Options of tokenizing a table.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenSpec {
    /// Limit on the tokens of a row. It shortens texts, but not the template.
    pub truncation: Truncation,
    /// Template around the texts.
    pub template: Option<Template>,
    /// Folder of cached token tables; none to tokenize every time.
    pub cache: Option<PathBuf>,
}

impl TokenSpec {
    /// Spec of at most `max_length` tokens, with truncation on the right, and without template and cache.
    pub fn new(max_length: usize) -> Self {
        let truncation = Truncation { max_length, side: TruncationSide::Right };
        Self { truncation, template: None, cache: None }
    }

    /// Sets the side of long texts that truncation removes.
    #[must_use]
    pub fn with_side(mut self, side: TruncationSide) -> Self {
        self.truncation.side = side;
        self
    }

    /// Sets the template.
    #[must_use]
    pub fn with_template(mut self, template: Template) -> Self {
        self.template = Some(template);
        self
    }

    /// Sets the cache folder.
    #[must_use]
    pub fn with_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }
}

/// Token ids of the rows of a table, concatenated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTable {
    ids: Vec<u32>,
    rows: Ragged,
    truncated: Vec<usize>,
}

impl TokenTable {
    /// Tokenizes a table, or loads it from the cache. The key consists of the digests of tokenizer and table and of the
    /// options, so that cached files are never stale. Damaged files are replaced, and a folder that cannot be written is not
    /// an error.
    ///
    /// # Errors
    /// [`TokenizeError`] with file and row if a text cannot be encoded.
    pub fn build(table: &Table, encoder: &dyn Encode, spec: &TokenSpec) -> Result<Self, TokenizeError> {
        if spec.template.as_ref().is_some_and(Template::takes_pair) && table.pairs().is_none() {
            return Err(TokenizeError::NoPair);
        }
        let Some(folder) = &spec.cache else { return Self::encode(table, encoder, spec) };
        let cache = TokenCache::new(folder, table, encoder, spec);
        if let Some(found) = cache.load().filter(|found| found.len() == table.len()) {
            return Ok(found);
        }
        let tokens = Self::encode(table, encoder, spec)?;
        if let Err(error) = cache.store(&tokens) {
            tracing::warn!(folder = %folder.display(), error, "tokens are not cached");
        }
        Ok(tokens)
    }

    pub(crate) fn new(ids: Vec<u32>, rows: Ragged, truncated: Vec<usize>) -> Option<Self> {
        (rows.n_tokens() == ids.len() && rows.len() == truncated.len()).then_some(Self { ids, rows, truncated })
    }

    /// Number of rows.
    #[expect(clippy::len_without_is_empty, reason = "there is always a row")]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Token ids of all rows, `[n_tokens]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Offsets of the rows in the ids.
    pub fn rows(&self) -> &Ragged {
        &self.rows
    }

    /// Token ids of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.ids[self.rows.range(row)]
    }

    /// Number of tokens that truncation removed from each row, `[rows]`.
    pub fn truncated(&self) -> &[usize] {
        &self.truncated
    }

    /// Table of these rows, in this order.
    ///
    /// # Panics
    /// If a row does not exist or `rows` is empty.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            ids: rows.iter().flat_map(|&row| self.row(row)).copied().collect(),
            rows: self.rows.select(rows),
            truncated: rows.iter().map(|&row| self.truncated[row]).collect(),
        }
    }

    fn encode(table: &Table, encoder: &dyn Encode, spec: &TokenSpec) -> Result<Self, TokenizeError> {
        let table_encoder = TableEncoder { table, encoder, spec };
        let (mut ids, mut lengths, mut truncated) = (Vec::new(), Vec::with_capacity(table.len()), Vec::new());
        let rows: Vec<usize> = (0..table.len()).collect();
        for chunk in rows.chunks(CHUNK) {
            for (row, tokens) in chunk.iter().zip(table_encoder.encode(chunk)?) {
                if tokens.ids.is_empty() {
                    return Err(TokenizeError::NoToken { location: table.location(*row) });
                }
                lengths.push(tokens.ids.len());
                ids.extend(tokens.ids);
                truncated.push(tokens.n_truncated);
            }
        }
        let rows = Ragged::from_lengths(lengths).map_err(|source| TokenizeError::TooMany { source })?;
        Ok(Self { ids, rows, truncated })
    }
}

/// Encodes each text, or pair, with the template around it, within the limit.
///
/// # Errors
/// Error if a text cannot be encoded.
///
/// # Panics
/// If there are fewer pairs than texts.
pub fn encode_texts(
    texts: &[&str],
    pairs: Option<&[&str]>,
    template: Option<&Template>,
    encoder: &dyn Encode,
    truncation: Truncation,
) -> Result<Vec<TokenRow>, BoxError> {
    let input = |(row, &text)| {
        let pair = pairs.map(|pairs| pairs[row]);
        template.map_or_else(|| Input::new(text, pair), |template| template.input(text, pair))
    };
    let inputs: Vec<Input<'_>> = texts.iter().enumerate().map(input).collect();
    encoder.encode_batch(&inputs, truncation)
}

struct TableEncoder<'a> {
    table: &'a Table,
    encoder: &'a dyn Encode,
    spec: &'a TokenSpec,
}

impl TableEncoder<'_> {
    fn encode(&self, rows: &[usize]) -> Result<Vec<TokenRow>, TokenizeError> {
        let result = self.encode_rows(rows);
        result.map_err(|source| self.first_error(rows).unwrap_or(TokenizeError::Encoder { source }))
    }

    fn encode_rows(&self, rows: &[usize]) -> Result<Vec<TokenRow>, BoxError> {
        let texts: Vec<&str> = rows.iter().map(|&row| self.table.texts()[row].as_str()).collect();
        let pairs = self.table.pairs().map(|pairs| rows.iter().map(|&row| pairs[row].as_str()).collect::<Vec<_>>());
        let TokenSpec { truncation, template, .. } = self.spec;
        let encoded = encode_texts(&texts, pairs.as_deref(), template.as_ref(), self.encoder, *truncation)?;
        if encoded.len() == rows.len() && encoded.iter().all(|tokens| tokens.ids.len() <= truncation.max_length) {
            Ok(encoded)
        } else {
            Err("the encoder returned another number of rows, or rows that are too long".into())
        }
    }

    fn first_error(&self, rows: &[usize]) -> Option<TokenizeError> {
        rows.iter().find_map(|&row| {
            let source = self.encode_rows(&[row]).err()?;
            Some(TokenizeError::Encode { location: self.table.location(row), source })
        })
    }
}

/// Error of tokenizing a table.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum TokenizeError {
    /// The template needs a second text.
    #[error("put {{text_pair}} into the template: no column of second texts was named")]
    NoPair,
    /// A text that cannot be encoded.
    #[error("tokenize {location}")]
    Encode { location: RowLocation, source: BoxError },
    /// A text without a token.
    #[error(
        "tokenize {location}: its text yields no token; leave the row out, or put words around texts by a template"
    )]
    NoToken { location: RowLocation },
    /// The encoder failed for a batch of rows, but for none of its rows.
    #[error("tokenize the table")]
    Encoder { source: BoxError },
    /// More tokens than offsets can count.
    #[error("tokenize a table of that size")]
    TooMany { source: RaggedError },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Letters, texts};

    fn build(table: &Table, spec: &TokenSpec) -> Result<TokenTable, TokenizeError> {
        TokenTable::build(table, &Letters::default(), spec)
    }

    fn letters(tokens: &TokenTable, row: usize) -> String {
        tokens.row(row).iter().filter_map(|&id| char::from_u32(id)).collect()
    }

    #[test]
    fn rows_are_concatenated() {
        let tokens = build(&texts(&["abc", "de", "fghij"]), &TokenSpec::new(3)).expect("tokens");
        assert_eq!(tokens.rows().offsets(), [0, 3, 5, 8]);
        assert_eq!((letters(&tokens, 0).as_str(), letters(&tokens, 2).as_str()), ("abc", "fgh"));
        assert_eq!(tokens.truncated(), [0, 0, 2]);
        let part = tokens.select(&[2, 0]);
        assert_eq!((part.rows().offsets(), part.truncated()), (&[0, 3, 6][..], &[2, 0][..]));
    }

    #[test]
    fn template_surrounds_text() {
        let template: Template = "<{text}>".parse().expect("a template");
        let tokens = build(&texts(&["abc"]), &TokenSpec::new(9).with_template(template.clone())).expect("tokens");
        assert_eq!(letters(&tokens, 0), "<abc>");
        let tokens = build(&texts(&["abc"]), &TokenSpec::new(4).with_template(template.clone())).expect("tokens");
        assert_eq!((letters(&tokens, 0).as_str(), tokens.truncated()), ("<ab>", &[1][..]));
        let spec = TokenSpec::new(4).with_template(template.clone()).with_side(TruncationSide::Left);
        assert_eq!(letters(&build(&texts(&["abc"]), &spec).expect("tokens"), 0), "<bc>");
        let error = build(&texts(&["a", "abc"]), &TokenSpec::new(2).with_template(template)).expect_err("no room");
        assert!(matches!(&error, TokenizeError::Encode { location, .. } if location.row == 1), "{error}");
        let template: Template = "{text}{text_pair}".parse().expect("a template");
        let error = build(&texts(&["abc"]), &TokenSpec::new(9).with_template(template)).expect_err("no pair");
        assert!(matches!(error, TokenizeError::NoPair));
    }

    #[test]
    fn errors_name_the_row() {
        let table = texts(&["abc", "x!", "d"]);
        let error = build(&table, &TokenSpec::new(9)).expect_err("not encodable");
        assert!(matches!(&error, TokenizeError::Encode { location, .. } if location.row == 2), "{error}");
        let error = build(&texts(&["abc", "?"]), &TokenSpec::new(9)).expect_err("no token");
        assert!(matches!(&error, TokenizeError::NoToken { location } if location.row == 2), "{error}");
    }

    #[test]
    fn cache_hit_skips_tokenizing() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = TokenSpec::new(3).with_cache(folder.path().join("tokens"));
        let (table, encoder) = (texts(&["abc", "de", "fghij"]), Letters::default());
        let first = TokenTable::build(&table, &encoder, &spec).expect("tokens");
        let calls = encoder.calls();
        assert_eq!(TokenTable::build(&table, &encoder, &spec).expect("cached"), first);
        assert_eq!(encoder.calls(), calls, "tokenized again");

        // Another length, side, template, table or tokenizer is another entry.
        let template = |text: &str| spec.clone().with_template(text.parse().expect("a template"));
        let longer = TokenSpec::new(4).with_cache(folder.path().join("tokens"));
        for (table, encoder, spec) in [
            (&table, Letters::default(), longer),
            (&table, Letters::default(), spec.clone().with_side(TruncationSide::Left)),
            (&table, Letters::default(), template("{text}.")),
            (&texts(&["abc", "de", "fghik"]), Letters::default(), spec.clone()),
            (&table, Letters::named("other"), spec.clone()),
        ] {
            TokenTable::build(table, &encoder, &spec).expect("tokens");
            assert!(encoder.calls() > 0, "the wrong entry was loaded");
        }
    }

    #[test]
    fn damaged_cache_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = TokenSpec::new(3).with_cache(folder.path());
        let table = texts(&["abc", "de", "fghij"]);
        let first = build(&table, &spec).expect("tokens");
        let file = std::fs::read_dir(folder.path()).expect("a folder").next().expect("a file").expect("a file").path();
        let good = std::fs::read(&file).expect("a file");
        let damaged = (0..good.len()).step_by(7).map(|offset| {
            let mut bytes = good.clone();
            bytes[offset] ^= 0x55;
            bytes
        });
        for bytes in damaged.chain([Vec::new(), good[..good.len() / 2].to_vec(), b"nonsense".to_vec()]) {
            std::fs::write(&file, bytes).expect("written");
            assert_eq!(build(&table, &spec).expect("tokens"), first);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "temporary files are left");
    }

    #[test]
    fn unwritable_cache_is_not_an_error() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let spec = TokenSpec::new(3).with_cache(file.path().join("below/a/file"));
        build(&texts(&["abc"]), &spec).expect("tokens");
    }
}
