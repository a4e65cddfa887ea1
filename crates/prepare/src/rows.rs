//! Labelled rows of a pipeline: from sources to batches.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sepal_assets::{Asset, Assets};
use sepal_config::spec::{FileFormat, LoaderSpec, RowsSpec, Spec};
use sepal_core::{Labels, RowForm, Task};
use sepal_data::{
    FolderError, Format, LabelSet, Loader, LoaderConfig, SkippedRows, Table, TableSpec, Template, TokenSpec, TokenTable,
};
use sepal_tokenize::{Tokenizer, Truncation, TruncationSide, Windows};
use sepal_track::DataFacts;

use crate::data_source::DataSource;
use crate::error::{BoxError, DataError};
use crate::events::{Event, Observer};
use crate::fetch::Fetcher;

/// Rows of a run as batches.
#[derive(Debug)]
pub struct PreparedData {
    /// Training batches.
    pub train: Loader,
    /// Validation batches.
    pub validation: Option<Loader>,
    /// Description for the manifest.
    pub facts: DataFacts,
    /// Texts that were shortened or divided.
    pub truncation: TruncationStats,
    /// Template of the rows.
    pub template: Option<Template>,
    /// Limit of the tokens of a row.
    pub limit: Truncation,
    /// Validation rows with their labels, for files of predictions.
    pub rows: Option<(Table, Labels)>,
}

/// Texts that were shortened or divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TruncationStats {
    /// Rows whose text is shortened.
    pub rows: usize,
    /// Tokens removed from them.
    pub tokens: usize,
    /// Largest number of tokens removed from one row.
    pub max: usize,
    /// Rows whose text is divided into windows.
    pub divided: usize,
}

impl TruncationStats {
    fn new(tables: &[&TokenTable]) -> Self {
        let removed = || tables.iter().flat_map(|tokens| tokens.truncated()).copied();
        Self {
            rows: removed().filter(|&tokens| tokens > 0).count(),
            tokens: removed().sum(),
            max: removed().max().unwrap_or(0),
            divided: tables.iter().map(|tokens| tokens.n_divided()).sum(),
        }
    }
}

/// Rows as they were read, before the labels of a task are known.
#[derive(Debug)]
pub struct RawRows {
    source: DataSource,
    train: Table,
    /// Validation rows, unless they are to be split off the training rows.
    validation: Option<Table>,
    /// Empty rows that were left out of both.
    skipped: SkippedRows,
}

impl RawRows {
    fn counted(self) -> Self {
        let tables = std::iter::once(&self.train).chain(&self.validation);
        let skipped = tables.fold(SkippedRows::default(), |skipped, table| skipped.and(table.skipped()));
        Self { skipped, ..self }
    }

    /// Leaves out rows without a label, if the pipeline asks for it.
    fn labelled(self, task: &Task) -> Result<Self, DataError> {
        let column = self.source.spec.label.clone();
        if !self.source.spec.skip_empty {
            return Ok(self);
        }
        let set = LabelSet::of_task(task).map_err(training_error)?;
        let labelled = |table: Table| set.skip_unlabelled(table, &column, task.kind());
        let train = labelled(self.train).map_err(training_error)?;
        let validation = self.validation.map(labelled).transpose().map_err(validation_error)?;
        Ok(Self { source: self.source, train, validation, skipped: self.skipped }.counted())
    }

    /// Labels of the task. Lists of labels have one layout in training and validation rows.
    fn label_set(&self, task: &Task) -> Result<LabelSet, DataError> {
        let set = LabelSet::of_task(task).map_err(training_error)?;
        Ok(match task.has_label_lists() {
            true => set.with_inferred_layout(std::iter::once(&self.train).chain(&self.validation)),
            false => set,
        })
    }

    /// Splits validation rows off the training rows, if the pipeline asks for it.
    fn split(self, seed: u64, set: &LabelSet, task: &Task) -> Result<Self, DataError> {
        let Some(fraction) = self.source.spec.validation_split.filter(|_| self.validation.is_none()) else {
            return Ok(self);
        };
        let labels = set.labels_as(&self.train, task.kind()).map_err(training_error)?;
        let (training_rows, validation_rows) = sepal_data::split(&labels, seed, fraction).map_err(training_error)?;
        Ok(Self {
            train: self.train.select(&training_rows),
            validation: Some(self.train.select(&validation_rows)),
            ..self
        })
    }
}

/// Fetches the data and reads the columns, without a model: problems of texts are reported before one is fetched. Labels are
/// read by the task, in [`prepare_rows`], with a row without a text that follows a label that may be missing.
///
/// # Errors
/// [`DataError`].
pub fn read_rows(spec: &Spec, fetcher: &mut Fetcher<'_>) -> Result<RawRows, DataError> {
    let source = DataSource::choose(spec, fetcher)?;
    let train = read_asset(&source.spec, &source.train, &["train"], WithoutSplits::All).map_err(training_error)?;
    let names = [&sepal_data::VALIDATION_SPLITS[..], &["test"]].concat();
    let validation = source.validation.as_ref().map(|asset| {
        // All files of a folder without splits are training rows already.
        let is_shared = asset.path == source.train.path;
        let without_splits = if is_shared { WithoutSplits::Refuse } else { WithoutSplits::All };
        read_asset(&source.spec, asset, &names, without_splits)
    });
    let validation = validation.transpose().map_err(validation_error)?;
    Ok(RawRows { source, train, validation, skipped: SkippedRows::default() }.counted())
}

/// Reads the labels of a task and encodes the rows as batches.
///
/// # Errors
/// [`DataError::Rows`] if labels or texts do not fit the task.
pub fn prepare_rows(
    spec: &Spec,
    rows: RawRows,
    assets: &Assets,
    tokenizer: &Tokenizer,
    task: &Task,
    observer: &mut dyn Observer,
) -> Result<PreparedData, DataError> {
    let windows = spec.data.long_texts.windows();
    check_windows(windows, task).map_err(training_error)?;
    let source_digest = rows.train.digest().to_owned();
    let rows = rows.labelled(task)?;
    let set = rows.label_set(task)?;
    let RawRows { source, train, validation, skipped } = rows.split(spec.train.seed, &set, task)?;
    if let Some(first) = &skipped.first {
        let rows = if skipped.rows == 1 { "row is" } else { "rows are" };
        observer.event(Event::Notice(&format!("data: {} empty {rows} left out, the first is {first}", skipped.rows)));
    }
    let read = |table: &Table| -> Result<Labels, BoxError> { Ok(set.labels_as(table, task.kind())?) };
    let all_labels = read(&train).map_err(training_error)?;
    let (train, train_labels) = match &spec.data.few_shot {
        Some(few) => {
            let seed = few.seed.unwrap_or(spec.train.seed);
            let chosen = sepal_data::few_shot(&all_labels, set.names(), seed, few.per_class).map_err(training_error)?;
            (train.select(&chosen), all_labels.select(&chosen))
        }
        None => (train, all_labels),
    };
    sepal_data::check_classes(&train_labels, &set).map_err(training_error)?;
    let side = truncation_side(spec, tokenizer);
    let template = source.spec.template.as_ref().map(|template| template.parse::<Template>()).transpose();
    let template = template.map_err(training_error)?;
    let tokens = TokenSpec::new(spec.data.max_length).with_side(side).with_form(task.row_form()).with_windows(windows);
    let mut tokens = tokens.with_cache(assets.options().cache.join("tokens"));
    if let Some(template) = &template {
        tokens = tokens.with_template(template.clone());
    }
    let limit = tokens.truncation;
    let build = |table: &Table| TokenTable::build(table, tokenizer, &tokens);
    let train_tokens = Arc::new(build(&train).map_err(training_error)?);
    let LoaderSpec { batch_size, drop_last, shuffle, prefetch } = spec.loader;
    let config = LoaderConfig { batch_size, drop_last, shuffle, seed: spec.train.seed, prefetch };
    let class_rows = class_rows(&train_labels, set.names().len());
    let train_digest = set.digest(&train, &train_labels);
    let train_loader = Loader::new(Arc::clone(&train_tokens), Some(train_labels), config).map_err(training_error)?;
    let facts = |validation: Option<&Table>, truncation: TruncationStats| DataFacts {
        train: source.train.pinned().to_string(),
        validation: source.validation_rows(),
        unavailable_sources: source.passed_over.clone(),
        train_rows: train.len(),
        validation_rows: validation.map_or(0, Table::len),
        truncated_rows: truncation.rows,
        skipped_rows: skipped.rows,
        text: source.spec.text.clone(),
        text_pair: source.spec.text_pair.clone(),
        label: source.spec.label.clone(),
        options: source.spec.options.clone(),
        words: source.spec.words,
        template: source.spec.template.clone(),
        class_rows: class_rows.clone(),
        max_length: Some(spec.data.max_length),
        truncation_side: Some(side.name().to_owned()),
        long_texts: spec.data.long_texts.description(),
        label_layout: set.layout().map(|layout| layout.name().to_owned()),
        train_digest: train_digest.clone(),
        source_digest: source_digest.clone(),
        ..DataFacts::default()
    };
    let Some(table) = validation else {
        let truncation = TruncationStats::new(&[&*train_tokens]);
        let facts = facts(None, truncation);
        let (train, validation) = (train_loader, None);
        return Ok(PreparedData { train, validation, facts, truncation, template, limit, rows: None });
    };
    let labels = read(&table).map_err(validation_error)?;
    let validation_tokens = Arc::new(build(&table).map_err(validation_error)?);
    let truncation = TruncationStats::new(&[&*train_tokens, &*validation_tokens]);
    let batch_size = spec.evaluate.batch_size;
    let config = LoaderConfig { batch_size, drop_last: false, shuffle: false, seed: 0, prefetch };
    let validation = Loader::new(validation_tokens, Some(labels.clone()), config).map_err(validation_error)?;
    let validation_digest = set.digest(&table, &labels);
    let prepared = PreparedData {
        train: train_loader,
        validation: Some(validation),
        facts: DataFacts { validation_digest, ..facts(Some(&table), truncation) },
        truncation,
        template,
        limit,
        rows: Some((table, labels)),
    };
    observer.event(Event::Notice(&prepared.describe()));
    Ok(prepared)
}

/// End of long texts that is removed, by the pipeline or else by the tokenizer.
pub fn truncation_side(spec: &Spec, tokenizer: &Tokenizer) -> TruncationSide {
    spec.data.truncation_side.map_or_else(|| tokenizer.truncation_side(), TruncationSide::from)
}

/// Returns the token ids of a text, without special tokens.
///
/// # Errors
/// Text that the tokenizer cannot encode.
pub fn token_ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<i64>, BoxError> {
    Ok(tokenizer.encode_plain(text)?.into_iter().map(i64::from).collect())
}

/// Checks that the rows of a task can be divided into windows.
///
/// # Errors
/// Task with other rows than texts.
pub fn check_windows(windows: Option<Windows>, task: &Task) -> Result<(), BoxError> {
    if windows.is_none() || task.row_form() == RowForm::Text {
        return Ok(());
    }
    let problem = format!(
        "divide long texts into windows (`data.long_texts`): the task has {}, and windows are for rows with a class, a number or \
         several labels",
        task.kind()
    );
    Err(problem.into())
}

impl PreparedData {
    /// Tokens of the longest row.
    pub fn longest_row(&self) -> usize {
        self.validation.as_ref().map_or(0, Loader::longest_row).max(self.train.longest_row())
    }

    fn describe(&self) -> String {
        let facts = &self.facts;
        let max_length = facts.max_length.unwrap_or_default();
        let cut = match facts.truncated_rows {
            0 => String::new(),
            rows => format!(", {rows} with a text shortened to fit {max_length} tokens"),
        };
        let divided = match (&facts.long_texts, self.truncation.divided) {
            (Some(_), rows @ 1..) => format!(", {rows} with a text in windows of {max_length} tokens"),
            _ => String::new(),
        };
        format!("data: {} training rows, {} validation rows{cut}{divided}", facts.train_rows, facts.validation_rows)
    }

    /// Labels of the validation rows.
    pub fn validation_labels(&self) -> Option<&Labels> {
        self.rows.as_ref().map(|(_, labels)| labels)
    }
}

/// Reads a file, or the files of the first of these splits that a folder has.
fn read_asset(
    rows: &RowsSpec,
    asset: &Asset,
    splits: &[&str],
    without_splits: WithoutSplits,
) -> Result<Table, BoxError> {
    let spec = TableSpec {
        path: asset.path.clone(),
        format: rows.format.map(format),
        dialect: rows.dialect(),
        text: rows.text.clone(),
        text_pair: rows.text_pair.clone(),
        label: Some(rows.label.clone()),
        options: rows.options.clone(),
        words: rows.words,
        filter: rows.filter.iter().map(|(column, cell)| (column.clone(), cell.into())).collect(),
        skip_empty: rows.skip_empty,
    };
    read_split(&asset.path, &spec, splits, without_splits)
}

/// Use of a folder in which no file belongs to a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutSplits {
    /// All of its files are read.
    All,
    /// It is an error.
    Refuse,
}

/// Reads the rows of a file, or of the first of these splits that a folder has.
///
/// # Errors
/// Unreadable rows, or a folder without these splits.
pub fn read_split(
    path: &Path,
    columns: &TableSpec,
    splits: &[&str],
    without_splits: WithoutSplits,
) -> Result<Table, BoxError> {
    let spec = TableSpec { path: path.to_owned(), ..columns.clone() };
    if !path.is_dir() {
        return Ok(Table::read(&spec)?);
    }
    for split in splits {
        let files: Vec<PathBuf> = sepal_data::split_files(path, split, spec.format)?;
        if !files.is_empty() {
            return Ok(Table::read_files(&spec, &files)?);
        }
    }
    if without_splits == WithoutSplits::All {
        let files = sepal_data::unsplit_files(path, spec.format)?;
        if !files.is_empty() {
            return Ok(Table::read_files(&spec, &files)?);
        }
    }
    Err(FolderError::no_split(path, splits).into())
}

/// Rows of each class; empty if rows have no class.
fn class_rows(labels: &Labels, n_labels: usize) -> Vec<u64> {
    let Labels::Class(classes) = labels else { return Vec::new() };
    let mut rows = vec![0; n_labels];
    for class in classes.iter().filter_map(|&class| usize::try_from(class).ok()) {
        rows[class] += 1;
    }
    rows
}

fn format(format: FileFormat) -> Format {
    match format {
        FileFormat::Parquet => Format::Parquet,
        FileFormat::Arrow => Format::Arrow,
        FileFormat::Csv => Format::Csv,
        FileFormat::Tsv => Format::Tsv,
        FileFormat::Json => Format::Json,
        FileFormat::Jsonl => Format::Jsonl,
    }
}

fn training_error(source: impl Into<BoxError>) -> DataError {
    DataError::Rows { split: "training", source: source.into() }
}

fn validation_error(source: impl Into<BoxError>) -> DataError {
    DataError::Rows { split: "validation", source: source.into() }
}
