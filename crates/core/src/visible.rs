use std::borrow::Cow;
use std::fmt::Write;

/// Greatest number of characters of a peer's or a file's text that is shown.
const MAX_CHARS: usize = 400;

/// Returns a text of another machine or of a file as it may be shown on a terminal, in a log or on a page: on one line,
/// with control characters and characters that reorder or hide others written as `\u{1b}`, and of at most 400 characters.
/// Joiners inside words of scripts that need them, and in pictures, stay.
///
/// ```
/// assert_eq!(sepal_core::visible("gpu-3 ü"), "gpu-3 ü");
/// assert_eq!(sepal_core::visible("a\x1b[2J\n\u{202e}b"), r"a\u{1b}[2J\u{a}\u{202e}b");
/// ```
pub fn visible(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_CHARS && !characters(text).any(|(_, is_escaped)| is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::new();
    for (character, is_escaped) in characters(text).take(MAX_CHARS) {
        if is_escaped {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    if text.chars().nth(MAX_CHARS).is_some() {
        shown.push('…');
    }
    Cow::Owned(shown)
}

/// Returns a text of the program that may quote others, as it may be shown: with the characters that [`visible`] escapes
/// written as `\u{1b}`, but with its line breaks and tabs, and of any length.
///
/// ```
/// assert_eq!(sepal_core::visible_lines("read a\x1b[2Jb\n  because: x"), "read a\\u{1b}[2Jb\n  because: x");
/// ```
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    let is_layout = |character: char| matches!(character, '\n' | '\t');
    if !characters(text).any(|(character, is_escaped)| is_escaped && !is_layout(character)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for (character, is_escaped) in characters(text) {
        if is_escaped && !is_layout(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Returns a JSON text with the characters that [`visible`] escapes written as JSON does. Its values stay the same.
///
/// ```
/// assert_eq!(sepal_core::visible_json("{\n  \"a\": \"\u{202e}\u{e0041}\"\n}"), "{\n  \"a\": \"\\u202e\\udb40\\udc41\"\n}");
/// ```
pub fn visible_json(json: &str) -> Cow<'_, str> {
    let is_layout = |character: char| matches!(character, '\n' | '\t' | '\r');
    if !characters(json).any(|(character, is_escaped)| is_escaped && !is_layout(character)) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len());
    for (character, is_escaped) in characters(json) {
        if is_escaped && !is_layout(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Characters of a text, each with true if it is escaped.
fn characters(text: &str) -> impl Iterator<Item = (char, bool)> {
    let mut before = None;
    let mut characters = text.chars().peekable();
    std::iter::from_fn(move || {
        let character = characters.next()?;
        let is_escaped = is_hidden(character) && !is_joining(before, character, characters.peek().copied());
        before = Some(character);
        Some((character, is_escaped))
    })
}

/// True for a joiner between characters of scripts that use joiners (Arabic, Persian, Hindi and others, pictures), and for
/// the selector behind a picture. Between Latin letters, they would only hide a difference.
fn is_joining(before: Option<char>, character: char, after: Option<char>) -> bool {
    let is_joined = |neighbour: char| neighbour >= '\u{600}' && !neighbour.is_whitespace() && !is_hidden(neighbour);
    let is_selector = |neighbour: char| matches!(neighbour, '\u{fe0e}' | '\u{fe0f}');
    match character {
        '\u{200c}' | '\u{200d}' => {
            before.is_some_and(|before| is_joined(before) || is_selector(before)) && after.is_some_and(is_joined)
        }
        '\u{fe0e}' | '\u{fe0f}' => before.is_some_and(|before| before >= '\u{2000}' && is_joined(before)),
        _ => false,
    }
}

/// True for characters that move the cursor, change the terminal, reorder other characters, or take no space.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{115f}'
                | '\u{1160}'
                | '\u{17b4}'
                | '\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_texts_are_borrowed() {
        for text in ["", "a b", "Größe ≤ 3", "情感", "😀"] {
            assert!(matches!(visible(text), Cow::Borrowed(shown) if shown == text), "{text}");
        }
    }

    #[test]
    fn joiners_stay_in_words_and_pictures_that_need_them() {
        // Persian, Hindi, a scientist and a heart on fire.
        let texts = ["می\u{200c}شود", "क्\u{200d}ष", "👩\u{200d}🔬", "❤\u{fe0f}\u{200d}🔥"];
        for text in texts {
            assert!(matches!(visible(text), Cow::Borrowed(shown) if shown == text), "{text}");
            assert_eq!((visible_lines(text).as_ref(), visible_json(text).as_ref()), (text, text));
        }
        assert_eq!(visible("go\u{200d}od"), r"go\u{200d}od");
        assert_eq!(visible("م\u{200c}"), r"م\u{200c}");
        assert_eq!(visible("م\u{200c}\u{200c}م"), r"م\u{200c}\u{200c}م");
        assert_eq!(visible("good\u{fe0f}"), r"good\u{fe0f}");
    }

    #[test]
    fn hidden_characters_are_written_as_escapes() {
        let pairs = [
            ("\u{1b}]0;owned\u{7}", r"\u{1b}]0;owned\u{7}"),
            ("a\r\nb\tc\0\u{7f}\u{9b}1m", r"a\u{d}\u{a}b\u{9}c\u{0}\u{7f}\u{9b}1m"),
            ("\u{202e}\u{2066}x\u{200d}\u{feff}\u{e0041}", r"\u{202e}\u{2066}x\u{200d}\u{feff}\u{e0041}"),
            ("\u{2028}\u{ad}", r"\u{2028}\u{ad}"),
        ];
        for (text, shown) in pairs {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn lines_of_the_program_keep_their_breaks() {
        assert!(matches!(visible_lines("a\n  b\tc"), Cow::Borrowed(_)));
        assert_eq!(visible_lines("a\r\n\u{1b}]0;x\u{7}\u{202e}"), "a\\u{d}\n\\u{1b}]0;x\\u{7}\\u{202e}");
        assert_eq!(visible_lines(&"x".repeat(900)).len(), 900);
    }

    #[test]
    fn long_texts_are_cut() {
        let shown = visible(&"ü".repeat(500)).into_owned();
        assert_eq!(shown, format!("{}…", "ü".repeat(400)));
        assert_eq!(visible(&"x".repeat(400)).len(), 400);
        assert_eq!(visible(&"ü".repeat(400)), "ü".repeat(400));
    }
}
