//! Rows of texts to token sequences, in the form that the task needs.

use std::ops::Range;

use sepal_core::{Ragged, RaggedError, RowForm, TokenBatch, TokenText};
use sepal_tokenize::{BatchError, Encoding, Input, Piece, Tokenizer, Truncation, Windows};

use crate::{BoxError, Template};

/// Template of rows with options that have none.
pub(crate) const OPTION_TEMPLATE: &str = "{text} {text_pair}";

/// Encoder of texts as token ids.
pub trait Encode {
    /// Encodes each input, including special tokens, within the limit. Rows without tokens are allowed.
    ///
    /// # Errors
    /// Error if an input cannot be encoded.
    fn encode_batch(&self, rows: &[Input<'_>], truncation: Truncation) -> Result<Vec<TokenRow>, BoxError>;

    /// Encodes each input as one or more windows of its longest text, each within the limit.
    ///
    /// # Errors
    /// Error if an input cannot be encoded.
    fn encode_windows(
        &self,
        rows: &[Input<'_>],
        truncation: Truncation,
        windows: Windows,
    ) -> Result<Vec<Vec<TokenRow>>, BoxError>;

    /// Digest of its definition, unique to the encoder.
    fn digest(&self) -> &str;
}

/// Tokens of one sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenRow {
    /// Token ids, including special tokens.
    pub ids: Vec<u32>,
    /// Bytes of its text, with the template, that each token covers, `start..end`; of a second sequence they count from its
    /// own start. `(0, 0)` for special tokens.
    pub offsets: Vec<(usize, usize)>,
    /// Number of tokens of text that truncation removed.
    pub n_truncated: usize,
}

impl From<Encoding> for TokenRow {
    fn from(Encoding { ids, offsets, n_truncated }: Encoding) -> Self {
        Self { ids, offsets, n_truncated }
    }
}

impl Encode for Tokenizer {
    fn encode_batch(&self, rows: &[Input<'_>], truncation: Truncation) -> Result<Vec<TokenRow>, BoxError> {
        let encodings = Tokenizer::encode_batch(self, rows, truncation)?;
        Ok(encodings.into_iter().map(TokenRow::from).collect())
    }

    fn encode_windows(
        &self,
        rows: &[Input<'_>],
        truncation: Truncation,
        windows: Windows,
    ) -> Result<Vec<Vec<TokenRow>>, BoxError> {
        let encodings = self.encode_window_batch(rows, truncation, windows)?;
        Ok(encodings.into_iter().map(|row| row.into_iter().map(TokenRow::from).collect()).collect())
    }

    fn digest(&self) -> &str {
        Tokenizer::digest(self)
    }
}

/// Texts of rows, one entry for each row.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowTexts<'a> {
    /// First texts.
    pub texts: &'a [&'a str],
    /// Second texts, if rows are pairs.
    pub pairs: Option<&'a [&'a str]>,
    /// Options, for [`RowForm::Options`].
    pub options: Option<&'a [Vec<String>]>,
    /// Answers, for [`RowForm::Answer`].
    pub answers: Option<&'a [&'a str]>,
}

/// Token sequences of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// The sequence of the row, or one for each option or window.
    pub sequences: Vec<TokenRow>,
    /// Text and the bytes of each token, for [`RowForm::Words`].
    pub text: Option<TokenText>,
    /// Tokens of the answer, for [`RowForm::Answer`].
    pub answer: Option<Range<usize>>,
}

impl EncodedRow {
    fn of_sequence(sequence: TokenRow) -> Self {
        Self { sequences: vec![sequence], text: None, answer: None }
    }

    /// Returns true if each sequence has a token, so that the row can be predicted.
    pub fn has_tokens(&self) -> bool {
        self.sequences.iter().all(|sequence| !sequence.ids.is_empty())
    }

    /// Number of tokens of all sequences.
    pub fn n_tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.ids.len()).sum()
    }

    /// Joins rows of one form to a batch.
    ///
    /// # Errors
    /// [`RaggedError`] if there is no row, or a sequence has no token.
    pub fn batch(rows: &[&Self]) -> Result<TokenBatch, RaggedError> {
        let sequences = || rows.iter().flat_map(|row| &row.sequences);
        let groups = match rows.iter().all(|row| row.sequences.len() == 1) {
            true => None,
            false => Some(Ragged::from_lengths(rows.iter().map(|row| row.sequences.len()))?),
        };
        Ok(TokenBatch {
            ids: sequences().flat_map(|sequence| &sequence.ids).map(|&id| i64::from(id)).collect(),
            sequences: Ragged::from_lengths(sequences().map(|sequence| sequence.ids.len()))?,
            groups,
            texts: rows.iter().map(|row| row.text.clone()).collect(),
            answers: rows.iter().map(|row| row.answer.clone()).collect(),
        })
    }
}

/// Encoder of rows: form, template and limit around an encoder of texts.
#[derive(Clone, Copy)]
pub struct RowEncoder<'a> {
    /// Form of the rows.
    pub form: RowForm,
    /// Template around the texts.
    pub template: Option<&'a Template>,
    /// Limit on the tokens of a sequence.
    pub truncation: Truncation,
    /// Division of long texts into windows; none to truncate them. Only for [`RowForm::Text`].
    pub windows: Option<Windows>,
    /// Encoder of the texts.
    pub encoder: &'a dyn Encode,
}

impl std::fmt::Debug for RowEncoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowEncoder")
            .field("form", &self.form)
            .field("template", &self.template)
            .field("truncation", &self.truncation)
            .field("windows", &self.windows)
            .finish_non_exhaustive()
    }
}

/// A row that cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("tokenize row {} (counted from 1)", row + 1)]
pub struct RowError {
    /// Index of the row, from 0.
    pub row: usize,
    pub source: BoxError,
}

impl RowEncoder<'_> {
    /// Encodes each row.
    ///
    /// # Errors
    /// [`RowError`] if the text of a row cannot be encoded, or its answer has no token; another error if the rows lack a part
    /// that the form needs.
    ///
    /// # Panics
    /// If a part has fewer entries than there are texts.
    pub fn encode(&self, rows: RowTexts<'_>) -> Result<Vec<EncodedRow>, BoxError> {
        self.encode_rows(rows).map_err(|error| match error.downcast::<BatchError>() {
            Ok(error) => RowError { row: self.row_of(error.row, rows), source: error.source.into() }.into(),
            Err(error) => error,
        })
    }

    /// Row of a sequence: there is one for each option, or for each row.
    fn row_of(&self, sequence: usize, rows: RowTexts<'_>) -> usize {
        let Some(options) = rows.options.filter(|_| self.form == RowForm::Options) else { return sequence };
        let mut end = 0;
        let holds_sequence = |options: &Vec<String>| {
            end += options.len();
            sequence < end
        };
        options.iter().position(holds_sequence).unwrap_or(sequence)
    }

    fn encode_rows(&self, rows: RowTexts<'_>) -> Result<Vec<EncodedRow>, BoxError> {
        match (self.form, self.windows) {
            (RowForm::Text, Some(windows)) => {
                let inputs = inputs(rows.texts, rows.pairs, self.template);
                let encoded = self.encoder.encode_windows(&inputs, self.truncation, windows)?;
                Ok(encoded.into_iter().map(|sequences| EncodedRow { sequences, text: None, answer: None }).collect())
            }
            (_, Some(_)) => Err("only plain texts can be divided into windows".into()),
            (RowForm::Text, None) => {
                let sequences = encode_texts(rows.texts, rows.pairs, self.template, self.encoder, self.truncation)?;
                Ok(sequences.into_iter().map(EncodedRow::of_sequence).collect())
            }
            (RowForm::Options, None) => self.options(rows.texts, rows.options.ok_or("the rows have no options")?),
            (RowForm::Words, None) => self.words(rows),
            (RowForm::Answer, None) => self.answers(rows, rows.answers.ok_or("the rows have no answers")?),
        }
    }

    /// Encodes a sequence for each option, which takes the place of the second text.
    fn options(&self, texts: &[&str], options: &[Vec<String>]) -> Result<Vec<EncodedRow>, BoxError> {
        let default: Template = OPTION_TEMPLATE.parse()?;
        let template = self.template.unwrap_or(&default);
        if !template.takes_pair() {
            return Err("the template has no {text_pair}, which stands for the option".into());
        }
        let of_row = |row: usize| options[row].iter().map(move |option| (texts[row], option.as_str()));
        let (texts, options_of_texts): (Vec<&str>, Vec<&str>) = (0..texts.len()).flat_map(of_row).unzip();
        let pairs = Some(options_of_texts.as_slice());
        let sequences = encode_texts(&texts, pairs, Some(template), self.encoder, self.truncation)?;
        let mut sequences = sequences.into_iter();
        let rows = options.iter().map(|options| sequences.by_ref().take(options.len()).collect::<Vec<_>>());
        Ok(rows.map(|sequences| EncodedRow { sequences, text: None, answer: None }).collect())
    }

    /// Encodes texts whose words have labels. Offsets of the tokens count from the start of the text, not of the template.
    fn words(&self, rows: RowTexts<'_>) -> Result<Vec<EncodedRow>, BoxError> {
        if rows.pairs.is_some() {
            return Err("rows of words are single texts; leave out the second text".into());
        }
        let sequences = encode_texts(rows.texts, None, self.template, self.encoder, self.truncation)?;
        let encoded = rows.texts.iter().zip(sequences).map(|(&text, sequence)| {
            let start = self.template.map_or(0, Template::text_start);
            let bytes = sequence.offsets.iter().map(|&offsets| within(offsets, start..start + text.len())).collect();
            let text = Some(TokenText { text: text.to_owned(), bytes });
            EncodedRow { text, ..EncodedRow::of_sequence(sequence) }
        });
        Ok(encoded.collect())
    }

    /// Encodes texts with their answers after them. Truncation shortens texts only.
    fn answers(&self, rows: RowTexts<'_>, answers: &[&str]) -> Result<Vec<EncodedRow>, BoxError> {
        if rows.pairs.is_some() && !self.template.is_some_and(Template::takes_pair) {
            return Err("a second text would follow the answer; put {text_pair} into the template".into());
        }
        let mut starts = Vec::with_capacity(rows.texts.len());
        let mut inputs = Vec::with_capacity(rows.texts.len());
        for (row, &text) in rows.texts.iter().enumerate() {
            let input = input(self.template, text, rows.pairs.map(|pairs| pairs[row]));
            let prompt = input.first();
            let is_separated = prompt.ends_with(char::is_whitespace) || answers[row].starts_with(char::is_whitespace);
            starts.push(prompt.len());
            let blank = Piece::Fixed(if is_separated { "" } else { " " });
            inputs.push(input.followed_by([blank, Piece::Fixed(answers[row])]));
        }
        let sequences = self.encoder.encode_batch(&inputs, self.truncation)?;
        let no_answer = |row| RowError { row, source: "its answer yields no token".into() };
        let encoded =
            sequences.into_iter().zip(starts).enumerate().map(|(row, (sequence, start))| {
                with_answer(sequence, start).ok_or_else(|| BoxError::from(no_answer(row)))
            });
        encoded.collect()
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
    encoder.encode_batch(&inputs(texts, pairs, template), truncation)
}

fn inputs<'a>(texts: &[&'a str], pairs: Option<&[&'a str]>, template: Option<&'a Template>) -> Vec<Input<'a>> {
    let of_row = |(row, &text)| input(template, text, pairs.map(|pairs| pairs[row]));
    texts.iter().enumerate().map(of_row).collect()
}

fn input<'a>(template: Option<&'a Template>, text: &'a str, pair: Option<&'a str>) -> Input<'a> {
    template.map_or_else(|| Input::new(text, pair), |template| template.input(text, pair))
}

/// Part of `range` that a token covers, counted from its start; empty for a token outside of it.
fn within((start, end): (usize, usize), range: Range<usize>) -> Range<usize> {
    let (start, end) = (start.max(range.start), end.min(range.end));
    if start < end { start - range.start..end - range.start } else { 0..0 }
}

/// Sequence whose tokens after the byte `start` are the answer; `None` if there are none.
fn with_answer(sequence: TokenRow, start: usize) -> Option<EncodedRow> {
    let is_answer = |&(_, end): &(usize, usize)| end > start;
    let first = sequence.offsets.iter().position(is_answer)?;
    let last = sequence.offsets.iter().rposition(is_answer)?;
    Some(EncodedRow { answer: Some(first..last + 1), ..EncodedRow::of_sequence(sequence) })
}

#[cfg(test)]
mod tests {
    use sepal_tokenize::TruncationSide;

    use super::*;
    use crate::testing::Letters;

    fn encode(form: RowForm, template: Option<&str>, max_length: usize, rows: RowTexts<'_>) -> Vec<EncodedRow> {
        let template: Option<Template> = template.map(|template| template.parse().expect("a template"));
        let truncation = Truncation { max_length, side: TruncationSide::Right };
        let encoder = Letters::default();
        let encoder = RowEncoder { form, template: template.as_ref(), truncation, windows: None, encoder: &encoder };
        encoder.encode(rows).expect("encoded")
    }

    fn letters(row: &TokenRow) -> String {
        row.ids.iter().filter_map(|&id| char::from_u32(id)).collect()
    }

    #[test]
    fn options_are_sequences_of_their_row() {
        let options = [vec!["b".to_owned(), "cd".to_owned()], vec!["e".to_owned(), "f".to_owned(), "g".to_owned()]];
        let rows = RowTexts { texts: &["a", "x"], options: Some(&options), ..RowTexts::default() };
        let found = encode(RowForm::Options, None, 9, rows);
        let texts: Vec<Vec<String>> = found.iter().map(|row| row.sequences.iter().map(letters).collect()).collect();
        assert_eq!(texts, [vec!["a b", "a cd"], vec!["x e", "x f", "x g"]]);
        let batch = EncodedRow::batch(&found.iter().collect::<Vec<_>>()).expect("a batch");
        assert_eq!(batch.sequences.offsets(), [0, 3, 7, 10, 13, 16]);
        assert_eq!((batch.n_rows(), batch.sequences_of(1)), (2, 2..5));
        assert_eq!((batch.texts, batch.answers), (None, None));
        let found = encode(RowForm::Options, Some("{text_pair}<{text}"), 9, rows);
        assert_eq!(letters(&found[0].sequences[1]), "cd<a");
    }

    #[test]
    fn windows_are_sequences_of_their_row() {
        let truncation = Truncation { max_length: 4, side: TruncationSide::Right };
        let template: Template = "<{text}>".parse().expect("a template");
        let letters_of = Letters::default();
        let windows = Some(Windows { stride: 1, ..Windows::default() });
        let encoder =
            RowEncoder { form: RowForm::Text, template: Some(&template), truncation, windows, encoder: &letters_of };
        let rows = RowTexts { texts: &["abcd", "x"], ..RowTexts::default() };
        let found = encoder.encode(rows).expect("encoded");
        let texts: Vec<Vec<String>> = found.iter().map(|row| row.sequences.iter().map(letters).collect()).collect();
        assert_eq!(texts, [vec!["<ab>", "<bc>", "<cd>"], vec!["<x>"]]);
        let batch = EncodedRow::batch(&found.iter().collect::<Vec<_>>()).expect("a batch");
        assert_eq!((batch.n_rows(), batch.sequences_of(0), batch.sequences_of(1)), (2, 0..3, 3..4));
        let error = RowEncoder { form: RowForm::Words, ..encoder }.encode(rows).expect_err("words have places");
        assert!(error.to_string().contains("only plain texts"), "{error}");
    }

    #[test]
    fn words_have_the_bytes_of_their_text() {
        let rows = RowTexts { texts: &["ab c"], ..RowTexts::default() };
        let found = encode(RowForm::Words, Some("<{text}>"), 9, rows);
        let text = found[0].text.clone().expect("a text");
        assert_eq!((text.text.as_str(), text.bytes.as_slice()), ("ab c", &[0..0, 0..1, 1..2, 2..3, 3..4, 0..0][..]));
        assert_eq!(text.first_tokens(), [Some(1), Some(4)]);
        let cut = encode(RowForm::Words, Some("<{text}>"), 4, rows);
        assert_eq!(cut[0].text.as_ref().expect("a text").first_tokens(), [Some(1), None]);
        let batch = EncodedRow::batch(&[&found[0]]).expect("a batch");
        assert_eq!((batch.groups, batch.texts), (None, Some(vec![text])));
    }

    #[test]
    fn answers_follow_their_text_and_are_kept() {
        let rows = RowTexts { texts: &["abcd", "x "], answers: Some(&["yes", "no"]), ..RowTexts::default() };
        let found = encode(RowForm::Answer, None, 6, rows);
        assert_eq!((letters(&found[0].sequences[0]).as_str(), found[0].answer.clone()), ("ab yes", Some(2..6)));
        assert_eq!((letters(&found[1].sequences[0]).as_str(), found[1].answer.clone()), ("x no", Some(2..4)));
        assert_eq!(found[0].sequences[0].n_truncated, 2);
        let empty = RowTexts { texts: &["a", "b"], answers: Some(&["c", "?"]), ..RowTexts::default() };
        let truncation = Truncation { max_length: 9, side: TruncationSide::Right };
        let template: Template = "{text} ".parse().expect("a template");
        let encoder = Letters::default();
        let encoder = RowEncoder {
            form: RowForm::Answer,
            template: Some(&template),
            truncation,
            windows: None,
            encoder: &encoder,
        };
        let error = encoder.encode(empty).expect_err("no answer").downcast::<RowError>().expect("an error of a row");
        assert_eq!((error.row, error.source.to_string().as_str()), (1, "its answer yields no token"));
    }

    #[test]
    fn errors_name_the_row_of_a_sequence() {
        let truncation = Truncation { max_length: 5, side: TruncationSide::Right };
        let letters = Letters::default();
        let windows = Some(Windows { stride: 0, max_windows: 2 });
        let encoder = RowEncoder { form: RowForm::Text, template: None, truncation, windows, encoder: &letters };
        let rows = RowTexts { texts: &["a", "bc", "defghijklmn"], ..RowTexts::default() };
        let error = encoder.encode(rows).expect_err("three windows");
        assert_eq!(error.to_string(), "tokenize row 3 (counted from 1)");
        let error = error.downcast::<RowError>().expect("an error of a row");
        assert!(error.row == 2 && error.source.to_string().contains("at most 2 are made"), "{}", error.source);

        // The words of the template leave no room for both texts, in the fourth sequence.
        let template: Template = "{text}abc{text_pair}".parse().expect("a template");
        let truncation = Truncation { max_length: 4, ..truncation };
        let encoder = RowEncoder {
            form: RowForm::Options,
            template: Some(&template),
            truncation,
            windows: None,
            encoder: &letters,
        };
        let options = [vec!["?".to_owned(), "?".to_owned()], vec!["?".to_owned(), "x".to_owned()]];
        let rows = RowTexts { texts: &["a", "b"], options: Some(&options), ..RowTexts::default() };
        let error = encoder.encode(rows).expect_err("no room");
        assert_eq!(error.downcast::<RowError>().expect("an error of a row").row, 1);
    }

    #[test]
    fn forms_that_do_not_fit_the_rows_are_refused() {
        let refused = |form, template: Option<&str>, rows: RowTexts<'_>| {
            let template: Option<Template> = template.map(|template| template.parse().expect("a template"));
            let truncation = Truncation { max_length: 9, side: TruncationSide::Right };
            let encoder = Letters::default();
            let encoder =
                RowEncoder { form, template: template.as_ref(), truncation, windows: None, encoder: &encoder };
            encoder.encode(rows).expect_err("refused").to_string()
        };
        let options = [vec!["b".to_owned(), "c".to_owned()]];
        let rows = RowTexts { texts: &["a"], options: Some(&options), ..RowTexts::default() };
        assert!(refused(RowForm::Options, Some("{text}"), rows).contains("{text_pair}"));
        let pair = RowTexts { texts: &["a"], pairs: Some(&["b"]), answers: Some(&["c"]), ..RowTexts::default() };
        assert!(refused(RowForm::Answer, None, pair).contains("{text_pair}"));
        assert!(refused(RowForm::Words, None, pair).contains("single texts"));
        assert!(refused(RowForm::Options, None, pair).contains("no options"));
    }
}
