use askama::Template;
use sepal_metrics::{Average, MetricError, Scores, multilabel as labels};

use super::class_predictions::Classes;
use crate::measures::Confusion;
use crate::page::{folded, heading, missing, paragraph, render, side_by_side};
use crate::table::{Cell, Table};
use crate::text;

/// Maximum number of labels in a table.
const LISTED: usize = 200;
/// Number of labels from which the table is collapsed.
const FOLDED: usize = 40;
/// Maximum number of classes in a confusion matrix.
const SHOWN: usize = 30;
/// Maximum number of classes in a confusion matrix with shares beside the counts.
const ROOMY: usize = 8;

/// Maximum number of rows times labels that are measured.
const MAX_CELLS: usize = 1 << 27;

/// Table of classes and confusion matrix.
pub(crate) fn html(classes: &Classes) -> Vec<String> {
    let Ok(confusion) = Confusion::new(classes.names.len(), &classes.actual, &classes.predicted) else {
        return vec![heading("Classes"), missing("There are no rows to measure.")];
    };
    let got: Vec<usize> = (0..confusion.len()).map(|class| confusion.predicted(class)).collect();
    let mut table = scores_table("Class", &classes.names, &confusion.scores, &got, confusion.means);
    let hits: usize = (0..confusion.len()).map(|class| confusion.count(class, class)).sum();
    let accuracy = text::percent(hits as f64 / classes.actual.len() as f64, 2);
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

/// Table of labels for rows with several labels. Both are `[rows][n_labels]`.
pub(crate) fn labels_html(names: &[String], actual: &[Vec<f32>], predicted: &[Vec<f32>]) -> String {
    // Rows may be shorter than the first one, which tells the number of labels.
    if names.len().saturating_mul(actual.len()) > MAX_CELLS {
        return heading("Labels") + &missing("There are too many rows and labels to measure.");
    }
    let to_bool = |rows: &[Vec<f32>]| -> Vec<Vec<bool>> {
        let has_label = |label: usize, row: &[f32]| row.get(label).is_some_and(|value| *value >= 0.5);
        rows.iter().map(|row| (0..names.len()).map(|label| has_label(label, row)).collect()).collect()
    };
    let table = labels_table(names, &to_bool(actual), &to_bool(predicted));
    let shown = table.map_or_else(|_| missing("There are no rows to measure."), |table| list(&table, names.len()));
    heading("Labels") + &shown
}

fn labels_table(names: &[String], actual: &[Vec<bool>], predicted: &[Vec<bool>]) -> Result<Table, MetricError> {
    let mean = |how| labels::averaged(predicted, actual, how);
    let got: Vec<usize> = (0..names.len()).map(|label| predicted.iter().filter(|row| row[label]).count()).collect();
    let means = [mean(Average::Macro)?, mean(Average::Weighted)?];
    let mut table = scores_table("Label", names, &labels::per_label(predicted, actual)?, &got, means);
    let exact = text::percent(labels::exact_match(predicted, actual)?, 2);
    table.caption = format!("Each label; {exact} of rows have all labels right{}", table.caption);
    Ok(table)
}

/// Collapses a long table.
fn list(table: &Table, labels: usize) -> String {
    if labels > FOLDED { folded(&table.caption, &table.html()) } else { table.html() }
}

/// `got` is the number of predictions of each name. A score with a zero denominator is shown as missing.
fn scores_table(what: &str, names: &[String], scores: &[Scores], got: &[usize], means: [Scores; 2]) -> Table {
    let cut = if names.len() > LISTED {
        format!("; the first {LISTED} of {} are listed", names.len())
    } else {
        String::new()
    };
    let mut table = Table::new(cut, &[what, "Precision", "Recall", "F1", "Rows"]);
    let show = |value: f64, denominator: usize| {
        Cell::number(text::or_missing((denominator > 0).then_some(value), |value| format!("{value:.4}")))
    };
    let row = |name: Cell, Scores { precision, recall, f1, support }: Scores, got: usize| {
        let measures = [show(precision, got), show(recall, support), show(f1, got + support)];
        std::iter::once(name).chain(measures).chain([Cell::number(text::count(support as u64))]).collect()
    };
    let listed = names.iter().zip(scores.iter().zip(got)).take(LISTED);
    table.rows = listed.map(|(name, (score, &got))| row(Cell::cut(name, 48), *score, got)).collect();
    if names.len() > 1 {
        let mean = |name: &str| Cell { class: "mean", ..Cell::words(name) };
        let all = ["mean of all", "mean by rows"].into_iter().zip(means);
        table.rows.extend(all.map(|(name, score)| row(mean(name), score, score.support)));
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
        total: text::count(confusion.support(actual) as u64),
    });
    render(&Matrix {
        caption: format!("Rows of each true class (down) by what was predicted (across){cut}"),
        roomy: shown.len() <= ROOMY,
        rows: rows.collect(),
        names: shown.iter().map(|&class| name(&names[class])).collect(),
    })
}

/// All classes, or the most confused ones, in their order.
fn shown(confusion: &Confusion) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..confusion.len()).collect();
    if classes.len() > SHOWN {
        let mistakes: Vec<usize> = classes
            .iter()
            .map(|&class| confusion.support(class) + confusion.predicted(class) - 2 * confusion.count(class, class))
            .collect();
        classes.sort_by_key(|&class| std::cmp::Reverse(mistakes[class]));
        classes.truncate(SHOWN);
        classes.sort_unstable();
    }
    classes
}

/// Share of a row from which letters have the colour of the paper.
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
    let rows = text::counted(count as u64, "row", "rows");
    Field {
        count: text::count(count as u64),
        share: text::percent(share, 1),
        title: format!("{from} taken for {to}: {rows}, {}", text::percent(share, 1)),
        class,
        heat: format!("{:.0}", share * 100.0),
    }
}

/// Table of the most confused pairs of classes.
fn pairs(names: &[String], confusion: &Confusion) -> String {
    let mistaken = confusion.mistaken();
    if mistaken.is_empty() {
        return paragraph("No class was mistaken for another.");
    }
    let mut table = Table::new("What is mistaken most often", &["Class", "taken for", "Rows", "of the class"]);
    table.head[1].class = "";
    let row = |&(actual, predicted, rows): &(usize, usize, usize)| {
        let share = rows as f64 / confusion.support(actual) as f64;
        let numbers = [text::count(rows as u64), text::percent(share, 1)].map(Cell::number);
        [Cell::cut(&names[actual], 48), Cell::cut(&names[predicted], 48)].into_iter().chain(numbers).collect()
    };
    table.rows = mistaken.iter().take(10).map(row).collect();
    table.html()
}
