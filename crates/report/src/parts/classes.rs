use askama::Template;

use super::labelled::Classes;
use crate::measures::{ClassScore, Confusion, label_score, macro_mean, weighted_mean};
use crate::page::{folded, heading, paragraph, render, side_by_side};
use crate::table::{Cell, Table};
use crate::text;

/// Labels that a table lists at most.
const LISTED: usize = 200;
/// Labels from which on their table is folded.
const FOLDED: usize = 40;
/// Classes that a confusion matrix shows at most.
const SHOWN: usize = 30;
/// Classes of a confusion matrix with shares beside the counts.
const ROOMY: usize = 8;

/// The table of classes and the confusion matrix.
pub(crate) fn html(classes: &Classes) -> Vec<String> {
    let confusion = Confusion::new(classes.names.len(), &classes.actual, &classes.predicted);
    let scores: Vec<ClassScore> = (0..confusion.len()).map(|class| confusion.score(class)).collect();
    let mut table = scores_table("Class", &classes.names, &scores);
    let accuracy = text::or_missing(confusion.accuracy(), |share| text::percent(share, 2));
    table.caption = format!("Each class; accuracy over all {accuracy}{}", table.caption);
    let matrix = matrix(&classes.names, &confusion);
    let mut parts = vec![heading("Classes")];
    if confusion.len() <= ROOMY {
        parts.push(side_by_side([table.html(), matrix]));
    } else {
        parts.extend([list(&table, classes.names.len()), heading("Confusion"), matrix]);
    }
    if confusion.len() > 3 {
        parts.push(pairs(&classes.names, &confusion));
    }
    parts
}

/// The table of labels of which a row may have several. Both are `[rows][n_labels]`.
pub(crate) fn several(names: &[String], actual: &[Vec<f32>], predicted: &[Vec<f32>]) -> String {
    let score = |label: usize| {
        let rows = actual.iter().zip(predicted);
        let is = |row: &[f32]| row.get(label).is_some_and(|value| *value >= 0.5);
        label_score(rows.map(|(actual, predicted)| (is(actual), is(predicted))))
    };
    let scores: Vec<ClassScore> = (0..names.len()).map(score).collect();
    let mut table = scores_table("Label", names, &scores);
    let exact = actual
        .iter()
        .zip(predicted)
        .filter(|(actual, predicted)| actual.iter().zip(*predicted).all(|(a, p)| (*a >= 0.5) == (*p >= 0.5)));
    let exact = exact.count() as f64 / actual.len() as f64;
    table.caption = format!("Each label; {} of rows have all labels right{}", text::percent(exact, 2), table.caption);
    heading("Labels") + &list(&table, names.len())
}

/// A long table is shown when it is asked for.
fn list(table: &Table, labels: usize) -> String {
    if labels > FOLDED { folded(&table.caption, &table.html()) } else { table.html() }
}

fn scores_table(what: &str, names: &[String], scores: &[ClassScore]) -> Table {
    let cut = if names.len() > LISTED {
        format!("; the first {LISTED} of {} are listed", names.len())
    } else {
        String::new()
    };
    let mut table = Table::new(cut, &[what, "Precision", "Recall", "F1", "Rows"]);
    let show = |value: Option<f64>| Cell::number(text::or_missing(value, |value| format!("{value:.4}")));
    let row = |name: Cell, score: &ClassScore| {
        vec![name, show(score.precision), show(score.recall), show(score.f1), Cell::number(text::count(score.support))]
    };
    let listed = names.iter().zip(scores).take(LISTED);
    table.rows = listed.map(|(name, score)| row(Cell::cut(name, 48), score)).collect();
    let mean = |name: &str| Cell { class: "mean", ..Cell::words(name) };
    if names.len() > 1 {
        table.rows.extend(macro_mean(scores).map(|score| row(mean("mean of all"), &score)));
        table.rows.extend(weighted_mean(scores).map(|score| row(mean("mean by rows"), &score)));
    }
    table
}

#[derive(Template)]
#[template(path = "confusion.html")]
struct Matrix {
    caption: String,
    roomy: bool,
    names: Vec<Name>,
    rows: Vec<Row>,
}

struct Name {
    short: String,
    whole: String,
}

struct Row {
    name: Name,
    cells: Vec<Field>,
    total: String,
}

struct Field {
    count: String,
    share: String,
    title: String,
    class: &'static str,
    /// From 0 to 100.
    heat: String,
}

fn name(name: &str) -> Name {
    Name { short: text::cut(name, 24), whole: text::cut(name, 120) }
}

fn matrix(names: &[String], confusion: &Confusion) -> String {
    let shown = shown(confusion);
    let cut = if shown.len() < names.len() {
        format!("; of {} classes the {} that are mistaken most", names.len(), shown.len())
    } else {
        String::new()
    };
    let rows = shown.iter().map(|&actual| Row {
        name: name(&names[actual]),
        cells: shown.iter().map(|&predicted| field(names, confusion, actual, predicted)).collect(),
        total: text::count(confusion.support(actual)),
    });
    render(&Matrix {
        caption: format!("Rows of each true class (down) by what was predicted (across){cut}"),
        roomy: shown.len() <= ROOMY,
        rows: rows.collect(),
        names: shown.iter().map(|&class| name(&names[class])).collect(),
    })
}

/// All classes, or the most mistaken ones, in their order.
fn shown(confusion: &Confusion) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..confusion.len()).collect();
    if classes.len() > SHOWN {
        let mistakes: Vec<u64> = classes
            .iter()
            .map(|&class| confusion.support(class) + confusion.predicted(class) - 2 * confusion.count(class, class))
            .collect();
        classes.sort_by_key(|&class| std::cmp::Reverse(mistakes[class]));
        classes.truncate(SHOWN);
        classes.sort_unstable();
    }
    classes
}

/// From this share of a row on, letters are drawn in the colour of the paper.
const DARK: f64 = 0.72;

fn field(names: &[String], confusion: &Confusion, actual: usize, predicted: usize) -> Field {
    let count = confusion.count(actual, predicted);
    let share = count as f64 / confusion.support(actual).max(1) as f64;
    let class = match (actual == predicted, share >= DARK) {
        _ if count == 0 => "none",
        (true, false) => "hit",
        (true, true) => "hit deep",
        (false, false) => "",
        (false, true) => "deep",
    };
    let (from, to) = (text::cut(&names[actual], 40), text::cut(&names[predicted], 40));
    let rows = text::counted(count, "row", "rows");
    Field {
        count: text::count(count),
        share: text::percent(share, 1),
        title: format!("{from} taken for {to}: {rows}, {}", text::percent(share, 1)),
        class,
        heat: format!("{:.0}", share * 100.0),
    }
}

/// The classes that are mistaken most often.
fn pairs(names: &[String], confusion: &Confusion) -> String {
    let mistaken = confusion.mistaken();
    if mistaken.is_empty() {
        return paragraph("No class was mistaken for another.");
    }
    let mut table = Table::new("What is mistaken most often", &["Class", "taken for", "Rows", "of the class"]);
    table.head[1].class = "";
    table.rows = mistaken
        .iter()
        .take(10)
        .map(|&(actual, predicted, rows)| {
            let share = rows as f64 / confusion.support(actual) as f64;
            let numbers = [text::count(rows), text::percent(share, 1)].map(Cell::number);
            [Cell::cut(&names[actual], 48), Cell::cut(&names[predicted], 48)].into_iter().chain(numbers).collect()
        })
        .collect();
    table.html()
}
