use std::fmt;
use std::str::FromStr;

const MAX_BYTES: usize = 128;

/// Name of a model in paths, requests and metrics: letters and digits of ASCII, `-`, `_` and `.`, with a letter or digit
/// first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(String);

/// Text that is no name of a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error(
    "use `{name}` as the name of a model: expected 1 to {MAX_BYTES} letters and digits of ASCII, `-`, `_` and `.`, with a \
     letter or digit first"
)]
pub struct NameError {
    pub name: String,
}

impl ModelName {
    /// Text of the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !starts_well || name.len() > MAX_BYTES || !name.bytes().all(is_allowed) {
            return Err(NameError { name: name.to_owned() });
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_characters_of_paths_is_refused() {
        for name in ["a", "films-2", "A_b.c", "7"] {
            assert_eq!(name.parse::<ModelName>().map(|name| name.to_string()), Ok(name.to_owned()));
        }
        for name in ["", ".", "..", "-a", "a/b", "a b", "ä", "a%2f", "*", &"x".repeat(129)] {
            let error = name.parse::<ModelName>().expect_err(name);
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
        }
    }
}
