use std::error::Error;
use std::path::PathBuf;

use sepal_core::{Ragged, RaggedError};
use sepal_tokenize::Tokenizer;

use crate::token_cache::TokenCache;
use crate::{Place, Table, Template};

/// Rows that are encoded at a time.
const CHUNK: usize = 4096;

/// What makes texts token ids.
pub trait Encode {
    /// The ids of each text (or pair), special tokens included, at most `max_length`.
    ///
    /// # Errors
    /// Whatever keeps a text from being encoded.
    fn encode_batch(
        &self,
        texts: &[&str],
        pairs: Option<&[&str]>,
        max_length: usize,
    ) -> Result<Vec<Vec<u32>>, Box<dyn Error + Send + Sync>>;

    /// What tells it apart from every other encoder: a digest of its definition.
    fn digest(&self) -> &str;
}

impl Encode for Tokenizer {
    fn encode_batch(
        &self,
        texts: &[&str],
        pairs: Option<&[&str]>,
        max_length: usize,
    ) -> Result<Vec<Vec<u32>>, Box<dyn Error + Send + Sync>> {
        let rows: Vec<(&str, Option<&str>)> =
            texts.iter().enumerate().map(|(row, text)| (*text, pairs.map(|pairs| pairs[row]))).collect();
        let encodings = Tokenizer::encode_batch(self, &rows, max_length)?;
        Ok(encodings.into_iter().map(|encoding| encoding.ids).collect())
    }

    fn digest(&self) -> &str {
        Tokenizer::digest(self)
    }
}

/// How a table is tokenized.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenSpec {
    /// The most tokens of a row; longer texts are cut.
    pub max_length: usize,
    /// What stands around the texts.
    pub template: Option<Template>,
    /// The folder that keeps token tables; none to tokenize every time.
    pub cache: Option<PathBuf>,
}

impl TokenSpec {
    /// At most `max_length` tokens of the text as it is, not kept.
    pub fn new(max_length: usize) -> Self {
        Self { max_length, template: None, cache: None }
    }

    /// With this text around it.
    #[must_use]
    pub fn with_template(mut self, template: Template) -> Self {
        self.template = Some(template);
        self
    }

    /// Kept in this folder.
    #[must_use]
    pub fn with_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }
}

/// The token ids of a table's rows, end to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTable {
    ids: Vec<u32>,
    rows: Ragged,
    truncated: Vec<bool>,
}

impl TokenTable {
    /// Tokenizes a table, or finds that in the cache. The key is made of the tokenizer's digest, the table's, and the
    /// options, so nothing in the cache is ever out of date. A damaged file there is made again, and a folder that
    /// cannot be written costs time only.
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
            tracing::warn!(folder = %folder.display(), error, "tokens are not kept");
        }
        Ok(tokens)
    }

    pub(crate) fn new(ids: Vec<u32>, rows: Ragged, truncated: Vec<bool>) -> Option<Self> {
        (rows.n_tokens() == ids.len() && rows.len() == truncated.len()).then_some(Self { ids, rows, truncated })
    }

    /// The number of rows.
    #[expect(clippy::len_without_is_empty, reason = "there is always a row")]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The ids of all rows, `[n_tokens]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where each row lies in them.
    pub fn rows(&self) -> &Ragged {
        &self.rows
    }

    /// The ids of one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.ids[self.rows.range(row)]
    }

    /// How many rows lost tokens to `max_length`.
    pub fn truncated(&self) -> usize {
        self.truncated.iter().filter(|cut| **cut).count()
    }

    pub(crate) fn truncations(&self) -> &[bool] {
        &self.truncated
    }

    /// These rows, in this order.
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
        let work = Work { table, encoder, spec };
        let (mut ids, mut lengths, mut truncated) = (Vec::new(), Vec::with_capacity(table.len()), Vec::new());
        let rows: Vec<usize> = (0..table.len()).collect();
        for chunk in rows.chunks(CHUNK) {
            let encoded = work.encode(chunk, spec.max_length)?;
            truncated.extend(work.truncations(chunk, &encoded)?);
            for (row, tokens) in chunk.iter().zip(&encoded) {
                if tokens.is_empty() {
                    return Err(TokenizeError::NoToken { place: table.place(*row) });
                }
                lengths.push(tokens.len());
                ids.extend_from_slice(tokens);
            }
        }
        let rows = Ragged::from_lengths(lengths).map_err(|source| TokenizeError::TooMany { source })?;
        Ok(Self { ids, rows, truncated })
    }
}

/// The ids of each text, or pair, with the template around it: at most `max_length`.
///
/// # Errors
/// Whatever keeps a text from being encoded.
///
/// # Panics
/// If there are fewer pairs than texts.
pub fn encode_texts(
    texts: &[&str],
    pairs: Option<&[&str]>,
    template: Option<&Template>,
    encoder: &dyn Encode,
    max_length: usize,
) -> Result<Vec<Vec<u32>>, Box<dyn Error + Send + Sync>> {
    let Some(template) = template else { return encoder.encode_batch(texts, pairs, max_length) };
    let pair = |row: usize| pairs.map_or("", |pairs| pairs[row]);
    let rendered: Vec<String> = (0..texts.len()).map(|row| template.render(texts[row], pair(row))).collect();
    let rendered: Vec<&str> = rendered.iter().map(String::as_str).collect();
    encoder.encode_batch(&rendered, pairs.filter(|_| !template.takes_pair()), max_length)
}

/// A table on its way to tokens.
struct Work<'a> {
    table: &'a Table,
    encoder: &'a dyn Encode,
    spec: &'a TokenSpec,
}

impl Work<'_> {
    fn encode(&self, rows: &[usize], max_length: usize) -> Result<Vec<Vec<u32>>, TokenizeError> {
        let result = self.encode_rows(rows, max_length);
        result.map_err(|source| self.first_error(rows, max_length).unwrap_or(TokenizeError::Encoder { source }))
    }

    fn encode_rows(&self, rows: &[usize], max_length: usize) -> Result<Vec<Vec<u32>>, Box<dyn Error + Send + Sync>> {
        let texts: Vec<&str> = rows.iter().map(|&row| self.table.texts()[row].as_str()).collect();
        let pairs = self.table.pairs().map(|pairs| rows.iter().map(|&row| pairs[row].as_str()).collect::<Vec<_>>());
        let template = self.spec.template.as_ref();
        let encoded = encode_texts(&texts, pairs.as_deref(), template, self.encoder, max_length)?;
        if encoded.len() == rows.len() && encoded.iter().all(|tokens| tokens.len() <= max_length) {
            Ok(encoded)
        } else {
            Err("the encoder gave other rows than it was asked for, or longer ones".into())
        }
    }

    /// The first row that cannot be encoded, on the way to an error only.
    fn first_error(&self, rows: &[usize], max_length: usize) -> Option<TokenizeError> {
        rows.iter().find_map(|&row| {
            let source = self.encode_rows(&[row], max_length).err()?;
            Some(TokenizeError::Encode { place: self.table.place(row), source })
        })
    }

    /// Which rows lost tokens: those that have more if they may be one longer. Only full rows can have.
    fn truncations(&self, rows: &[usize], encoded: &[Vec<u32>]) -> Result<Vec<bool>, TokenizeError> {
        let max_length = self.spec.max_length;
        let full: Vec<usize> = (0..rows.len()).filter(|&i| encoded[i].len() == max_length).collect();
        let candidates: Vec<usize> = full.iter().map(|&i| rows[i]).collect();
        let mut truncated = vec![false; rows.len()];
        if !candidates.is_empty() {
            for (i, longer) in full.into_iter().zip(self.encode(&candidates, max_length + 1)?) {
                truncated[i] = longer.len() > max_length;
            }
        }
        Ok(truncated)
    }
}

/// A table that gives no tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizeError {
    /// The template asks for a second text.
    #[error("put {{text_pair}} into the template: no column of second texts was named")]
    NoPair,
    /// A text that cannot be encoded.
    #[error("tokenize {place}")]
    Encode {
        /// The file and row.
        place: Place,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A text without a token.
    #[error("tokenize {place}: its text gives no token")]
    NoToken {
        /// The file and row.
        place: Place,
    },
    /// The encoder failed on rows that it takes one by one.
    #[error("tokenize the table")]
    Encoder {
        /// What it said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// More tokens than can be counted.
    #[error("tokenize a table of that size")]
    TooMany {
        /// Where the count ended.
        source: RaggedError,
    },
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
    fn rows_lie_end_to_end() {
        let tokens = build(&texts(&["abc", "de", "fghij"]), &TokenSpec::new(3)).expect("tokens");
        assert_eq!(tokens.rows().offsets(), [0, 3, 5, 8]);
        assert_eq!((letters(&tokens, 0).as_str(), letters(&tokens, 2).as_str()), ("abc", "fgh"));
        assert_eq!(tokens.truncated(), 1, "only the row that lost a token");
        let part = tokens.select(&[2, 0]);
        assert_eq!((part.rows().offsets(), part.truncated()), (&[0, 3, 6][..], 1));
    }

    #[test]
    fn a_template_stands_around() {
        let template: Template = "<{text}>".parse().expect("a template");
        let tokens = build(&texts(&["abc"]), &TokenSpec::new(9).with_template(template)).expect("tokens");
        assert_eq!(letters(&tokens, 0), "<abc>");
        let template: Template = "{text}{text_pair}".parse().expect("a template");
        let error = build(&texts(&["abc"]), &TokenSpec::new(9).with_template(template)).expect_err("no pair");
        assert!(matches!(error, TokenizeError::NoPair));
    }

    #[test]
    fn errors_name_the_row() {
        let table = texts(&["abc", "x!", "d"]);
        let error = build(&table, &TokenSpec::new(9)).expect_err("not encodable");
        assert!(matches!(&error, TokenizeError::Encode { place, .. } if place.row == 2), "{error}");
        let error = build(&texts(&["abc", "?"]), &TokenSpec::new(9)).expect_err("no token");
        assert!(matches!(&error, TokenizeError::NoToken { place } if place.row == 2), "{error}");
    }

    #[test]
    fn tokenized_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = TokenSpec::new(3).with_cache(folder.path().join("tokens"));
        let (table, encoder) = (texts(&["abc", "de", "fghij"]), Letters::default());
        let first = TokenTable::build(&table, &encoder, &spec).expect("tokens");
        let calls = encoder.calls();
        assert_eq!(TokenTable::build(&table, &encoder, &spec).expect("cached"), first);
        assert_eq!(encoder.calls(), calls, "tokenized again");

        // Another length, template, table or tokenizer is another entry.
        let template = |text: &str| spec.clone().with_template(text.parse().expect("a template"));
        let longer = TokenSpec { max_length: 4, ..spec.clone() };
        for (table, encoder, spec) in [
            (&table, Letters::default(), longer),
            (&table, Letters::default(), template("{text}.")),
            (&texts(&["abc", "de", "fghik"]), Letters::default(), spec.clone()),
            (&table, Letters::named("other"), spec.clone()),
        ] {
            TokenTable::build(table, &encoder, &spec).expect("tokens");
            assert!(encoder.calls() > 0, "another entry was taken");
        }
    }

    #[test]
    fn a_damaged_cache_is_made_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = TokenSpec::new(3).with_cache(folder.path());
        let table = texts(&["abc", "de", "fghij"]);
        let first = build(&table, &spec).expect("tokens");
        let file = std::fs::read_dir(folder.path()).expect("a folder").next().expect("a file").expect("a file").path();
        let good = std::fs::read(&file).expect("a file");
        let damaged = (0..good.len()).step_by(7).map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 0x55;
            bytes
        });
        for bytes in damaged.chain([Vec::new(), good[..good.len() / 2].to_vec(), b"nonsense".to_vec()]) {
            std::fs::write(&file, bytes).expect("written");
            assert_eq!(build(&table, &spec).expect("tokens"), first);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "temporary files are left");
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_error() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let spec = TokenSpec::new(3).with_cache(file.path().join("below/a/file"));
        build(&texts(&["abc"]), &spec).expect("tokens");
    }
}
