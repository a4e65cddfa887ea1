use askama::Template;
use sepal_data::{Outcomes, Predictions};

use super::class_predictions::{self, Classes};
use crate::page::{Section, folded_in, paragraph, render};
use crate::read::Run;
use crate::text;

/// Maximum number of shown mistakes.
const SHOWN: usize = 50;
/// Number of mistakes outside of the collapsed list.
const FIRST: usize = 10;
/// Maximum number of shown characters of a text.
const MAX_CHARS: usize = 800;
/// Number of characters of a collapsed text.
const SHORT: usize = 240;

pub(crate) fn section(run: &Run) -> Option<Section> {
    let predictions = run.predictions.as_ref()?;
    let (title, what, mistakes) = match &predictions.outcomes {
        Outcomes::Class { label, predicted } => {
            let classes = Classes::new(&run.manifest.labels, predictions, label, predicted);
            ("Most confident mistakes", "rows got a class that is not theirs", class_mistakes(&classes))
        }
        Outcomes::Value { label, predicted } => {
            ("Largest errors", "rows got a number that is not exactly theirs", value_mistakes(label, predicted))
        }
        Outcomes::Multi { label, predicted } => {
            let names = class_predictions::names(&run.manifest.labels, label.first().map_or(0, Vec::len));
            let found = label_mistakes(&names, label, predicted, &predictions.probabilities);
            ("Most confident mistakes", "times a label was given or missed wrongly", found)
        }
        Outcomes::Choice { label, predicted, options } => {
            let found = choice_mistakes(label, predicted, options, &predictions.probabilities);
            ("Most confident mistakes", "rows got an option that is not theirs", found)
        }
        Outcomes::Tags { label, predicted } => {
            let found = tag_mistakes(predictions, label, predicted);
            ("Most confident mistakes", "times a word got a tag that is not its own", found)
        }
        Outcomes::Text { label, predicted } => {
            let found = answer_mistakes(label, predicted, &predictions.logits);
            ("Least probable answers", "rows have another answer than the most probable tokens", found)
        }
    };
    let all = mistakes.len();
    let mut items: Vec<Item> = mistakes.into_iter().take(SHOWN).map(|mistake| mistake.item(predictions)).collect();
    let rows = text::count(predictions.len() as u64);
    let shown = if all > SHOWN { format!(" The {SHOWN} worst are below.") } else { String::new() };
    let lead = match (all, &predictions.outcomes) {
        (0, _) => format!("None in {rows} rows."),
        (_, Outcomes::Multi { .. } | Outcomes::Tags { .. }) => {
            format!("In {rows} rows, {} {what}.{shown}", text::count(all as u64))
        }
        _ => format!("{} of {rows} {what}.{shown}", text::count(all as u64)),
    };
    let mut parts = vec![paragraph(&lead)];
    let others = items.split_off(items.len().min(FIRST));
    if !items.is_empty() {
        parts.push(render(&List { items }));
    }
    if !others.is_empty() {
        parts.push(folded_in("more", &format!("{} more", others.len()), &render(&List { items: others })));
    }
    Some(Section::new("mistakes", title, parts))
}

/// Row with the weight of its mistake.
struct Mistake {
    row: usize,
    weight: f64,
    facts: Vec<Fact>,
}

struct Fact {
    name: &'static str,
    value: String,
    class: &'static str,
}

#[derive(Template)]
#[template(path = "mistakes.html")]
struct List {
    items: Vec<Item>,
}

struct Item {
    row: String,
    texts: Vec<Text>,
    facts: Vec<Fact>,
}

struct Text {
    short: Option<String>,
    whole: String,
}

impl Mistake {
    fn item(self, predictions: &Predictions) -> Item {
        let pair = predictions.pairs.as_ref().and_then(|pairs| pairs.get(self.row));
        let texts = predictions.texts.get(self.row).into_iter().chain(pair).map(|text| Text {
            short: (text.chars().nth(SHORT + 40).is_some()).then(|| text::cut(text, SHORT)),
            whole: text::cut(text, MAX_CHARS),
        });
        Item { row: text::count(self.row as u64 + 1), texts: texts.collect(), facts: self.facts }
    }
}

fn fact(name: &'static str, value: &str, class: &'static str) -> Fact {
    Fact { name, value: text::cut(value, 60), class }
}

/// Sorts the worst first; rows of the same weight keep their order.
fn sorted(mut mistakes: Vec<Mistake>) -> Vec<Mistake> {
    let weight = |mistake: &Mistake| if mistake.weight.is_nan() { f64::NEG_INFINITY } else { mistake.weight };
    mistakes.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
    mistakes
}

fn class_mistakes(classes: &Classes) -> Vec<Mistake> {
    let wrong = (0..classes.actual.len()).filter(|&row| !classes.hit(row));
    let mistakes = wrong.map(|row| {
        let (actual, predicted) = (classes.actual[row], classes.predicted[row]);
        let weight = classes.confidence(row);
        let mut facts = vec![
            fact("labelled", &classes.names[actual], "true"),
            fact("predicted", &classes.names[predicted], "wrong"),
            fact("probability", &text::percent(weight, 1), ""),
        ];
        // With two classes the other one has the complement.
        if classes.names.len() > 2 {
            facts.push(fact("of the label", &text::percent(classes.probability(row, actual), 1), ""));
        }
        Mistake { row, weight, facts }
    });
    sorted(mistakes.collect())
}

fn value_mistakes(actual: &[f32], predicted: &[f32]) -> Vec<Mistake> {
    let pairs = actual.iter().zip(predicted).enumerate().filter(|(_, (a, p))| a != p);
    let mistakes = pairs.map(|(row, (a, p))| {
        let error = f64::from(*p) - f64::from(*a);
        let sign = if error > 0.0 { "+" } else { "" };
        let facts = vec![
            fact("labelled", &text::digits(f64::from(*a), 4), "true"),
            fact("predicted", &text::digits(f64::from(*p), 4), "wrong"),
            fact("error", &format!("{sign}{}", text::digits(error, 4)), ""),
        ];
        // A NaN prediction is the worst mistake.
        Mistake { row, weight: if error.is_nan() { f64::INFINITY } else { error.abs() }, facts }
    });
    sorted(mistakes.collect())
}

fn choice_mistakes(
    actual: &[i64],
    predicted: &[i64],
    options: &[Vec<String>],
    probabilities: &[Vec<f32>],
) -> Vec<Mistake> {
    let option = |row: usize, index: i64| {
        let index = usize::try_from(index).ok();
        index.and_then(|index| options.get(row)?.get(index)).map_or("", String::as_str)
    };
    let wrong = (0..actual.len()).filter(|&row| predicted.get(row).is_some_and(|chosen| *chosen != actual[row]));
    let mistakes = wrong.map(|row| {
        let weight = probabilities.get(row).and_then(|row| row.iter().copied().reduce(f32::max));
        let weight = weight.map_or(f64::NAN, f64::from);
        let facts = vec![
            fact("labelled", option(row, actual[row]), "true"),
            fact("predicted", option(row, predicted[row]), "wrong"),
            fact("probability", &text::percent(weight, 1), ""),
        ];
        Mistake { row, weight, facts }
    });
    sorted(mistakes.collect())
}

fn tag_mistakes(predictions: &Predictions, actual: &[Vec<String>], predicted: &[Vec<String>]) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (row, (actual, predicted)) in actual.iter().zip(predicted).enumerate() {
        let words: Vec<&str> = predictions.texts.get(row).map_or(Vec::new(), |text| text.split_whitespace().collect());
        for (word, (actual, predicted)) in actual.iter().zip(predicted).enumerate().filter(|(_, (a, p))| a != p) {
            let probability = predictions.probabilities.get(row).and_then(|row| row.get(word));
            let weight = probability.map_or(f64::NAN, |&probability| f64::from(probability));
            let facts = vec![
                fact("word", words.get(word).copied().unwrap_or_default(), ""),
                fact("labelled", actual, "true"),
                fact("predicted", predicted, "wrong"),
                fact("probability", &text::percent(weight, 1), ""),
            ];
            mistakes.push(Mistake { row, weight, facts });
        }
    }
    sorted(mistakes)
}

fn answer_mistakes(actual: &[String], predicted: &[String], logits: &[Vec<f32>]) -> Vec<Mistake> {
    let pairs = actual.iter().zip(predicted).enumerate().filter(|(_, (a, p))| a.trim() != p.trim());
    let mistakes = pairs.map(|(row, (actual, predicted))| {
        let tokens = logits.get(row).map_or(&[][..], Vec::as_slice);
        let weight = -tokens.iter().map(|&number| f64::from(number)).sum::<f64>() / tokens.len().max(1) as f64;
        let facts = vec![
            fact("labelled", actual, "true"),
            fact("most probable", predicted, "wrong"),
            fact("mean loss", &text::digits(weight, 4), ""),
        ];
        Mistake { row, weight, facts }
    });
    sorted(mistakes.collect())
}

fn label_mistakes(
    names: &[String],
    actual: &[Vec<f32>],
    predicted: &[Vec<f32>],
    probabilities: &[Vec<f32>],
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (row, ((actual, predicted), probabilities)) in actual.iter().zip(predicted).zip(probabilities).enumerate() {
        for (label, ((actual, predicted), p)) in actual.iter().zip(predicted).zip(probabilities).enumerate() {
            let (is_labelled, is_predicted, p) = (*actual >= 0.5, *predicted >= 0.5, f64::from(*p));
            if is_labelled != is_predicted {
                let (name, class) = if is_labelled { ("missed", "true") } else { ("wrongly given", "wrong") };
                let facts = vec![fact(name, &names[label], class), fact("its probability", &text::percent(p, 1), "")];
                mistakes.push(Mistake { row, weight: if is_labelled { 1.0 - p } else { p }, facts });
            }
        }
    }
    sorted(mistakes)
}
