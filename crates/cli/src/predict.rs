//! `sepal predict` and `sepal evaluate`: asking what a run trained.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use sepal_assets::Sources;
use sepal_data::{
    Carry, Format, OnBadRow, OutputSpec, Predicted, PredictionWriter, ReadError, RowSpec, RowStream, TableSpec,
    WriteError,
};
use sepal_pipeline::{Classifier, Observer};
use sepal_plugin::Registry;
use serde_json::json;

use crate::args::{EvaluateArgs, PipelineArgs, PredictArgs};
use crate::console::{Console, grouped};
use crate::run::{load, stop_on_interrupt};
use crate::{Failure, print};

/// What stands for standard input and output.
const STANDARD: &str = "-";
/// Rows that are read, predicted and written at a time.
const CHUNK_ROWS: usize = 1024;
/// Rows that were left out and are named one by one.
const NAMED_ROWS: usize = 5;

pub(crate) fn predict(registry: &Registry, args: &PredictArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt()?;
    let mut console = Console::new();
    // What is wrong with input and output is said before the model is loaded.
    let classifier = Open { run: &args.run, set: &args.rows.set, registry, stop: &stop };
    let manifest = sepal_track::Manifest::read(&args.run)?;
    let mut rows = input(args, &manifest.data)?;
    let spec = classifier.spec()?;
    let classifier = classifier.classifier(&spec, &mut console)?;
    let mut writer = output(args, &classifier, &rows)?;

    let bar = bar();
    let (session, started) = (classifier.session()?, Instant::now());
    let mut told = 0;
    for chunk in rows.by_ref() {
        let chunk = chunk?;
        for bad in chunk.skipped.iter().take(NAMED_ROWS.saturating_sub(told)) {
            console.line(&format!("left out {bad}"));
            told += 1;
        }
        let texts: Vec<&str> = chunk.texts.iter().map(String::as_str).collect();
        let pairs: Option<Vec<&str>> = chunk.pairs.as_ref().map(|pairs| pairs.iter().map(String::as_str).collect());
        if !texts.is_empty() {
            let predicted = session.classify(&texts, pairs.as_deref())?;
            let (class, logits, probabilities) = (&predicted.class, &predicted.logits, &predicted.probabilities);
            match writer.write(&chunk, Predicted { class, logits, probabilities }) {
                Err(WriteError::Closed) => return Ok(()),
                written => written?,
            }
            bar.inc(texts.len() as u64);
        }
        if stop.load(Ordering::Relaxed) {
            return Err("predict: stopped; a file that was not complete is not left".into());
        }
    }
    bar.finish_and_clear();
    if rows.read() == 0 {
        return Err("predict: there are no rows to read".into());
    }
    let written = match writer.finish() {
        Err(WriteError::Closed) => return Ok(()),
        written => written?,
    };
    let left_out = match rows.skipped() {
        0 => String::new(),
        skipped => format!(", {} left out", grouped(skipped as u64)),
    };
    let seconds = started.elapsed().as_secs_f64();
    let rate = written as f64 / seconds.max(1e-9);
    console.line(&format!("predicted {} rows{left_out} in {seconds:.1} s, {rate:.0} rows/s", grouped(written)));
    Ok(())
}

pub(crate) fn evaluate(registry: &Registry, args: &EvaluateArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt()?;
    let mut console = Console::new();
    let open = Open { run: &args.run, set: &args.rows.set, registry, stop: &stop };
    let spec = open.spec()?;
    let classifier = open.classifier(&spec, &mut console)?;
    let facts = &classifier.manifest().data;
    let columns = TableSpec {
        path: PathBuf::new(),
        format: args.rows.format,
        text: args.rows.text.clone().unwrap_or_else(|| facts.text.clone()),
        text_pair: args.rows.text_pair.clone().or_else(|| facts.text_pair.clone()),
        label: Some(args.rows.label.clone().unwrap_or_else(|| facts.label.clone())),
        filter: Default::default(),
    };
    let splits: Vec<&str> = match &args.split {
        Some(split) => vec![split],
        None => vec!["test", "validation", "dev", "valid", "train"],
    };
    let sources = Sources::new(args.data.clone())?;
    let evaluation = classifier.evaluate(&sources, &columns, &splits, &mut console, &stop)?;
    drop(console);
    if let Some(path) = &args.predictions {
        sepal_track::write_whole(path, &evaluation.predictions)?;
    }
    let record = &evaluation.record;
    if args.json {
        let json = json!({ "rows": record.rows, "loss": record.loss, "metrics": record.metrics });
        return print(&serde_json::to_string_pretty(&json)?);
    }
    let mut lines = vec![format!("{:<16} {}", "rows", grouped(record.rows as u64))];
    let headline = record.metrics.get_key_value(&evaluation.headline);
    let others = record.metrics.iter().filter(|(name, _)| **name != evaluation.headline);
    let metrics = headline.into_iter().chain(others).map(|(name, value)| format!("{name:<16} {value:.4}"));
    lines.extend(metrics);
    lines.push(format!("{:<16} {:.4}", "loss", record.loss));
    print(&lines.join("\n"))
}

/// A run that is to be asked.
struct Open<'a> {
    run: &'a Path,
    set: &'a [String],
    registry: &'a Registry,
    stop: &'a AtomicBool,
}

impl Open<'_> {
    /// The run's pipeline, with what the environment and the command line lay over it.
    fn spec(&self) -> Result<sepal_pipeline::Spec, Failure> {
        load(self.registry, &PipelineArgs { file: self.run.join("pipeline.yaml"), set: self.set.to_vec() })
    }

    fn classifier(&self, spec: &sepal_pipeline::Spec, observer: &mut dyn Observer) -> Result<Classifier, Failure> {
        Ok(Classifier::open(spec, self.run, self.registry, observer, self.stop)?)
    }
}

/// The rows to predict. Without a name the texts' column is the run's, if the file has it.
fn input(args: &PredictArgs, facts: &sepal_track::DataFacts) -> Result<RowStream, Failure> {
    let spec = |text: Option<String>| RowSpec {
        format: args.rows.format,
        text,
        text_pair: args.rows.text_pair.clone().or_else(|| facts.text_pair.clone()),
        label: args.rows.label.clone(),
        carry: if args.only_predictions { Carry::Nothing } else { Carry::Others },
        on_bad_row: if args.strict { OnBadRow::Error } else { OnBadRow::Skip },
        chunk_rows: CHUNK_ROWS,
        ..RowSpec::default()
    };
    if args.input == Path::new(STANDARD) {
        let format = args.rows.format.unwrap_or(Format::Lines);
        return Ok(RowStream::from_reader(io::stdin(), "standard input", format, &spec(args.rows.text.clone()))?);
    }
    if args.rows.text.is_some() {
        return Ok(RowStream::open(&args.input, &spec(args.rows.text.clone()))?);
    }
    match RowStream::open(&args.input, &spec(Some(facts.text.clone()))) {
        Err(ReadError::MissingColumn { column, .. }) if column == facts.text => {
            Ok(RowStream::open(&args.input, &spec(None))?)
        }
        rows => Ok(rows?),
    }
}

fn output(args: &PredictArgs, classifier: &Classifier, rows: &RowStream) -> Result<PredictionWriter, Failure> {
    let spec = OutputSpec {
        format: args.output_format,
        text: !args.only_predictions,
        probabilities: args.probabilities,
        overwrite: args.overwrite,
        ..classifier.output()?
    };
    if args.output == Path::new(STANDARD) {
        let format = args.output_format.unwrap_or(Format::Csv);
        return Ok(PredictionWriter::to_writer(io::stdout(), format, spec, &rows.layout())?);
    }
    Ok(PredictionWriter::create(&args.output, spec, &rows.layout())?)
}

/// Shown on a terminal alone.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} rows, {per_sec}");
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}
