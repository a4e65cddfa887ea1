use std::fmt;
use std::str::FromStr;

use sepal_tokenize::{self as tokenize, Input};

/// A text around the texts of a row: `Movie review: {text}`.
///
/// `{text}` and `{text_pair}` are replaced; `{{` and `}}` are braces. Where `{text_pair}` does not occur, the second
/// text, if there is one, is encoded as such.
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
    /// True if it holds `{text_pair}`.
    pub fn takes_pair(&self) -> bool {
        self.pieces.contains(&Piece::Pair)
    }

    /// The input of a model with these texts in it. `pair` goes where `{text_pair}` stands, or else becomes the second
    /// sequence.
    pub fn input<'a>(&'a self, text: &'a str, pair: Option<&'a str>) -> Input<'a> {
        let piece = |piece: &'a Piece| match piece {
            Piece::Literal(literal) => tokenize::Piece::Fixed(literal),
            Piece::Text => tokenize::Piece::Text(text),
            Piece::Pair => tokenize::Piece::Text(pair.unwrap_or_default()),
        };
        Input::of_pieces(self.pieces.iter().map(piece).collect(), pair.filter(|_| !self.takes_pair()))
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(source: &str) -> Result<Self, TemplateError> {
        let bad = |problem| TemplateError { template: source.to_owned(), problem };
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = source;
        while let Some(next) = rest.chars().next() {
            if rest.starts_with("{{") || rest.starts_with("}}") {
                literal.push(next);
                rest = &rest[2..];
            } else if next == '{' {
                let end = rest.find('}').ok_or_else(|| bad("a { is not closed; write {{ for a brace"))?;
                let piece = match &rest[1..end] {
                    "text" => Piece::Text,
                    "text_pair" => Piece::Pair,
                    _ => return Err(bad("only {text} and {text_pair} are known; write {{ for a brace")),
                };
                pieces.extend([Piece::Literal(std::mem::take(&mut literal)), piece]);
                rest = &rest[end + 1..];
            } else if next == '}' {
                return Err(bad("a } closes nothing; write }} for a brace"));
            } else {
                literal.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
        pieces.push(Piece::Literal(literal));
        if !pieces.contains(&Piece::Text) {
            return Err(bad("it does not say where the {text} goes"));
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

/// A text that is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("understand the template `{template}`: {problem}")]
#[non_exhaustive]
pub struct TemplateError {
    /// What was written.
    pub template: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> String {
        template.parse::<Template>().expect("a template").input("A{text}", Some("B")).first().into_owned()
    }

    #[test]
    fn texts_are_put_in() {
        assert_eq!(rendered("Movie review: {text}"), "Movie review: A{text}");
        assert_eq!(rendered("{text}é{text_pair}{text}"), "A{text}éBA{text}");
        assert_eq!(rendered("{{{text}}} }}"), "{A{text}} }");
        assert!(!"{text}".parse::<Template>().expect("a template").takes_pair());
        assert!("{text} {text_pair}".parse::<Template>().expect("a template").takes_pair());
        assert_eq!("<{text}>".parse::<Template>().expect("a template").input("A", Some("B")).second(), Some("B"));
        assert_eq!("{text}{text_pair}".parse::<Template>().expect("a template").input("A", Some("B")).second(), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "Review:", "{text_pair}", "{texts}", "{text", "text}", "{}", "{text} {label}", "{{text}}"] {
            assert!(text.parse::<Template>().is_err(), "{text}");
        }
    }
}
