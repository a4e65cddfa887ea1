//! `sepal predict` and `sepal evaluate`: asking what a run trained.

use std::io::{self, BufRead, BufReader, Cursor, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use sepal_assets::Sources;
use sepal_data::{
    Carry, Dialect, Format, OnBadRow, OutputSpec, Predicted, PredictionWriter, ReadError, RowSpec, RowStream, Rows,
    TableSpec, TokenRow, WriteError,
};
use sepal_pipeline::{Classifier, Observer, Session};
use sepal_plugin::Registry;
use sepal_track::DataFacts;
use serde_json::json;

use crate::args::{EvaluateArgs, PipelineArgs, PredictArgs};
use crate::console::Console;
use crate::interrupt::stop_on_interrupt;
use crate::output::{Failure, print};
use crate::pipeline_file::load;
use crate::units::grouped;

/// What stands for standard input and output.
const STANDARD: &str = "-";
/// Rows that are read, predicted and written at a time.
const CHUNK_ROWS: usize = 1024;
/// Rows that were left out and are named one by one.
const NAMED_ROWS: usize = 5;

pub(crate) fn predict(registry: &Registry, args: &PredictArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt("stopping after these rows; no incomplete file is left")?;
    let mut console = Console::new();
    // What is wrong with input and output is said before the model is loaded.
    let classifier = Open { run: &args.run, set: &args.rows.set, registry, stop: &stop };
    let manifest = sepal_track::Manifest::read(&args.run)?;
    check_output(args)?;
    let spec = classifier.spec()?;
    let mut rows = input(args, &manifest.data, spec.data.rows.dialect())?;
    if rows.text_column().is_none() {
        return Err(rows.no_rows().into());
    }
    PredictionWriter::check_layout(&rows.layout()).map_err(with_option)?;
    let classifier = classifier.classifier(&spec, &mut console)?;
    let mut writer = output(args, &classifier, &rows)?;
    if let Some(note) = replaced(writer.replaced()) {
        console.line(&note);
    }

    let bar = bar();
    let (session, started) = (classifier.session()?, Instant::now());
    let column = rows.text_column().map(|(name, _)| name.to_owned()).unwrap_or_default();
    let mut skipped = 0;
    for chunk in rows.by_ref() {
        let mut chunk = chunk?;
        let tokens = tokenize(&session, &mut chunk, &column)?;
        if args.strict
            && let Some(bad) = chunk.skipped.first()
        {
            return Err(ReadError::from(bad.clone()).into());
        }
        for bad in chunk.skipped.iter().take(NAMED_ROWS.saturating_sub(skipped)) {
            console.line(&format!("left out {bad}"));
        }
        skipped += chunk.skipped.len();
        if !chunk.is_empty() {
            let predicted = session.classify(&tokens).map_err(|error| error.renumbered(&chunk.numbers))?;
            let (class, logits, probabilities) = (&predicted.class, &predicted.logits, &predicted.probabilities);
            match writer.write(&chunk, Predicted { class, logits, probabilities }) {
                Err(WriteError::Closed) => return Ok(()),
                written => written.map_err(with_option)?,
            }
            bar.inc(chunk.len() as u64);
        }
        if stop.load(Ordering::Relaxed) {
            return Err("predict: stopped; a file that was not complete is not left".into());
        }
    }
    bar.finish_and_clear();
    if rows.read() == 0 {
        return Err(rows.no_rows().into());
    }
    let written = match writer.finish() {
        Err(WriteError::Closed) => return Ok(()),
        written => written?,
    };
    let left_out = if skipped > 0 { format!(", {} left out", grouped(skipped as u64)) } else { String::new() };
    let seconds = started.elapsed().as_secs_f64();
    let rate = written as f64 / seconds.max(1e-9);
    let rows = if written == 1 { "row" } else { "rows" };
    console.line(&format!("predicted {} {rows}{left_out} in {seconds:.1} s, {rate:.0} rows/s", grouped(written)));
    Ok(())
}

/// The tokens of a chunk's rows; rows without one are left out of it.
fn tokenize(session: &Session<'_>, chunk: &mut Rows, column: &str) -> Result<Vec<TokenRow>, Failure> {
    let texts: Vec<&str> = chunk.texts.iter().map(String::as_str).collect();
    let pairs: Option<Vec<&str>> = chunk.pairs.as_ref().map(|pairs| pairs.iter().map(String::as_str).collect());
    let mut tokens = session.encode(&texts, pairs.as_deref())?;
    let has_tokens: Vec<bool> = tokens.iter().map(|row| !row.ids.is_empty()).collect();
    if has_tokens.contains(&false) {
        chunk.leave_out_without_tokens(column, &has_tokens)?;
        tokens.retain(|row| !row.ids.is_empty());
    }
    Ok(tokens)
}

pub(crate) fn evaluate(registry: &Registry, args: &EvaluateArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt("stopping after this batch; nothing is written")?;
    let mut console = Console::new();
    let open = Open { run: &args.run, set: &args.rows.set, registry, stop: &stop };
    let spec = open.spec()?;
    let classifier = open.classifier(&spec, &mut console)?;
    let facts = &classifier.manifest().data;
    let columns = TableSpec {
        path: PathBuf::new(),
        format: args.format,
        dialect: args.rows.dialect.dialect(),
        text: args.text.clone().unwrap_or_else(|| facts.text.clone()),
        text_pair: args.rows.text_pair.clone().or_else(|| facts.text_pair.clone()),
        label: Some(args.label.clone().unwrap_or_else(|| facts.label.clone())),
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
    fn spec(&self) -> Result<sepal_config::Spec, Failure> {
        if self.set.iter().any(|set| set.split('=').next().is_some_and(|key| key.trim() == "data.template")) {
            return Err("set data.template: the template of a run is that of its training; leave it out".into());
        }
        load(self.registry, &PipelineArgs { file: self.run.join("pipeline.yaml"), set: self.set.to_vec() })
    }

    fn classifier(&self, spec: &sepal_config::Spec, observer: &mut dyn Observer) -> Result<Classifier, Failure> {
        Ok(Classifier::open(spec, self.run, self.registry, observer, self.stop)?)
    }
}

/// The rows to predict. A file is read once before, so that what is wrong with it is said before the model is loaded.
fn input(args: &PredictArgs, facts: &DataFacts, trained: Dialect) -> Result<RowStream, Failure> {
    let given = args.rows.dialect.dialect();
    if args.input == Path::new(STANDARD) {
        return standard_input(args, facts, given);
    }
    let checked = |dialect| -> Result<RowStream, ReadError> {
        let mut rows = file(args, facts, dialect)?;
        if !args.input.is_file() {
            return Ok(rows);
        }
        let column = rows.text_column().map(|(name, _)| name.to_owned());
        rows.by_ref().try_for_each(|chunk| chunk.map(drop))?;
        RowStream::open(&args.input, &row_spec(args, facts, dialect, column))
    };
    let rows = match checked(given) {
        Err(error) if given == Dialect::default() => as_trained(checked, trained).ok_or(error)?,
        rows => rows?,
    };
    if let (None, Some((found, _))) = (&args.text, rows.text_column())
        && found != facts.text
    {
        let column = &facts.text;
        eprintln!("note: there is no column `{column}`; texts are taken from `{found}` (--text names another)");
    }
    Ok(rows)
}

/// The rows by what the training rows were given, if they can be read so: what a file does not tell may be as it was there.
fn as_trained(read: impl Fn(Dialect) -> Result<RowStream, ReadError>, trained: Dialect) -> Option<RowStream> {
    let Dialect { delimiter, encoding } = trained;
    let part = |delimiter, encoding| Dialect { delimiter, encoding };
    // UTF-8 is also text in most other encodings, so that these come later.
    let tried = [part(delimiter, None), part(None, encoding), trained];
    let (rows, used) = tried
        .into_iter()
        .filter(|dialect| *dialect != Dialect::default())
        .find_map(|dialect| Some((read(dialect).ok()?, dialect)))?;
    let delimiter = used.delimiter.map(|delimiter| format!("delimiter `{delimiter}`"));
    let encoding = used.encoding.map(|encoding| format!("encoding {encoding}"));
    let used: Vec<String> = delimiter.into_iter().chain(encoding).collect();
    eprintln!("note: the input is read with {}, as the training rows were", used.join(" and "));
    Some(rows)
}

fn row_spec(args: &PredictArgs, facts: &DataFacts, dialect: Dialect, text: Option<String>) -> RowSpec {
    RowSpec {
        format: args.format,
        dialect,
        text,
        text_pair: args.rows.text_pair.clone().or_else(|| facts.text_pair.clone()),
        label: args.label.clone(),
        carry: if args.only_predictions { Carry::Nothing } else { Carry::All },
        on_bad_row: if args.strict { OnBadRow::Error } else { OnBadRow::Skip },
        chunk_rows: CHUNK_ROWS,
        ..RowSpec::default()
    }
}

/// The rows of a file. Without a name the texts' column is the run's, if the file has it.
fn file(args: &PredictArgs, facts: &DataFacts, dialect: Dialect) -> Result<RowStream, ReadError> {
    let open = |text: Option<&String>| RowStream::open(&args.input, &row_spec(args, facts, dialect, text.cloned()));
    if args.text.is_some() {
        return open(args.text.as_ref());
    }
    match open(Some(&facts.text)) {
        Err(error) if is_missing(&error, &facts.text) && !error.is_of_other_delimiter() => open(None),
        rows => rows,
    }
}

fn is_missing(error: &ReadError, text: &str) -> bool {
    matches!(error, ReadError::MissingColumn { column, .. } if column == text)
}

fn standard_input(args: &PredictArgs, facts: &DataFacts, dialect: Dialect) -> Result<RowStream, Failure> {
    let spec = row_spec(args, facts, dialect, args.text.clone());
    Ok(match args.format {
        Some(format) => RowStream::from_reader(io::stdin(), "standard input", format, &spec)?,
        None => {
            let lines = lines(args.text.as_ref().unwrap_or(&facts.text))?;
            RowStream::from_reader(lines, "standard input", Format::Lines, &spec)?
        }
    })
}

/// Standard input as texts, one to a line; the header of a table with the column `text` is none.
fn lines(text: &str) -> Result<Box<dyn Read + Send>, Failure> {
    let mut input = BufReader::new(io::stdin());
    let mut first = Vec::new();
    // Nobody types a table, and who types is shown what is loaded before the first line.
    if !io::stdin().is_terminal() {
        input.read_until(b'\n', &mut first).map_err(|error| format!("read standard input: {error}"))?;
    }
    if let Some(format) = Format::by_first_line(&String::from_utf8_lossy(&first), text) {
        return Err(format!(
            "read standard input as texts, one to a line: its first line is that of a {format} file, with the column `{text}`; say \
             --format {format}, or --format lines if it is a text all the same"
        )
        .into());
    }
    Ok(Box::new(Cursor::new(first).chain(input)))
}

fn output(args: &PredictArgs, classifier: &Classifier, rows: &RowStream) -> Result<PredictionWriter, Failure> {
    let spec = OutputSpec {
        format: args.output_format,
        probabilities: args.probabilities,
        overwrite: args.overwrite,
        ..classifier.output()?
    };
    if args.output == Path::new(STANDARD) {
        let format = args.output_format.unwrap_or(Format::Csv);
        return PredictionWriter::to_writer(io::stdout(), format, spec, &rows.layout()).map_err(with_option);
    }
    PredictionWriter::create(&args.output, spec, &rows.layout()).map_err(with_option)
}

/// What is wrong with the output, as far as that can be said without the run.
fn check_output(args: &PredictArgs) -> Result<(), Failure> {
    let checked = match args.output == Path::new(STANDARD) {
        true => PredictionWriter::check_stream(args.output_format.unwrap_or(Format::Csv)),
        false => PredictionWriter::check(&args.output, args.output_format, args.overwrite),
    };
    checked.map_err(with_option)
}

/// The error with the option that is a way out, if there is one.
fn with_option(error: WriteError) -> Failure {
    match error {
        WriteError::Exists { path } => format!("write {}: it is there; --overwrite replaces it", path.display()).into(),
        WriteError::Column { .. } | WriteError::Type { .. } | WriteError::LateKey { .. } => {
            format!("{error}; --only-predictions leaves out the input's columns").into()
        }
        error => error.into(),
    }
}

/// A note on the columns of the input that are not written, if there are any.
fn replaced(columns: &[String]) -> Option<String> {
    let names = columns.iter().map(|column| format!("`{column}`")).collect::<Vec<_>>().join(", ");
    match columns.len() {
        0 => None,
        1 => Some(format!("note: the input's column {names} is replaced by the new one")),
        _ => Some(format!("note: the input's columns {names} are replaced by the new ones")),
    }
}

/// Shown on a terminal alone.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} rows, {per_sec}");
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = style { bar.with_style(style) } else { bar }
}
