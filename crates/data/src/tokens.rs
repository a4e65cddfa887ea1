use std::ops::Range;
use std::path::PathBuf;

use sepal_core::{Ragged, RaggedError, RowForm, TokenBatch, TokenText};
use sepal_tokenize::{Truncation, TruncationSide, Windows};

use crate::encode::{Encode, EncodedRow, RowEncoder, RowError, RowTexts};
use crate::token_cache::TokenCache;
use crate::{BoxError, RawLabel, RowLocation, Table, Template};

const CHUNK: usize = 4096;

/// Options of tokenizing a table.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TokenSpec {
    /// Limit on the tokens of a row. It shortens texts, but not the template.
    pub truncation: Truncation,
    /// Division of long texts into windows; none to truncate them. Only for [`RowForm::Text`].
    pub windows: Option<Windows>,
    /// Template around the texts.
    pub template: Option<Template>,
    /// Form in which rows become sequences.
    pub form: RowForm,
    /// Folder of cached token tables; none to tokenize every time.
    pub cache: Option<PathBuf>,
}

impl TokenSpec {
    /// Spec of at most `max_length` tokens, with truncation on the right, and without template and cache.
    pub fn new(max_length: usize) -> Self {
        let truncation = Truncation { max_length, side: TruncationSide::Right };
        Self { truncation, windows: None, template: None, form: RowForm::Text, cache: None }
    }

    /// Sets the form in which rows become sequences.
    #[must_use]
    pub fn with_form(mut self, form: RowForm) -> Self {
        self.form = form;
        self
    }

    /// Sets the side of long texts that truncation removes.
    #[must_use]
    pub fn with_side(mut self, side: TruncationSide) -> Self {
        self.truncation.side = side;
        self
    }

    /// Divides long texts into windows.
    #[must_use]
    pub fn with_windows(mut self, windows: Option<Windows>) -> Self {
        self.windows = windows;
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
///
/// A row is one sequence of tokens, or one for each of its options or of the windows of its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenTable {
    ids: Vec<u32>,
    sequences: Ragged,
    truncated: Vec<usize>,
    groups: Option<Ragged>,
    texts: Option<Vec<TokenText>>,
    answers: Option<Vec<Range<usize>>>,
}

impl TokenTable {
    /// Tokenizes a table, or loads it from the cache. The key consists of the digests of tokenizer and table and of the
    /// options, so that cached files are never stale. Damaged files are replaced, and a folder that cannot be written is not
    /// an error. Rows of words and of answers, and windows, are not cached.
    ///
    /// # Errors
    /// [`TokenizeError`] with file and row if a text cannot be encoded.
    pub fn build(table: &Table, encoder: &dyn Encode, spec: &TokenSpec) -> Result<Self, TokenizeError> {
        let takes_pair = spec.template.as_ref().is_some_and(Template::takes_pair);
        if takes_pair && spec.form != RowForm::Options && table.pairs().is_none() {
            return Err(TokenizeError::NoPair);
        }
        let groups = match (spec.form, table.options()) {
            (RowForm::Options, None) => return Err(TokenizeError::NoOptions),
            (RowForm::Options, Some(options)) => Some(Self::ragged(options.iter().map(Vec::len))?),
            _ => None,
        };
        let is_cached = matches!(spec.form, RowForm::Text | RowForm::Options) && spec.windows.is_none();
        let Some(folder) = spec.cache.as_ref().filter(|_| is_cached) else {
            return Self::encode(table, encoder, spec, groups);
        };
        let n_sequences = groups.as_ref().map_or(table.len(), Ragged::n_tokens);
        let cache = TokenCache::new(folder, table, encoder, spec);
        if let Some(found) = cache.load().filter(|found| found.sequences.len() == n_sequences) {
            return Ok(Self { groups, ..found });
        }
        let tokens = Self::encode(table, encoder, spec, groups)?;
        if let Err(error) = cache.store(&tokens) {
            tracing::warn!(folder = %folder.display(), error, "tokens are not cached");
        }
        Ok(tokens)
    }

    pub(crate) fn new(ids: Vec<u32>, sequences: Ragged, truncated: Vec<usize>) -> Option<Self> {
        let fits = sequences.n_tokens() == ids.len() && sequences.len() == truncated.len();
        fits.then_some(Self { ids, sequences, truncated, groups: None, texts: None, answers: None })
    }

    /// Number of rows.
    #[expect(clippy::len_without_is_empty, reason = "there is always a row")]
    pub fn len(&self) -> usize {
        self.groups.as_ref().unwrap_or(&self.sequences).len()
    }

    /// Token ids of all sequences, `[n_tokens]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Offsets of the sequences in the ids.
    pub fn sequences(&self) -> &Ragged {
        &self.sequences
    }

    /// Token ids of one sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn sequence(&self, sequence: usize) -> &[u32] {
        &self.ids[self.sequences.range(sequence)]
    }

    /// Number of tokens that truncation removed from each sequence, `[sequences]`.
    pub fn truncated(&self) -> &[usize] {
        &self.truncated
    }

    /// Number of rows that are more than one sequence.
    pub fn n_divided(&self) -> usize {
        self.groups.as_ref().map_or(0, |groups| groups.lengths().filter(|&sequences| sequences > 1).count())
    }

    /// Batch of these rows, in this order.
    ///
    /// # Panics
    /// If a row does not exist or `rows` is empty.
    pub fn batch(&self, rows: &[usize]) -> TokenBatch {
        let sequences: Vec<usize> = match &self.groups {
            Some(groups) => rows.iter().flat_map(|&row| groups.range(row)).collect(),
            None => rows.to_vec(),
        };
        TokenBatch {
            ids: sequences.iter().flat_map(|&sequence| self.sequence(sequence)).map(|&id| i64::from(id)).collect(),
            sequences: self.sequences.select(&sequences),
            groups: self.groups.as_ref().map(|groups| groups.select(rows)),
            texts: picked(self.texts.as_deref(), &sequences),
            answers: picked(self.answers.as_deref(), &sequences),
        }
    }

    fn encode(
        table: &Table,
        encoder: &dyn Encode,
        spec: &TokenSpec,
        groups: Option<Ragged>,
    ) -> Result<Self, TokenizeError> {
        let table_encoder = TableEncoder { table, encoder, spec };
        let (mut ids, mut lengths, mut truncated) = (Vec::new(), Vec::with_capacity(table.len()), Vec::new());
        let (mut texts, mut answers, mut n_windows) = (Vec::new(), Vec::new(), Vec::new());
        let rows: Vec<usize> = (0..table.len()).collect();
        for chunk in rows.chunks(CHUNK) {
            for (row, encoded) in chunk.iter().zip(table_encoder.encode(chunk)?) {
                if !encoded.has_tokens() {
                    return Err(TokenizeError::NoToken { location: table.location(*row) });
                }
                n_windows.push(encoded.sequences.len());
                for tokens in encoded.sequences {
                    lengths.push(tokens.ids.len());
                    ids.extend(tokens.ids);
                    truncated.push(tokens.n_truncated);
                }
                texts.extend(encoded.text);
                answers.extend(encoded.answer);
            }
        }
        let sequences = Self::ragged(lengths)?;
        let groups = match spec.windows {
            Some(_) => Some(Self::ragged(n_windows)?),
            None => groups,
        };
        let texts = (spec.form == RowForm::Words).then_some(texts);
        let answers = (spec.form == RowForm::Answer).then_some(answers);
        Ok(Self { ids, sequences, truncated, groups, texts, answers })
    }

    fn ragged(lengths: impl IntoIterator<Item = usize>) -> Result<Ragged, TokenizeError> {
        Ragged::from_lengths(lengths).map_err(|source| TokenizeError::TooMany { source })
    }
}

fn picked<T: Clone>(all: Option<&[T]>, sequences: &[usize]) -> Option<Vec<T>> {
    all.map(|all| sequences.iter().map(|&sequence| all[sequence].clone()).collect())
}

struct TableEncoder<'a> {
    table: &'a Table,
    encoder: &'a dyn Encode,
    spec: &'a TokenSpec,
}

impl TableEncoder<'_> {
    fn encode(&self, rows: &[usize]) -> Result<Vec<EncodedRow>, TokenizeError> {
        self.encode_rows(rows).map_err(|source| match source.downcast::<RowError>() {
            Ok(error) => {
                let RowError { row, source } = *error;
                match rows.get(row) {
                    Some(&row) => TokenizeError::Encode { location: self.table.location(row), source },
                    None => TokenizeError::Encoder { source },
                }
            }
            Err(source) => self.first_error(rows).unwrap_or(TokenizeError::Encoder { source }),
        })
    }

    fn encode_rows(&self, rows: &[usize]) -> Result<Vec<EncodedRow>, BoxError> {
        let TokenSpec { truncation, windows, template, form, .. } = self.spec;
        let texts: Vec<&str> = rows.iter().map(|&row| self.table.texts()[row].as_str()).collect();
        let pairs = self.table.pairs().map(|pairs| rows.iter().map(|&row| pairs[row].as_str()).collect::<Vec<_>>());
        let options: Option<Vec<Vec<String>>> = picked(self.table.options(), rows);
        let answers = self.answers(rows);
        let answers = answers.as_ref().map(|answers| answers.iter().map(String::as_str).collect::<Vec<_>>());
        let encoder = RowEncoder {
            form: *form,
            template: template.as_ref(),
            truncation: *truncation,
            windows: *windows,
            encoder: self.encoder,
        };
        let encoded = encoder.encode(RowTexts {
            texts: &texts,
            pairs: pairs.as_deref(),
            options: options.as_deref(),
            answers: answers.as_deref(),
        })?;
        let is_short = |row: &EncodedRow| row.sequences.iter().all(|row| row.ids.len() <= truncation.max_length);
        if encoded.len() == rows.len() && encoded.iter().all(is_short) {
            Ok(encoded)
        } else {
            Err("the encoder returned another number of rows, or rows that are too long".into())
        }
    }

    /// Labels of the rows as texts, if they are answers.
    fn answers(&self, rows: &[usize]) -> Option<Vec<String>> {
        let labels = self.table.labels().filter(|_| self.spec.form == RowForm::Answer)?;
        Some(rows.iter().map(|&row| RawLabel::to_string(&labels[row])).collect())
    }

    /// Error of the first row that the encoder refuses alone, unless its error already names a row.
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
    /// The task needs options.
    #[error("find the options of each row: no column of options was named")]
    NoOptions,
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
    use crate::testing::{Letters, json_table, jsonl, texts};

    fn build(table: &Table, spec: &TokenSpec) -> Result<TokenTable, TokenizeError> {
        TokenTable::build(table, &Letters::default(), spec)
    }

    fn sharing(stride: usize) -> Windows {
        Windows { stride, ..Windows::default() }
    }

    fn letters(tokens: &TokenTable, row: usize) -> String {
        tokens.sequence(row).iter().filter_map(|&id| char::from_u32(id)).collect()
    }

    #[test]
    fn windows_belong_to_their_row() {
        let spec = TokenSpec::new(3).with_windows(Some(sharing(1)));
        let tokens = build(&texts(&["abcde", "fg"]), &spec).expect("tokens");
        assert_eq!((tokens.len(), tokens.sequences().len(), tokens.n_divided()), (2, 3, 1));
        assert_eq!([0, 1, 2].map(|sequence| letters(&tokens, sequence)), ["abc", "cde", "fg"]);
        assert_eq!(tokens.truncated(), [0, 0, 0]);
        let batch = tokens.batch(&[1, 0]);
        assert_eq!((batch.n_rows(), batch.sequences_of(0), batch.sequences_of(1)), (2, 0..1, 1..3));
        let error = build(&texts(&["abcde"]), &TokenSpec::new(3).with_windows(Some(sharing(3))));
        assert!(matches!(error, Err(TokenizeError::Encode { .. })), "the windows would never end");
        let two = Windows { max_windows: 2, ..sharing(1) };
        let error = build(&texts(&["a", "bc", "abcdefgh"]), &TokenSpec::new(3).with_windows(Some(two)));
        let Err(TokenizeError::Encode { location, source }) = &error else { panic!("expected a row, found {error:?}") };
        assert!(location.row == 3 && source.to_string().contains("at most 2 are made"), "{location}: {source}");
        assert!(source.source().is_none(), "the row is named once");
    }

    #[test]
    fn rows_are_concatenated() {
        let tokens = build(&texts(&["abc", "de", "fghij"]), &TokenSpec::new(3)).expect("tokens");
        assert_eq!(tokens.sequences().offsets(), [0, 3, 5, 8]);
        assert_eq!((letters(&tokens, 0).as_str(), letters(&tokens, 2).as_str()), ("abc", "fgh"));
        assert_eq!(tokens.truncated(), [0, 0, 2]);
        let batch = tokens.batch(&[2, 1]);
        assert_eq!((batch.sequences.offsets(), batch.n_rows()), (&[0, 3, 5][..], 2));
        assert_eq!(batch.ids, [b'f', b'g', b'h', b'd', b'e'].map(i64::from));
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
    fn rows_of_options_are_cached_by_their_options() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = TokenSpec::new(9).with_form(RowForm::Options).with_cache(folder.path());
        let rows = ["{\"text\": \"a\", \"of\": [\"b\", \"cd\"]}", "{\"text\": \"x\", \"of\": [\"e\", \"f\"]}"];
        let table = json_table(&rows, |spec| spec.with_options(["of"]));
        let encoder = Letters::default();
        let first = TokenTable::build(&table, &encoder, &spec).expect("tokens");
        assert_eq!((first.len(), first.sequences().len(), letters(&first, 1).as_str()), (2, 4, "a cd"));
        let calls = encoder.calls();
        assert_eq!(TokenTable::build(&table, &encoder, &spec).expect("cached"), first);
        assert_eq!(encoder.calls(), calls, "tokenized again");
        let batch = first.batch(&[1]);
        assert_eq!((batch.n_rows(), batch.sequences.len(), batch.sequences_of(0)), (1, 2, 0..2));
        let error = build(&texts(&["abc"]), &spec).expect_err("no options");
        assert!(matches!(error, TokenizeError::NoOptions));
    }

    #[test]
    fn answers_and_words_come_with_their_rows() {
        let spec = TokenSpec::new(9).with_form(RowForm::Answer);
        let tokens = build(&jsonl(&["\"yes\"", "7"]), &spec).expect("tokens");
        assert_eq!((letters(&tokens, 0).as_str(), letters(&tokens, 1).as_str()), ("x yes", "x 7"));
        assert_eq!(tokens.batch(&[1, 0]).answers, Some(vec![1..3, 1..5]));
        let tokens = build(&texts(&["ab c"]), &TokenSpec::new(9).with_form(RowForm::Words)).expect("tokens");
        let found = tokens.batch(&[0]).texts.expect("texts");
        assert_eq!(found[0].first_tokens(), [Some(0), Some(3)]);
    }

    #[test]
    fn unwritable_cache_is_not_an_error() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let spec = TokenSpec::new(3).with_cache(file.path().join("below/a/file"));
        build(&texts(&["abc"]), &spec).expect("tokens");
    }
}
