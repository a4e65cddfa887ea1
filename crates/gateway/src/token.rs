use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

/// Minimum length; shorter tokens can be guessed.
const MIN_LENGTH: usize = 16;

/// Secret that clients send as `Authorization: Bearer SECRET`. It is never displayed.
#[derive(Clone)]
pub struct Token(String);

/// Error of reading a token.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum TokenError {
    /// File that cannot be read.
    #[error("read the token in {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// Text that is too short or has characters that a header forbids.
    #[error(
        "use a token of {length} characters: expected at least {MIN_LENGTH} printable ASCII characters without spaces"
    )]
    Text { length: usize },
}

impl Token {
    /// Returns the token with this text.
    ///
    /// # Errors
    /// [`TokenError::Text`] if it is too short or has characters that a header forbids.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        if text.len() < MIN_LENGTH || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Text { length: text.chars().count() });
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads the token in the file at `path`, without surrounding white space.
    ///
    /// # Errors
    /// [`TokenError`] if the file cannot be read or holds no valid token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path).map_err(|source| TokenError::Read { path: path.into(), source })?;
        Self::new(text.trim())
    }

    /// True if a request has the token. The comparison takes constant time and reveals at most its length.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()) else { return false };
        let Some((scheme, token)) = value.split_at_checked("Bearer ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(token.ct_eq(self.0.as_bytes()))
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
    fn only_exact_token_is_accepted() {
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
    fn short_or_unprintable_token_is_refused() {
        assert!(Token::new("short").is_err());
        assert!(Token::new("0123456789 abcdef").is_err());
        assert!(Token::new("0123456789äbcdef").is_err());
        let folder = std::env::temp_dir();
        assert!(matches!(Token::read(&folder.join("there is no such file")), Err(TokenError::Read { .. })));
    }

    #[test]
    fn debug_output_hides_token() {
        assert!(!format!("{:?}", Token::new("0123456789abcdef").expect("a token")).contains("0123"));
    }
}
