use std::path::PathBuf;

use arrow::datatypes::Schema;
use serde_json::Value;

use super::tags::SplitTally;
use super::tally::Tally;
use super::{Balance, ClassCount, ColumnChoice, ColumnKind, ColumnSurvey, LabelChoice, Survey};
use crate::labels::OUTPUT_SEPARATOR;
use crate::rows::TEXT_NAMES;
use crate::{Dialect, Format, LabelKind};

/// Common names of label columns, the most reliable first.
const LABEL_NAMES: &str = "label labels tags tag class target sentiment category intent emotion emotions topic \
    topics categories intents genres genre label_name score rating stars gold gold_label polarity stance toxicity \
    toxic is_duplicate answer similarity y classes";

const PAIR_NAMES: [(&str, &str); 16] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text", "text_pair"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "paragraph"),
    ("query", "passage"),
    ("query", "document"),
    ("claim", "evidence"),
    ("sentence_a", "sentence_b"),
    ("sent1", "sent2"),
    ("s1", "s2"),
];

/// Greatest number of distinct integers that are classes, unless they count from 0.
const MAX_INTEGER_CLASSES: usize = 20;
/// Mean number of words from which texts are not names of classes.
const MAX_NAME_WORDS: f64 = 5.0;

/// Chooses columns of texts and labels. The caller fills in path, format, dialect and completeness.
pub(super) fn choose(columns: Vec<ColumnSurvey>, tallies: &[Tally], schema: &Schema, rows: usize) -> Survey {
    let mut texts = texts(&columns, rows);
    let pair = pair(&columns);
    if let Some((first, _)) = &pair {
        texts.retain(|choice| choice.column != first.column);
        texts.insert(0, first.clone());
    }
    let pair = pair.map(|(_, second)| second);
    texts.retain(|choice| pair.as_ref().is_none_or(|pair| pair.column != choice.column));
    let mut texts = texts.into_iter();
    let text = texts.next();
    let taken = |name: &str| [&text, &pair].into_iter().flatten().any(|choice| choice.column == name);
    let usable = columns.iter().zip(tallies).filter(|(column, _)| !taken(&column.name));
    let mut labels: Vec<(usize, LabelChoice)> =
        usable.flat_map(|(column, tally)| labels(column, tally, schema, rows)).collect();
    labels.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    let mut labels = labels.into_iter().map(|(_, choice)| choice);
    let label = labels.next();
    let is_label = |choice: &ColumnChoice| label.as_ref().is_some_and(|label| label.column == choice.column);
    let text_alternatives = texts.filter(|choice| !is_label(choice)).collect();
    Survey {
        path: PathBuf::new(),
        format: Format::Csv,
        dialect: Dialect::default(),
        rows,
        is_complete: true,
        text,
        text_alternatives,
        pair,
        label,
        label_alternatives: labels.collect(),
        columns,
    }
}

/// Columns of texts, the most likely first.
fn texts(columns: &[ColumnSurvey], rows: usize) -> Vec<ColumnChoice> {
    let mut found: Vec<&ColumnSurvey> = columns.iter().filter(|column| column.kind == ColumnKind::Text).collect();
    let rank = |column: &ColumnSurvey| rank_of(TEXT_NAMES, &column.name);
    // Single words are identifiers if they are distinct, and classes if there are few.
    let is_prose = |column: &ColumnSurvey| {
        let unique = column.distinct.n * 10 >= (rows - column.missing - column.empty) * 9;
        let few = column.distinct.n * 10 <= rows;
        column.words.mean >= 1.5 && !(few && column.words.mean < 4.0) || rank(column).is_some() || !(unique || few)
    };
    if found.iter().any(|column| is_prose(column)) {
        found.retain(|column| {
            is_prose(column) && (rank_of(LABEL_NAMES, &column.name).is_none() || column.words.mean > 4.0)
        });
    }
    let longest = found.iter().map(|column| column.words.mean).fold(0.0, f64::max);
    let is_usual = |column: &ColumnSurvey| rank(column).filter(|_| column.words.mean * 4.0 >= longest);
    found.sort_by(|a, b| {
        let (first, second) = (is_usual(a).unwrap_or(usize::MAX), is_usual(b).unwrap_or(usize::MAX));
        first.cmp(&second).then(b.words.mean.total_cmp(&a.words.mean))
    });
    let reason = |column: &&ColumnSurvey| {
        let mean = format!("{:.1} words in the mean", column.words.mean);
        match () {
            () if is_usual(column).is_some() => format!("texts are often called so, and it has {mean}"),
            () if column.words.mean == longest => format!("its texts are the longest, with {mean}"),
            () => format!("it holds texts, with {mean}"),
        }
    };
    found.iter().map(|column| ColumnChoice { column: column.name.clone(), reason: reason(column) }).collect()
}

/// First and second texts, if two columns have names of pairs.
fn pair(columns: &[ColumnSurvey]) -> Option<(ColumnChoice, ColumnChoice)> {
    let text = |name: &str| {
        columns.iter().find(|column| column.kind == ColumnKind::Text && column.name.eq_ignore_ascii_case(name))
    };
    let (first, second) = PAIR_NAMES.iter().find_map(|(first, second)| Some((text(first)?, text(second)?)))?;
    let reason = format!("`{}` and `{}` are names of pairs of texts", first.name, second.name);
    let choice = |column: &ColumnSurvey| ColumnChoice { column: column.name.clone(), reason: reason.clone() };
    Some((choice(first), choice(second)))
}

/// Interpretations of a column as labels, with their scores.
fn labels(column: &ColumnSurvey, tally: &Tally, schema: &Schema, rows: usize) -> Vec<(usize, LabelChoice)> {
    let name = rank_of(LABEL_NAMES, &column.name);
    let filled = tally.filled();
    let values = tally.values.counts();
    let distinct = values.as_ref().map_or(column.distinct.n, Vec::len);
    let is_few = |values: &[(&str, usize)]| values.len() >= 2 && (name.is_some() || values.len() * 2 <= filled);
    let few = values.as_deref().is_some_and(is_few);
    let candidate = LabelCandidate { column, tally, schema, rows };
    let class = |score: usize| Some((score, candidate.classes(values.as_deref()?)));
    let value = |score: usize| Some((score, candidate.values()));
    // A common name outweighs all evidence from the cells.
    let base = name.map_or(0, |rank| 1000 - rank * 10);
    let found = match column.kind {
        ColumnKind::List => [candidate.lists(base + 5), None],
        ColumnKind::Boolean if distinct == 2 => [class(base + 6), None],
        ColumnKind::Text => {
            let is_short = column.words.mean < MAX_NAME_WORDS;
            let several = candidate.lists(base + 5).or_else(|| candidate.tags(base + 5, distinct));
            let class_score = if several.is_some() { base + 2 } else { base + 6 };
            [several, class(class_score).filter(|_| few && is_short)]
        }
        ColumnKind::Integer if few && (distinct <= MAX_INTEGER_CLASSES || is_numbered(values.as_deref())) => {
            [class(base + 6), value(1)]
        }
        ColumnKind::Integer | ColumnKind::Number if distinct >= 2 => {
            // Distinct integers are likely identifiers of rows.
            let is_id = column.kind == ColumnKind::Integer && distinct * 10 >= filled * 9;
            let classes = class(0).filter(|_| few && !is_id && distinct <= MAX_INTEGER_CLASSES);
            if is_id && name.is_none() { [None, None] } else { [value(base + 3), classes] }
        }
        _ => [None, None],
    };
    found.into_iter().flatten().collect()
}

/// Reason why [`labels`] returns no interpretation of a column.
pub(super) fn no_labels_reason(column: &ColumnSurvey) -> String {
    let distinct = column.distinct.n;
    match column.kind {
        ColumnKind::Empty => "it has no values".to_owned(),
        _ if distinct == 1 => "it has the same value in each row".to_owned(),
        ColumnKind::Integer => format!(
            "it has {distinct} different whole numbers; whole numbers are classes \
             where there are at most {MAX_INTEGER_CLASSES} of them or they count from 0, each for two rows or more"
        ),
        ColumnKind::Text => format!(
            "it has {distinct} different texts of {:.1} words in the mean; names of classes have fewer than \
             {MAX_NAME_WORDS} words and two rows or more each",
            column.words.mean
        ),
        _ => "it has neither a few values nor numbers".to_owned(),
    }
}

struct LabelCandidate<'a> {
    column: &'a ColumnSurvey,
    tally: &'a Tally,
    schema: &'a Schema,
    rows: usize,
}

impl LabelCandidate<'_> {
    fn classes(&self, values: &[(&str, usize)]) -> LabelChoice {
        let numbered = is_numbered(Some(values));
        let what = match numbered {
            true => format!("the numbers 0 to {}, which represent classes", values.len() - 1),
            false => format!("{} different values in {} rows", values.len(), self.tally.filled()),
        };
        self.choice(LabelKind::Class, values, numbered, &what)
    }

    /// Lists, including texts that contain lists.
    fn lists(&self, score: usize) -> Option<(usize, LabelChoice)> {
        let lists = self.tally.lists()?;
        if let Some(hot) = lists.multi_hot() {
            let indices: Vec<String> = (0..hot.len()).map(|index| index.to_string()).collect();
            let values: Vec<(&str, usize)> = indices.iter().map(String::as_str).zip(hot.iter().copied()).collect();
            let what = "lists of numbers from 0 to 1, one for each class";
            return Some((score, self.choice(LabelKind::Multi, &values, true, what)));
        }
        let values = lists.split.values.counts().filter(|values| !values.is_empty())?;
        let what = format!("lists of {} different labels", values.len());
        Some((score, self.choice(LabelKind::Multi, &values, is_numbered(Some(&values)), &what)))
    }

    /// Texts of several labels between separators, if labels recur in different combinations. Constant combinations are
    /// labels only between `|`.
    fn tags(&self, score: usize, distinct: usize) -> Option<(usize, LabelChoice)> {
        let has_tags = |(separator, split): &(char, &SplitTally)| {
            let Some(values) = split.values.counts() else { return false };
            let n = values.iter().map(|(_, count)| count).sum::<usize>();
            let words = values.iter().map(|(value, count)| value.split_whitespace().count() * count).sum::<usize>();
            let is_prose = words as f64 >= MAX_NAME_WORDS * n as f64;
            let is_usual = rank_of(LABEL_NAMES, &self.column.name).is_some();
            let recurs = is_usual || values.len() * 2 <= n;
            let is_shared =
                values.len() <= distinct || *separator == OUTPUT_SEPARATOR || (*separator == ';' && split.varies());
            values.len() >= 2 && recurs && !is_prose && is_shared
        };
        let (separator, split) = self.tally.separated.occurring().find(has_tags)?;
        let values = split.values.counts()?;
        let rows = if split.cells == 1 { "row has" } else { "rows have" };
        let what =
            format!("{} different labels; {} {rows} several, separated by `{separator}`", values.len(), split.cells);
        Some((score, self.choice(LabelKind::Multi, &values, is_numbered(Some(&values)), &what)))
    }

    fn choice(&self, kind: LabelKind, values: &[(&str, usize)], numbered: bool, what: &str) -> LabelChoice {
        let names = class_names(self.schema, &self.column.name);
        let name = |value: &str| names.get(value.parse::<usize>().ok()?).cloned();
        let class = |&(value, rows): &(&str, usize)| ClassCount { value: value.to_owned(), name: name(value), rows };
        let mut classes: Vec<ClassCount> = values.iter().map(class).collect();
        let number = |class: &ClassCount| class.value.parse::<f64>().unwrap_or(f64::INFINITY);
        classes.sort_by(|a, b| number(a).total_cmp(&number(b)));
        let counts = || classes.iter().map(|class| class.rows);
        let (most, least, all) = (counts().max(), counts().min(), counts().sum::<usize>());
        let balance = most
            .zip(least.filter(|least| *least > 0))
            .map(|(most, least)| Balance { largest: most as f64 / all as f64, ratio: most as f64 / least as f64 });
        LabelChoice { numbered, balance, classes, ..self.base_choice(kind, what) }
    }

    fn values(&self) -> LabelChoice {
        let (least, greatest) = self.tally.range.unwrap_or_default();
        let what = format!("numbers from {least} to {greatest}");
        LabelChoice { range: self.tally.range, ..self.base_choice(LabelKind::Value, &what) }
    }

    fn base_choice(&self, kind: LabelKind, what: &str) -> LabelChoice {
        LabelChoice {
            column: self.column.name.clone(),
            kind,
            reason: reason(self.column, what),
            classes: Vec::new(),
            numbered: false,
            missing: self.rows - self.tally.filled(),
            first_missing: self.tally.first_missing(),
            balance: None,
            range: None,
        }
    }
}

fn reason(column: &ColumnSurvey, what: &str) -> String {
    match rank_of(LABEL_NAMES, &column.name) {
        Some(_) => format!("labels are often called so, and it holds {what}"),
        None => format!("it holds {what}"),
    }
}

/// Returns true if the values are the numbers from 0 without a gap.
fn is_numbered(values: Option<&[(&str, usize)]>) -> bool {
    let number = |(value, _): &(&str, usize)| value.parse::<f64>().ok().filter(|n| n.fract() == 0.0 && *n >= 0.0);
    let Some(values) = values.filter(|values| values.len() >= 2) else { return false };
    let Some(mut numbers) = values.iter().map(number).collect::<Option<Vec<f64>>>() else { return false };
    numbers.sort_by(f64::total_cmp);
    numbers.iter().enumerate().all(|(i, number)| *number == i as f64)
}

/// Names of a column's classes in the file's metadata of the library `datasets`.
fn class_names(schema: &Schema, column: &str) -> Vec<String> {
    let metadata = schema.metadata().get("huggingface").and_then(|text| serde_json::from_str::<Value>(text).ok());
    let feature = metadata.as_ref().map(|value| &value["info"]["features"][column]);
    let names =
        feature.and_then(|feature| feature["names"].as_array().or_else(|| feature["feature"]["names"].as_array()));
    names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn rank_of(names: &str, name: &str) -> Option<usize> {
    names.split(' ').position(|known| known.eq_ignore_ascii_case(name.trim()))
}
