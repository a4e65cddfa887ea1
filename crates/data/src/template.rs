use std::fmt;
use std::str::FromStr;

use sepal_tokenize::{self as tokenize, Input};

/// Most places for texts. The time to truncate an input grows with them.
const MAX_TEXTS: usize = 64;

/// Template around the texts of a row: `Movie review: {text}`.
///
/// `{text}` and `{text_pair}` are replaced; `{{` and `}}` are braces. Without `{text_pair}`, a second text is encoded as the
/// second sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Text,
    Pair,
}

impl Template {
    /// Returns true if it contains `{text_pair}`.
    pub fn takes_pair(&self) -> bool {
        self.pieces.contains(&Piece::Pair)
    }

    /// First byte of a single text in its input.
    pub(crate) fn text_start(&self) -> usize {
        let before = self.pieces.iter().take_while(|piece| **piece != Piece::Text);
        before.map(|piece| if let Piece::Literal(literal) = piece { literal.len() } else { 0 }).sum()
    }

    /// Model input with these texts. `pair` replaces `{text_pair}`, or else becomes the second sequence.
    pub fn input<'a>(&'a self, text: &'a str, pair: Option<&'a str>) -> Input<'a> {
        let piece = |piece: &'a Piece| match piece {
            Piece::Literal(literal) => tokenize::Piece::Fixed(literal),
            Piece::Text => tokenize::Piece::Text(text),
            Piece::Pair => tokenize::Piece::Text(pair.unwrap_or_default()),
        };
        Input::from_pieces(self.pieces.iter().map(piece).collect(), pair.filter(|_| !self.takes_pair()))
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(source: &str) -> Result<Self, TemplateError> {
        let error = |problem| TemplateError { template: source.to_owned(), problem };
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut remaining = source;
        while let Some(next) = remaining.chars().next() {
            if remaining.starts_with("{{") || remaining.starts_with("}}") {
                literal.push(next);
                remaining = &remaining[2..];
            } else if next == '{' {
                let end = remaining.find('}').ok_or_else(|| error("a { is not closed; write {{ for a brace"))?;
                let piece = match &remaining[1..end] {
                    "text" => Piece::Text,
                    "text_pair" => Piece::Pair,
                    _ => return Err(error("only {text} and {text_pair} are known; write {{ for a brace")),
                };
                pieces.extend([Piece::Literal(std::mem::take(&mut literal)), piece]);
                remaining = &remaining[end + 1..];
            } else if next == '}' {
                return Err(error("a } closes nothing; write }} for a brace"));
            } else {
                literal.push(next);
                remaining = &remaining[next.len_utf8()..];
            }
        }
        if pieces.iter().filter(|piece| !matches!(piece, Piece::Literal(_))).count() > MAX_TEXTS {
            return Err(error("it has more than 64 places for texts"));
        }
        pieces.push(Piece::Literal(literal));
        if !pieces.contains(&Piece::Text) {
            return Err(error("it does not say where the {text} goes"));
        }
        pieces.retain(|piece| *piece != Piece::Literal(String::new()));
        Ok(Self { source: source.to_owned(), pieces })
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// Invalid template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("understand the template `{template}`: {problem}")]
#[non_exhaustive]
pub struct TemplateError {
    pub template: String,
    pub problem: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> String {
        template.parse::<Template>().expect("a template").input("A{text}", Some("B")).first().into_owned()
    }

    #[test]
    fn placeholders_are_replaced() {
        assert_eq!(rendered("Movie review: {text}"), "Movie review: A{text}");
        assert_eq!(rendered("{text}é{text_pair}{text}"), "A{text}éBA{text}");
        assert_eq!(rendered("{{{text}}} }}"), "{A{text}} }");
        assert!(!"{text}".parse::<Template>().expect("a template").takes_pair());
        assert!("{text} {text_pair}".parse::<Template>().expect("a template").takes_pair());
        assert_eq!("<{text}>".parse::<Template>().expect("a template").input("A", Some("B")).second(), Some("B"));
        assert_eq!("{text}{text_pair}".parse::<Template>().expect("a template").input("A", Some("B")).second(), None);
        assert_eq!("é: {text_pair}<{text}".parse::<Template>().expect("a template").text_start(), 5);
    }

    #[test]
    fn invalid_template_is_refused() {
        for text in ["", "Review:", "{text_pair}", "{texts}", "{text", "text}", "{}", "{text} {label}", "{{text}}"] {
            assert!(text.parse::<Template>().is_err(), "{text}");
        }
        assert!("{text}".repeat(MAX_TEXTS).parse::<Template>().is_ok());
        assert!("{text}".repeat(MAX_TEXTS + 1).parse::<Template>().is_err());
    }
}
