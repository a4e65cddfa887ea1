//! Words that stand for labels, as single tokens of the vocabulary.

use std::error::Error;

use sepal_core::in_one_line;

use crate::{OptionError, Tokenize};

/// Text before a word where the tokenizer shows how the word continues a text.
const ANCHOR: &str = "a";

/// A word that is not one token.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum WordError {
    /// Word of no token, or of several.
    #[error("`{word}` is {} tokens ({})", ids.len(), listed(ids))]
    Tokens { word: String, ids: Vec<i64> },
    /// Word that the tokenizer cannot encode.
    #[error("tokenize `{word}`")]
    Tokenize { word: String, source: Box<dyn Error + Send + Sync> },
}

fn listed(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns the token of a word that continues a text after a blank, as the next word of a prompt does.
///
/// Tokenizers differ in the mark of such a word (`Ġgood`, `▁good`, `good`). The token is therefore taken from the end of a
/// text of two words. A word that begins with white space is encoded as it is written.
///
/// # Errors
/// [`WordError`] if the word is not one token.
pub fn word_token(tokenize: &Tokenize<'_>, word: &str) -> Result<i64, WordError> {
    let encode = |text: &str| tokenize(text).map_err(|source| WordError::Tokenize { word: word.to_owned(), source });
    let ids = if word.starts_with(char::is_whitespace) { encode(word)? } else { continuation(&encode, word)? };
    match ids[..] {
        [id] => Ok(id),
        _ => Err(WordError::Tokens { word: word.to_owned(), ids }),
    }
}

fn continuation(encode: &dyn Fn(&str) -> Result<Vec<i64>, WordError>, word: &str) -> Result<Vec<i64>, WordError> {
    let (anchor, both) = (encode(ANCHOR)?, encode(&format!("{ANCHOR} {word}"))?);
    match both.strip_prefix(anchor.as_slice()) {
        Some(ids) => Ok(ids.to_vec()),
        None => encode(&format!(" {word}")),
    }
}

/// Returns the tokens of the words of each label, `[labels][words]`. Errors name the option `key`.
///
/// # Errors
/// [`OptionError`] with each word that is not one token, and with words that two labels share.
pub fn label_words<W: AsRef<str>>(
    key: &'static str,
    labels: &[String],
    words: &[Vec<W>],
    tokenize: &Tokenize<'_>,
) -> Result<Vec<Vec<i64>>, OptionError> {
    let refused = |message: String| Err(OptionError { key, message });
    let (mut tokens, mut problems) = (Vec::with_capacity(labels.len()), Vec::new());
    for (label, words) in labels.iter().zip(words) {
        let mut of_label = Vec::with_capacity(words.len());
        for word in words {
            match word_token(tokenize, word.as_ref()) {
                Ok(id) => of_label.push(id),
                Err(error) => problems.push(format!("of the label `{label}`, {}", in_one_line(&error))),
            }
        }
        tokens.push(of_label);
    }
    if !problems.is_empty() {
        return refused(format!("expected words of one token each; {}", problems.join("; ")));
    }
    for (index, of_label) in tokens.iter().enumerate() {
        let other = tokens[..index].iter().position(|before| before.iter().any(|id| of_label.contains(id)));
        if let Some(other) = other {
            return refused(format!(
                "expected different words; `{}` and `{}` have a token in common",
                labels[other], labels[index]
            ));
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokenizer of the GPT-2 kind: a blank belongs to the word after it; words over four letters are divided.
    fn gpt2(text: &str) -> Result<Vec<i64>, Box<dyn Error + Send + Sync>> {
        if text.contains('?') {
            return Err("no token".into());
        }
        let blanks = text.match_indices(' ').map(|(start, _)| start);
        let starts: Vec<usize> = std::iter::once(0).chain(blanks).chain([text.len()]).collect();
        let words = starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).filter(|word| !word.is_empty());
        let parts = words.flat_map(|word| word.as_bytes().chunks(5));
        Ok(parts.map(|part| part.iter().map(|&byte| i64::from(byte)).sum()).collect())
    }

    /// Tokenizer of the Llama kind: a mark before every word, also the first.
    fn llama(text: &str) -> Result<Vec<i64>, Box<dyn Error + Send + Sync>> {
        Ok(text.split(' ').map(|word| word.len() as i64).collect())
    }

    #[test]
    fn word_is_the_next_word_of_a_text() {
        let id = |text: &str| text.bytes().map(i64::from).sum::<i64>();
        assert_eq!(word_token(&gpt2, "good").expect("a token"), id(" good"));
        assert_eq!(word_token(&gpt2, " bad").expect("a token"), id(" bad"));
        assert_eq!(word_token(&llama, "good").expect("a token"), 4);
    }

    #[test]
    fn word_of_several_tokens_is_refused_by_name() {
        let labels = ["fine".to_owned(), "terrible".to_owned()];
        let found = label_words("label_words", &labels, &[vec!["fine"], vec!["terrible", "b?"]], &gpt2);
        let text = found.expect_err("several tokens").to_string();
        assert!(
            text.starts_with(
                "use option `label_words`: expected words of one token each; of the label `terrible`, \
                              `terrible` is 2 tokens ("
            ),
            "{text}"
        );
        assert!(text.ends_with("; of the label `terrible`, tokenize `b?`: no token"), "{text}");
        let same = label_words("label_words", &labels, &[vec!["so"], vec!["bad", "so"]], &gpt2);
        let text = same.expect_err("a word twice").to_string();
        assert!(text.ends_with("`fine` and `terrible` have a token in common"), "{text}");
    }
}
