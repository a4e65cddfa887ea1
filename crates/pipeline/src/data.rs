//! From sources to batches.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sepal_assets::{Asset, Assets, Attempt, FetchError, Kind};
use sepal_core::{LabelKind, Labels};
use sepal_data::{
    Format, LabelSet, Loader, LoaderConfig, Predicted, Table, TableSpec, Template, TokenSpec, TokenTable,
};
use sepal_plugin::{Prediction, TaskHead};
use sepal_track::{DataFacts, RunFolder};

use crate::assemble::Frozen;
use crate::error::{BoxError, RunError};
use crate::model_files::watched;
use crate::progress::{Event, Observer};
use crate::spec::{AlternativeSpec, FileFormat, Spec};

/// The rows of a run, ready to be dealt.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) train: Loader,
    pub(crate) validation: Option<Loader>,
    pub(crate) facts: DataFacts,
    pub(crate) truncated: Truncated,
    /// The validation rows, as they are written with their predictions.
    rows: Option<(Table, Labels)>,
    names: Vec<String>,
}

/// Extent of truncation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Truncated {
    /// Rows that lost tokens.
    pub(crate) rows: usize,
    /// Tokens that they lost together.
    pub(crate) tokens: usize,
    /// Tokens that the longest of them lost.
    pub(crate) most: usize,
}

impl Truncated {
    fn of(tokens: &TokenTable) -> Self {
        let numbers = tokens.truncated();
        Self {
            rows: numbers.iter().filter(|&&number| number > 0).count(),
            tokens: numbers.iter().sum(),
            most: numbers.iter().copied().max().unwrap_or(0),
        }
    }
}

impl std::ops::Add for Truncated {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { rows: self.rows + other.rows, tokens: self.tokens + other.tokens, most: self.most.max(other.most) }
    }
}

/// The data that can be had.
struct Chosen {
    spec: AlternativeSpec,
    train: Asset,
    validation: Option<Asset>,
    passed_over: Vec<String>,
}

/// The rows of a run as they were read.
pub(crate) struct Rows {
    chosen: Chosen,
    train: Table,
    /// Where they come from elsewhere than the training rows.
    validation: Option<Table>,
}

impl Rows {
    /// The head's labels. Lists mean the same among training and validation rows.
    fn label_set(&self, head: &dyn TaskHead) -> Result<LabelSet, RunError> {
        let set = LabelSet::new(head.label_names()).map_err(training)?;
        Ok(match head.label_kind() {
            LabelKind::Multi => set.with_layout_of(std::iter::once(&self.train).chain(&self.validation)),
            LabelKind::Class | LabelKind::Value => set,
        })
    }

    /// Keeps some of the training rows aside, if there are no other validation rows and some are wanted.
    fn split(self, seed: u64, set: &LabelSet, head: &dyn TaskHead) -> Result<Self, RunError> {
        let Some(fraction) = self.chosen.spec.validation_split.filter(|_| self.validation.is_none()) else {
            return Ok(self);
        };
        let labels = set.labels_as(&self.train, head.label_kind()).map_err(training)?;
        let (kept, aside) = sepal_data::split(&labels, seed, fraction).map_err(training)?;
        Ok(Self { train: self.train.select(&kept), validation: Some(self.train.select(&aside)), ..self })
    }
}

/// Fetches the data and reads the columns that are asked for. It takes no model: what is wrong with the rows is told before
/// one is fetched.
pub(crate) fn read(
    spec: &Spec,
    assets: &Assets,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Rows, RunError> {
    let chosen = choose(spec, assets, observer, stop)?;
    let train = read_asset(&chosen.spec, &chosen.train, &["train"]).map_err(training)?;
    let names = ["validation", "dev", "valid", "test"];
    let validation = chosen.validation.as_ref().map(|asset| read_asset(&chosen.spec, asset, &names));
    let validation = validation.transpose().map_err(validating)?;
    Ok(Rows { chosen, train, validation })
}

/// Tokenizes rows and splits them.
pub(crate) fn prepare(
    spec: &Spec,
    rows: Rows,
    assets: &Assets,
    frozen: &Frozen,
    head: &dyn TaskHead,
    observer: &mut dyn Observer,
) -> Result<Prepared, RunError> {
    let set = rows.label_set(head)?;
    let Rows { chosen, train, validation } = rows.split(spec.train.seed, &set, head)?;
    let read = |table: &Table| -> Result<Labels, BoxError> { Ok(set.labels_as(table, head.label_kind())?) };
    let train_labels = read(&train).map_err(training)?;
    sepal_data::check_classes(&train_labels, &set).map_err(training)?;
    let side = frozen.truncation_side(spec);
    let mut tokens =
        TokenSpec::new(spec.data.max_length).with_side(side).with_cache(assets.options().cache.join("tokens"));
    if let Some(template) = &chosen.spec.template {
        tokens = tokens.with_template(template.parse::<Template>().map_err(training)?);
    }
    let build = |table: &Table| TokenTable::build(table, &frozen.tokenizer, &tokens);
    let train_tokens = Arc::new(build(&train).map_err(training)?);
    let mut truncated = Truncated::of(&train_tokens);
    let loader = &spec.loader;
    let config = LoaderConfig {
        batch_size: loader.batch_size,
        drop_last: loader.drop_last,
        shuffle: loader.shuffle,
        seed: spec.train.seed,
        prefetch: loader.prefetch,
    };
    let class_rows = class_rows(&train_labels, set.names().len());
    let train_digest = set.digest(&train, &train_labels);
    let train_loader = Loader::new(train_tokens, Some(train_labels), config).map_err(training)?;
    let facts = |validation: Option<&Table>, truncated: Truncated| {
        let facts = facts(&chosen, &train, validation, truncated.rows, class_rows.clone());
        DataFacts {
            max_length: Some(spec.data.max_length),
            truncation_side: Some(side.name().to_owned()),
            label_layout: set.layout().map(|layout| layout.name().to_owned()),
            train_digest: train_digest.clone(),
            ..facts
        }
    };
    let Some(table) = validation else {
        let (facts, names) = (facts(None, truncated), set.names().to_vec());
        return Ok(Prepared { train: train_loader, validation: None, facts, truncated, rows: None, names });
    };
    let labels = read(&table).map_err(validating)?;
    let validation_tokens = Arc::new(build(&table).map_err(validating)?);
    truncated = truncated + Truncated::of(&validation_tokens);
    let config = LoaderConfig {
        batch_size: spec.evaluate.batch_size,
        drop_last: false,
        shuffle: false,
        seed: 0,
        prefetch: loader.prefetch,
    };
    let validation = Loader::new(validation_tokens, Some(labels.clone()), config).map_err(validating)?;
    let validation_digest = set.digest(&table, &labels);
    let prepared = Prepared {
        train: train_loader,
        validation: Some(validation),
        facts: DataFacts { validation_digest, ..facts(Some(&table), truncated) },
        truncated,
        rows: Some((table, labels)),
        names: set.names().to_vec(),
    };
    observer.event(Event::Notice(&prepared.describe()));
    Ok(prepared)
}

/// Fetches the data into the cache.
pub(crate) fn fetch(
    spec: &Spec,
    assets: &Assets,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<(), RunError> {
    choose(spec, assets, observer, stop).map(drop)
}

/// Attempts as the manifest has them.
pub(crate) fn passed_over(attempts: &[Attempt]) -> Vec<String> {
    attempts.iter().map(|attempt| format!("{}: {}", attempt.source, attempt.error)).collect()
}

impl Prepared {
    fn describe(&self) -> String {
        let facts = &self.facts;
        let max_length = facts.max_length.unwrap_or_default();
        let cut = match facts.truncated_rows {
            0 => String::new(),
            rows => format!(", {rows} with a text shortened to fit {max_length} tokens"),
        };
        format!("data: {} training rows, {} validation rows{cut}", facts.train_rows, facts.validation_rows)
    }

    /// Writes `predictions.parquet`: the validation rows in order, with what was predicted.
    pub(crate) fn write_predictions(&self, folder: &RunFolder, prediction: &Prediction) -> Result<(), RunError> {
        let Some((table, labels)) = &self.rows else { return Ok(()) };
        let Prediction { class, probabilities, logits } = prediction;
        let predicted = Predicted { class, logits, probabilities };
        let bytes = sepal_data::predictions_parquet(table, labels, &self.names, predicted)
            .map_err(|source| RunError::Predictions(source.into()))?;
        folder.write("predictions.parquet", &bytes).map_err(RunError::Write)
    }
}

/// Labels of rows that are to have some.
pub(crate) fn require_labels(labels: Option<&Labels>) -> Result<&Labels, RunError> {
    labels.ok_or_else(|| RunError::Data { split: "labelled", source: "the rows have no labels".into() })
}

/// The first of the alternatives whose files can all be had.
fn choose(spec: &Spec, assets: &Assets, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Chosen, RunError> {
    let mut tried: Vec<Attempt> = Vec::new();
    for alternative in spec.data.alternatives() {
        match fetch_alternative(&alternative, assets, observer, stop) {
            Ok((train, validation)) => {
                let attempts = [train.attempts.as_slice(), validation.as_ref().map_or(&[], |asset| &asset.attempts)];
                let passed_over = passed_over(&[&tried, attempts.concat().as_slice()].concat());
                return Ok(Chosen { spec: alternative, train, validation, passed_over });
            }
            Err(FetchError::NoneAvailable { attempts }) => tried.extend(attempts),
            Err(source) => return Err(RunError::Fetch { what: "data", source }),
        }
    }
    Err(RunError::Fetch { what: "data", source: FetchError::NoneAvailable { attempts: tried } })
}

fn fetch_alternative(
    alternative: &AlternativeSpec,
    assets: &Assets,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<(Asset, Option<Asset>), FetchError> {
    let mut watch = watched("data", observer, stop);
    let train = assets.fetch_first(&alternative.train, Kind::Dataset, &mut watch)?;
    // The same source twice is the two splits of one folder.
    let again = alternative.validation.as_ref().is_some_and(|sources| *sources == alternative.train);
    let validation = match &alternative.validation {
        Some(_) if again => Some(Asset { attempts: Vec::new(), ..train.clone() }),
        Some(sources) => Some(assets.fetch_first(sources, Kind::Dataset, &mut watch)?),
        None => None,
    };
    Ok((train, validation))
}

/// Reads a file, or the files of the first of these splits that a folder has.
fn read_asset(alternative: &AlternativeSpec, asset: &Asset, splits: &[&str]) -> Result<Table, BoxError> {
    let spec = TableSpec {
        path: asset.path.clone(),
        format: alternative.format.map(format),
        dialect: alternative.dialect(),
        text: alternative.text.clone(),
        text_pair: alternative.text_pair.clone(),
        label: Some(alternative.label.clone()),
        filter: alternative.filter.iter().map(|(column, cell)| (column.clone(), cell.0.clone())).collect(),
    };
    read_split(&asset.path, &spec, splits)
}

/// The rows of a file, or of the first of these splits that a folder has.
pub(crate) fn read_split(path: &Path, columns: &TableSpec, splits: &[&str]) -> Result<Table, BoxError> {
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
    Err(format!("{} has no files of a split named {}", path.display(), splits.join(", ")).into())
}

fn facts(
    chosen: &Chosen,
    train: &Table,
    validation: Option<&Table>,
    truncated_rows: usize,
    class_rows: Vec<u64>,
) -> DataFacts {
    let described = match (&chosen.validation, chosen.spec.validation_split) {
        (Some(asset), _) => asset.pinned().to_string(),
        (None, Some(fraction)) => format!("{fraction} of the training source, by seed"),
        (None, None) => "none".to_owned(),
    };
    DataFacts {
        train: chosen.train.pinned().to_string(),
        validation: described,
        passed_over: chosen.passed_over.clone(),
        train_rows: train.len(),
        validation_rows: validation.map_or(0, Table::len),
        truncated_rows,
        text: chosen.spec.text.clone(),
        text_pair: chosen.spec.text_pair.clone(),
        label: chosen.spec.label.clone(),
        template: chosen.spec.template.clone(),
        class_rows,
        ..DataFacts::default()
    }
}

/// Rows of each class, if each row has one.
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
        FileFormat::Jsonl => Format::Jsonl,
    }
}

fn training(source: impl Into<BoxError>) -> RunError {
    RunError::Data { split: "training", source: source.into() }
}

fn validating(source: impl Into<BoxError>) -> RunError {
    RunError::Data { split: "validation", source: source.into() }
}
