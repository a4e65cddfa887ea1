//! What a client must show.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

/// Fewer characters can be guessed.
const LEAST: usize = 16;

/// A secret that clients send as `Authorization: Bearer SECRET`. It is never shown.
#[derive(Clone)]
pub struct Token(String);

/// A secret that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file cannot be read.
    #[error("read the token in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It can be guessed, or cannot be sent.
    #[error("use a token of {length} characters: {LEAST} at least, of the printable ones of ASCII without spaces")]
    Text {
        /// How many it has.
        length: usize,
    },
}

impl Token {
    /// The secret `text`.
    ///
    /// # Errors
    /// [`TokenError::Text`] if it is too short, or has characters that a header cannot have.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        if text.len() < LEAST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Text { length: text.chars().count() });
        }
        Ok(Self(text.to_owned()))
    }

    /// What is in the file at `path`, without the white space around it.
    ///
    /// # Errors
    /// [`TokenError`] if it cannot be read or used.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path).map_err(|source| TokenError::Read { path: path.into(), source })?;
        Self::new(text.trim())
    }

    /// Whether a request shows it. How long that takes tells its length at the most.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some(shown) = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()) else { return false };
        let Some((scheme, shown)) = shown.split_at_checked("Bearer ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(shown.ct_eq(self.0.as_bytes()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: Option<&str>, expected: bool) {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(header::AUTHORIZATION, value.parse().expect("a header"));
        }
        let token = Token::new("0123456789abcdef").expect("a token");
        assert_eq!(token.is_in(&headers), expected, "{header:?}");
    }

    #[test]
    fn only_the_whole_token_is_taken() {
        check(Some("Bearer 0123456789abcdef"), true);
        check(Some("bearer 0123456789abcdef"), true);
        check(Some("Bearer 0123456789abcdeg"), false);
        check(Some("Bearer 0123456789abcde"), false);
        check(Some("Bearer 0123456789abcdef0"), false);
        check(Some("Basic 0123456789abcdef"), false);
        check(Some("Bearer "), false);
        check(Some("0123456789abcdef"), false);
        check(None, false);
    }

    #[test]
    fn tokens_that_can_be_guessed_or_not_be_sent_are_refused() {
        assert!(Token::new("short").is_err());
        assert!(Token::new("0123456789 abcdef").is_err());
        assert!(Token::new("0123456789äbcdef").is_err());
        let folder = std::env::temp_dir();
        assert!(matches!(Token::read(&folder.join("there is no such file")), Err(TokenError::Read { .. })));
    }

    #[test]
    fn it_is_not_shown() {
        assert!(!format!("{:?}", Token::new("0123456789abcdef").expect("a token")).contains("0123"));
    }
}
