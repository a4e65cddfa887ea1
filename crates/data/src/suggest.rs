//! Guesses at the intended name or setting, for error texts.

use std::borrow::Cow;
use std::error::Error;

use crate::{Format, LabelError, ReadError};

/// Setting that would settle an error. The layer that reads settings knows their names in a file or on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// This delimiter between cells.
    Delimiter(char),
    /// The character encoding that the file has.
    Encoding,
    /// This file format.
    Format(Format),
    /// Leaving out rows without a text or label.
    SkipEmpty,
    /// Names of columns that the file has.
    Columns,
}

impl Remedy {
    /// Returns the remedy that an error or one of its causes suggests.
    pub fn find(error: &(dyn Error + 'static)) -> Option<Self> {
        std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
            let read = error.downcast_ref::<ReadError>().and_then(ReadError::remedy);
            read.or_else(|| error.downcast_ref::<LabelError>().and_then(LabelError::remedy))
        })
    }
}

/// Names of columns for a message, which a file may have in thousands.
pub(crate) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 50;
    let mut shown: Vec<Cow<'_, str>> = names.iter().take(SHOWN).map(|name| sepal_core::visible(name)).collect();
    if names.len() > SHOWN {
        shown.push(format!("and {} more", names.len() - SHOWN).into());
    }
    shown.join(", ")
}

/// `; did you mean NAME?`, or nothing.
pub(crate) fn hint(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// Setting by which a header of one cell becomes several cells, if another delimiter seems to separate them.
pub(crate) fn delimiter_remedy<S: AsRef<str>>(columns: &[S]) -> Option<Remedy> {
    let [header] = columns else { return None };
    let remedies =
        [('\t', Remedy::Format(Format::Tsv)), (';', Remedy::Delimiter(';')), (',', Remedy::Format(Format::Csv))];
    remedies.into_iter().find(|(delimiter, _)| header.as_ref().contains(*delimiter)).map(|(_, remedy)| remedy)
}

/// As [`delimiter_remedy`], with any delimiter by which one of the cells is `column`.
pub(crate) fn delimiter_remedy_for(columns: &[String], column: &str) -> Option<Remedy> {
    delimiter_remedy(columns).or_else(|| other_delimiter(columns, column).map(Remedy::Delimiter))
}

/// Character that separates the only cell of a header into several, one of which is `column`.
pub(crate) fn other_delimiter(columns: &[String], column: &str) -> Option<char> {
    let [header] = columns else { return None };
    let separates = |c: &char| {
        c.is_ascii() && !c.is_alphanumeric() && !"_- .".contains(*c) && header.split(*c).any(|cell| cell == column)
    };
    header.chars().find(separates)
}

/// Text about the delimiter that a remedy names, or nothing.
pub(crate) fn delimiter_hint(remedy: Option<Remedy>) -> String {
    let delimiter = match remedy {
        Some(Remedy::Format(Format::Tsv)) => "tabs".to_owned(),
        Some(Remedy::Format(Format::Csv)) => "commas".to_owned(),
        Some(Remedy::Delimiter(';')) => "semicolons".to_owned(),
        Some(Remedy::Delimiter(delimiter)) => format!("`{delimiter}`"),
        _ => return String::new(),
    };
    format!("; its fields seem to be separated by {delimiter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiter_is_found_by_a_known_field() {
        let check =
            |header: &str, expected| assert_eq!(other_delimiter(&[header.to_owned()], "text"), expected, "{header}");
        check("id^text^label", Some('^'));
        check("text\u{1}label", Some('\u{1}'));
        check("text", None);
        check("review_text", None);
        check("the text", None);
        check("texts^label", None);
        let remedy = delimiter_remedy_for(&["id^text".to_owned()], "text");
        assert_eq!(remedy, Some(Remedy::Delimiter('^')));
        assert!(delimiter_hint(remedy).contains("separated by `^`"));
    }

    #[test]
    fn other_delimiters_are_suggested() {
        assert_eq!(delimiter_remedy(&["id;text;label"]), Some(Remedy::Delimiter(';')));
        assert_eq!(delimiter_remedy(&["id\ttext"]), Some(Remedy::Format(Format::Tsv)));
        assert_eq!(delimiter_remedy(&["id,text"]), Some(Remedy::Format(Format::Csv)));
        assert_eq!(delimiter_remedy(&["a;b", "c"]), None);
        assert!(delimiter_hint(delimiter_remedy(&["id;text"])).contains("semicolons"));
    }
}
