use tokenizers::parallelism::MaybeParallelIterator;

use crate::error::{BatchError, EncodeError};
use crate::input::Input;
use crate::tokenizer::{Encoding, Tokenizer};
use crate::truncate::{Truncation, Windows, text_indices, window_tokens};

impl Tokenizer {
    /// Encodes an input as one or more windows of at most `truncation.max_length` tokens. All windows have the special tokens
    /// and the fixed words, and together each token of the longest text. Other texts are shortened only if they are too long
    /// as well; the first window counts the tokens that they lose.
    ///
    /// # Errors
    /// [`EncodeError::MaxLength`] if the limit is too small for one token of each text, [`EncodeError::Stride`] if the windows
    /// share more tokens than they have room for, [`EncodeError::Windows`] if there are too many.
    pub fn encode_windows(
        &self,
        input: &Input<'_>,
        truncation: Truncation,
        windows: Windows,
    ) -> Result<Vec<Encoding>, EncodeError> {
        let tokens = self.input_tokens(input)?;
        if tokens.len() <= truncation.max_length {
            return Ok(vec![Encoding::new(&tokens, &vec![true; tokens.len()])]);
        }
        let indices = text_indices(input, &tokens);
        let mut is_lost = vec![true; tokens.len()];
        let encoding = |mask: Vec<bool>| {
            is_lost.iter_mut().zip(&mask).for_each(|(is_lost, &is_retained)| *is_lost &= !is_retained);
            Encoding { n_truncated: 0, ..Encoding::new(&tokens, &mask) }
        };
        let mut encodings: Vec<Encoding> = window_tokens(&indices, truncation, windows)?.map(encoding).collect();
        if let Some(first) = encodings.first_mut() {
            first.n_truncated = is_lost.into_iter().filter(|is_lost| *is_lost).count();
        }
        Ok(encodings)
    }

    /// Encodes rows by [`Tokenizer::encode_windows`], in parallel unless `TOKENIZERS_PARALLELISM=false`.
    ///
    /// # Errors
    /// [`BatchError`] for the first row that cannot be encoded.
    pub fn encode_window_batch(
        &self,
        rows: &[Input<'_>],
        truncation: Truncation,
        windows: Windows,
    ) -> Result<Vec<Vec<Encoding>>, BatchError> {
        let encode =
            |row| self.encode_windows(&rows[row], truncation, windows).map_err(|source| BatchError { row, source });
        let encoded: Vec<Result<Vec<Encoding>, BatchError>> =
            (0..rows.len()).into_maybe_par_iter().map(encode).collect();
        encoded.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::input::Piece;
    use crate::truncate::TruncationSide;

    /// Word-level tokenizer whose post-processor writes `[CLS] A [SEP] B [SEP]`.
    fn tokenizer() -> Tokenizer {
        let definition = json!({
            "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "model": {"type": "WordLevel", "unk_token": "[UNK]",
                      "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5, "d": 6, "e": 7}},
        });
        Tokenizer::from_bytes(definition.to_string().as_bytes()).expect("a definition")
    }

    fn sharing(stride: usize) -> Windows {
        Windows { stride, ..Windows::default() }
    }

    fn ids(encoded: Vec<Encoding>) -> Vec<Vec<u32>> {
        encoded.into_iter().map(|encoding| encoding.ids).collect()
    }

    #[test]
    fn windows_keep_special_tokens_and_template() {
        let tokenizer = tokenizer();
        let truncation = Truncation { max_length: 5, side: TruncationSide::Right };
        let pieces = vec![Piece::Text("a b c d"), Piece::Fixed(" e")];
        let found = tokenizer.encode_windows(&Input::from_pieces(pieces, None), truncation, sharing(1));
        let found = found.expect("encodes");
        assert_eq!(found[1].offsets, [(0, 0), (2, 3), (4, 5), (8, 9), (0, 0)]);
        assert!(found.iter().all(|window| window.n_truncated == 0));
        assert_eq!(ids(found), [[1, 3, 4, 7, 2], [1, 4, 5, 7, 2], [1, 5, 6, 7, 2]]);
        let short = tokenizer.encode_windows(&Input::new("a b", None), truncation, sharing(9));
        assert_eq!(ids(short.expect("encodes")), [[1, 3, 4, 2]], "a text that fits is one window");
    }

    #[test]
    fn windows_of_a_pair_divide_its_longer_text() {
        let tokenizer = tokenizer();
        let encode = |first, second, max_length| {
            let truncation = Truncation { max_length, side: TruncationSide::Right };
            let input = Input::new(first, Some(second));
            tokenizer.encode_windows(&input, truncation, Windows::default()).expect("encodes")
        };
        assert_eq!(ids(encode("e", "a b c d", 6)), [[1, 7, 2, 3, 4, 2], [1, 7, 2, 5, 6, 2]]);
        let both_long = encode("e e e", "a b c d", 7);
        assert_eq!(both_long.iter().map(|window| window.n_truncated).collect::<Vec<_>>(), [1, 0]);
        assert_eq!(ids(both_long), [[1, 7, 7, 2, 3, 4, 2], [1, 7, 7, 2, 5, 6, 2]]);
    }

    #[test]
    fn text_of_too_many_windows_is_an_error() {
        let truncation = Truncation { max_length: 4, side: TruncationSide::Right };
        let encode = |n_tokens: usize| {
            let text = "a ".repeat(n_tokens);
            let windows = Windows { max_windows: 5, ..sharing(1) };
            tokenizer().encode_windows(&Input::new(&text, None), truncation, windows)
        };
        // A window has room for two tokens of the text, and begins one token after the one before it.
        assert_eq!(encode(6).expect("encodes").len(), 5);
        let error = encode(7).expect_err("one window too many");
        assert!(error.to_string().contains("there would be 6, at most 5"), "{error}");
        assert!(matches!(error, EncodeError::Windows { n_tokens: 7, .. }));
    }

    #[test]
    fn first_row_without_room_is_an_error() {
        let truncation = Truncation { max_length: 4, side: TruncationSide::Right };
        let rows = [Input::new("a", None), Input::new("a b c", None)];
        let error = tokenizer().encode_window_batch(&rows, truncation, sharing(2)).expect_err("no room");
        assert!(matches!((error.row, error.source), (1, EncodeError::Stride { stride: 2, room: 2 })));
    }
}
