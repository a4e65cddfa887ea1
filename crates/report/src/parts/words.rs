use askama::Template;

use crate::page::{Section, paragraph, render};
use crate::read::Run;
use crate::text;

/// Maximum number of shown prompts.
const SHOWN: usize = 64;
/// Maximum number of words of a prompt.
const WORDS: usize = 8;

#[derive(Template)]
#[template(path = "words.html")]
struct Words {
    prompts: Vec<Prompt>,
}

struct Prompt {
    number: usize,
    words: Vec<(String, String)>,
}

/// Section with the nearest tokens of the learned prompts.
pub(crate) fn section(run: &Run) -> Option<Section> {
    let all = &run.manifest.nearest_words;
    if all.is_empty() {
        return None;
    }
    let cut = if all.len() > SHOWN { format!(" The first {SHOWN} of {} prompts.", all.len()) } else { String::new() };
    let lead = format!(
        "Each learned prompt is a vector among those of the vocabulary's tokens. These are nearest to it; the number \
         with each is their cosine similarity, 1 for the same direction, and a low one says that the prompt has gone \
         where no token is. A space is shown as ␣, a line break as \\n.{cut}"
    );
    let shown = |(word, cosine): &(String, f64)| {
        let cosine = text::or_missing(Some(*cosine), |cosine| format!("{cosine:.2}").replace('-', "−"));
        (text::cut(&visible(word), 32), cosine)
    };
    let prompts = all
        .iter()
        .take(SHOWN)
        .map(|near| Prompt { number: near.prompt, words: near.words.iter().take(WORDS).map(shown).collect() });
    Some(Section::new("words", "Prompts", [paragraph(&lead), render(&Words { prompts: prompts.collect() })]))
}

/// Token with visible blanks; invisible characters are shown by their code points.
fn visible(token: &str) -> String {
    let is_invisible = |c: char| c.is_whitespace() || c.is_control() || "\u{200b}\u{2060}\u{feff}".contains(c);
    let mut shown = String::with_capacity(token.len());
    for c in token.chars() {
        match c {
            ' ' => shown.push('␣'),
            c if is_invisible(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    if shown.is_empty() { "(empty)".to_owned() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn visible_shows_blanks() {
        let found = [" film", "\n\t", "\u{a0}", "", "film"].map(visible);
        assert_eq!(found, ["␣film", r"\n\t", r"\u{a0}", "(empty)", "film"]);
    }
}
