use askama::Template;

use crate::page::{Section, paragraph, render};
use crate::read::Run;
use crate::text;

/// Prompts that are shown at most.
const SHOWN: usize = 64;
/// Words of each.
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

/// The words that the learned prompts are nearest to.
pub(crate) fn section(run: &Run) -> Option<Section> {
    let all = &run.manifest.near_words;
    if all.is_empty() {
        return None;
    }
    let cut = if all.len() > SHOWN { format!(" The first {SHOWN} of {} prompts.", all.len()) } else { String::new() };
    let lead = format!(
        "Each learned prompt is a vector among those of words. These words of the vocabulary are nearest to it, with \
         their cosine similarity; a low one says that the prompt has gone where no word is.{cut}"
    );
    let prompts = all.iter().take(SHOWN).map(|near| Prompt {
        number: near.prompt,
        words: near
            .words
            .iter()
            .take(WORDS)
            .map(|(word, cosine)| {
                (text::cut(word, 32), text::or_missing(Some(*cosine), |c| format!("{c:.2}").replace('-', "−")))
            })
            .collect(),
    });
    Some(Section::new("words", "Prompts", [paragraph(&lead), render(&Words { prompts: prompts.collect() })]))
}
