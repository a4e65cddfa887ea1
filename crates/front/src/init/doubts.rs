//! Questions about the detected labels.

use sepal_data::{ClassCount, LabelChoice, LabelKind, Survey};

use crate::args::InitArgs;
use crate::units::grouped;

/// Number of classes above which the column is rarely a label.
const MANY: usize = 30;
/// Maximum number of single-row classes to name.
const NAMED: usize = 3;
/// Values that may stand for a missing label.
const NOTHING: [&str; 7] = ["none", "null", "na", "n/a", "#n/a", "-", "?"];

pub(super) fn doubts(args: &InitArgs, label: &LabelChoice, found: &Survey) -> Vec<String> {
    let has = |kind: LabelKind| {
        let mut others = found.label.iter().chain(&found.label_alternatives);
        others.any(|other| other.column == label.column && other.kind == kind)
    };
    let is_kind_given = args.kind.is_some();
    [
        ordered(label).filter(|_| !is_kind_given && args.labels.is_empty() && has(LabelKind::Value)),
        other_kind(label, has(LabelKind::Class)).filter(|_| !is_kind_given),
        many(label),
        single(label),
        nothing(label),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn ordered(label: &LabelChoice) -> Option<String> {
    let is_named = label.classes.iter().any(|class| class.name.is_some());
    let [first, .., last] = label.classes.as_slice() else { return None };
    (label.kind == LabelKind::Class && label.classes.len() > 2 && !is_named).then(|| {
        let (least, most) = (&first.value, &last.value);
        format!(
            "are the labels degrees, from {least} to {most}? As classes they have no order: {most} for {least} is as wrong as \
             any other. `--as number` drafts a task that predicts the number (regression)"
        )
    })
}

fn other_kind(label: &LabelChoice, has_classes: bool) -> Option<String> {
    (label.kind == LabelKind::Multi && has_classes).then(|| {
        "does each row have several labels? A task is drafted that predicts any number of them (`multi_label`); \
         `--as class` takes what stands in a cell for one class"
            .to_owned()
    })
}

fn many(label: &LabelChoice) -> Option<String> {
    let (n, rows) = (label.classes.len(), label.classes.iter().map(|class| class.rows).sum::<usize>());
    (n > MANY).then(|| {
        format!(
            "are {} labels meant? Each has {:.1} rows in the mean. If `{}` is something else, name another column by --label; \
             if it is meant, merge those that are rare",
            grouped(n as u64),
            rows as f64 / n as f64,
            label.column
        )
    })
}

fn single(label: &LabelChoice) -> Option<String> {
    let single: Vec<&ClassCount> = label.classes.iter().filter(|class| class.rows == 1).collect();
    let names: Vec<String> = single.iter().take(NAMED).map(|class| format!("`{}`", class.value)).collect();
    let more = if single.len() > NAMED {
        format!(" and {} more", grouped((single.len() - NAMED) as u64))
    } else {
        String::new()
    };
    let names = format!("{}{more}", names.join(", "));
    match single.len() {
        0 => None,
        1 => Some(format!(
            "is {names} a label? It has one row, which is trained on or measured on and never both: correct it, take it out, \
             or add rows"
        )),
        _ => Some(format!(
            "are {names} labels? They have one row each, which is trained on or measured on and never both: correct them, \
             take them out, or add rows"
        )),
    }
}

fn nothing(label: &LabelChoice) -> Option<String> {
    let is_nothing = |class: &&ClassCount| NOTHING.contains(&class.value.to_lowercase().as_str());
    let class = label.classes.iter().find(is_nothing)?;
    Some(format!("does `{}` mean that there is no label? If so, take its {} out", class.value, super::rows(class.rows)))
}
