//! Measures of options, of tagged words and of answers.

use sepal_metrics::{Scores, answers, entities};

use crate::page::{heading, missing};
use crate::table::{Cell, Table};
use crate::text;

/// Maximum number of types in a table.
const LISTED: usize = 200;

/// Table of chosen options: indices of the true and the predicted ones, and the options, `[rows]`.
pub(crate) fn choice_html(actual: &[i64], predicted: &[i64], options: &[Vec<String>]) -> Vec<String> {
    let rows = actual.len();
    if rows == 0 {
        return vec![missing("There are no rows to measure.")];
    }
    let hits = actual.iter().zip(predicted).filter(|(actual, predicted)| actual == predicted).count();
    let chance = options.iter().map(|options| 1.0 / options.len().max(1) as f64).sum::<f64>() / rows as f64;
    let mut table = Table::new("Chosen options", &["Measure", "Value"]);
    table.rows = vec![
        measure("Right", text::percent(hits as f64 / rows as f64, 2)),
        measure("By chance", text::percent(chance, 2)),
        measure("Rows", text::count(rows as u64)),
    ];
    vec![heading("Options"), table.html()]
}

/// Table of entities by type, for names of tags `[rows][words]`.
pub(crate) fn tags_html(actual: &[Vec<String>], predicted: &[Vec<String>]) -> Vec<String> {
    let Ok(scores) = entities::scores(&borrowed(predicted), &borrowed(actual)) else {
        return vec![heading("Entities"), missing("There are no words to measure.")];
    };
    let listed = scores.by_type.len().min(LISTED);
    let cut = if listed < scores.by_type.len() {
        format!("; the first {listed} of {} are listed", scores.by_type.len())
    } else {
        String::new()
    };
    let caption = format!("Each type of entity{cut}");
    let mut table = Table::new(caption, &["Type", "Precision", "Recall", "F1", "Entities"]);
    table.rows = scores.by_type.iter().take(LISTED).map(|(kind, scores)| row(Cell::cut(kind, 48), *scores)).collect();
    table.rows.push(row(Cell { class: "mean", ..Cell::words("all") }, scores.overall));
    vec![heading("Entities"), table.html()]
}

/// Table of answers: log-probabilities of their tokens, `[rows][tokens]`, and the texts.
pub(crate) fn answers_html(logits: &[Vec<f32>], actual: &[String], predicted: &[String]) -> Vec<String> {
    let wide: Vec<Vec<f64>> = logits.iter().map(|row| row.iter().map(|&number| f64::from(number)).collect()).collect();
    let same = actual.iter().zip(predicted).filter(|(actual, predicted)| actual.trim() == predicted.trim()).count();
    let tokens: usize = logits.iter().map(Vec::len).sum();
    let mut table = Table::new("Answers, each token after the right ones before it", &["Measure", "Value"]);
    table.rows = vec![
        measure("Perplexity", text::or_missing(answers::perplexity(&wide).ok(), |value| text::digits(value, 4))),
        measure("Same text", text::percent(same as f64 / actual.len().max(1) as f64, 2)),
        measure("Tokens", text::count(tokens as u64)),
        measure("Rows", text::count(actual.len() as u64)),
    ];
    vec![heading("Answers"), table.html()]
}

fn borrowed(rows: &[Vec<String>]) -> Vec<Vec<&str>> {
    rows.iter().map(|row| row.iter().map(String::as_str).collect()).collect()
}

fn measure(name: &str, value: String) -> Vec<Cell> {
    vec![Cell::words(name), Cell::number(value)]
}

fn row(name: Cell, Scores { precision, recall, f1, support }: Scores) -> Vec<Cell> {
    let scores = [precision, recall, f1].map(|score| Cell::number(format!("{score:.4}")));
    std::iter::once(name).chain(scores).chain([Cell::number(text::count(support as u64))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn entities_are_listed_by_type() {
        let actual = [owned(&["B-PER", "I-PER", "O"]), owned(&["B-LOC"])];
        let predicted = [owned(&["B-PER", "I-PER", "O"]), owned(&["O"])];
        let html = tags_html(&actual, &predicted).concat();
        assert!(html.contains("PER") && html.contains("LOC") && html.contains("0.6667"), "{html}");
        assert!(tags_html(&[], &[]).concat().contains("no words"));
    }

    #[test]
    fn options_are_compared_with_chance() {
        let options = [owned(&["a", "b"]), owned(&["a", "b", "c", "d"])];
        let html = choice_html(&[0, 3], &[0, 1], &options).concat();
        assert!(html.contains("50.00") && html.contains("37.50"), "{html}");
        assert!(choice_html(&[], &[], &[]).concat().contains("no rows"));
    }

    #[test]
    fn answers_have_their_perplexity() {
        let half = 0.5_f32.ln();
        let html = answers_html(&[vec![half], vec![half, half]], &owned(&["yes", "no"]), &owned(&[" yes", "so"]));
        let html = html.concat();
        assert!(html.contains("2.000") && html.contains("50.00"), "{html}");
    }
}
