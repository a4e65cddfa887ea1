//! `sepal predict` and `sepal evaluate`: predictions and metrics of a trained run.

use std::io::{self, BufRead, BufReader, Cursor, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use sepal_assets::Sources;
use sepal_config::Spec;
use sepal_data::{
    BadRowPolicy, Dialect, EncodedRow, Format, OutputSpec, Passthrough, PredictionRef, PredictionWriter, ReadError,
    RowSpec, RowStream, RowTexts, Rows, TableSpec, WriteError,
};
use sepal_pipeline::{Classifier, Session};
use sepal_plugin::Registry;
use sepal_track::DataFacts;
use serde_json::json;

use crate::args::{EvaluateArgs, PipelineArgs, PredictArgs};
use crate::console::Console;
use crate::interrupt::stop_on_interrupt;
use crate::output::{Failure, print};
use crate::pipeline_file::load;
use crate::units::grouped;

const STANDARD: &str = "-";
const CHUNK_ROWS: usize = 1024;
const NAMED_ROWS: usize = 5;

pub(crate) fn predict(registry: &Registry, args: &PredictArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt("stopping after these rows; no incomplete file is left")?;
    let mut console = Console::default();
    // Errors of input and output are reported before the model is loaded.
    let manifest = sepal_track::Manifest::read(&args.run)?;
    check_output(args)?;
    let spec = trained_spec(registry, &args.run, &args.rows.set)?;
    let mut rows = input(args, &manifest.data, spec.data.rows.dialect())?;
    if rows.text_column().is_none() {
        return Err(rows.no_rows_error().into());
    }
    PredictionWriter::check_row_schema(&rows.row_schema()).map_err(with_option)?;
    let classifier = Classifier::open(&spec, &args.run, registry, &mut console, &stop)?;
    let mut writer = output(args, &classifier, &rows)?;
    if let Some(note) = replaced_columns_note(writer.replaced()) {
        console.line(&note);
    }

    let spinner = spinner();
    let (session, started) = (classifier.session()?, Instant::now());
    let column = rows.text_column().map(|(name, _)| name.to_owned()).unwrap_or_default();
    let mut skipped = 0;
    for chunk in rows.by_ref() {
        let mut chunk = chunk?;
        let tokens = tokenize(&session, &mut chunk, &column)?;
        if args.strict
            && let Some(bad) = chunk.skipped.first()
        {
            return Err(ReadError::BadRow(bad.clone()).into());
        }
        for bad in chunk.skipped.iter().take(NAMED_ROWS.saturating_sub(skipped)) {
            console.line(&format!("left out {bad}"));
        }
        skipped += chunk.skipped.len();
        if !chunk.is_empty() {
            let predicted = session.classify(&tokens).map_err(|error| error.renumbered(&chunk.numbers))?;
            let (class, logits, probabilities) = (&predicted.class, &predicted.logits, &predicted.probabilities);
            let items = &predicted.items;
            match writer.write(&chunk, PredictionRef { items, ..PredictionRef::new(class, logits, probabilities) }) {
                Err(WriteError::Closed) => return Ok(()),
                written => written.map_err(with_option)?,
            }
            spinner.inc(chunk.len() as u64);
        }
        if stop.load(Ordering::Relaxed) {
            return Err("predict: stopped; the incomplete file is removed".into());
        }
    }
    spinner.finish_and_clear();
    if rows.read() == 0 {
        return Err(rows.no_rows_error().into());
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

/// Tokenizes the rows of a chunk and removes rows without a token from it.
fn tokenize(session: &Session<'_>, chunk: &mut Rows, column: &str) -> Result<Vec<EncodedRow>, Failure> {
    let texts: Vec<&str> = chunk.texts.iter().map(String::as_str).collect();
    let pairs: Option<Vec<&str>> = chunk.pairs.as_ref().map(|pairs| pairs.iter().map(String::as_str).collect());
    let options = chunk.options.as_deref();
    let mut tokens =
        session.encode(RowTexts { texts: &texts, pairs: pairs.as_deref(), options, ..RowTexts::default() })?;
    let has_tokens: Vec<bool> = tokens.iter().map(EncodedRow::has_tokens).collect();
    if has_tokens.contains(&false) {
        chunk.skip_rows_without_tokens(column, &has_tokens)?;
        tokens.retain(EncodedRow::has_tokens);
    }
    Ok(tokens)
}

pub(crate) fn evaluate(registry: &Registry, args: &EvaluateArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt("stopping after this batch; nothing is written")?;
    let mut console = Console::default();
    let spec = trained_spec(registry, &args.run, &args.rows.set)?;
    let classifier = Classifier::open(&spec, &args.run, registry, &mut console, &stop)?;
    let facts = &classifier.manifest().data;
    let columns = TableSpec {
        path: PathBuf::new(),
        format: args.format,
        dialect: args.rows.dialect.dialect(),
        text: args.text.clone().unwrap_or_else(|| facts.text.clone()),
        text_pair: args.rows.text_pair.clone().or_else(|| facts.text_pair.clone()),
        label: Some(args.label.clone().unwrap_or_else(|| facts.label.clone())),
        options: facts.options.clone(),
        words: facts.words,
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
        sepal_track::write_atomic(path, &evaluation.predictions)?;
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

/// Reads the pipeline of the run with the environment and the command line applied.
fn trained_spec(registry: &Registry, run: &Path, set: &[String]) -> Result<Spec, Failure> {
    if set.iter().any(|set| set.split('=').next().is_some_and(|key| key.trim() == "data.template")) {
        return Err("set data.template: predictions need the template of the training; remove the setting".into());
    }
    load(registry, &PipelineArgs { file: run.join("pipeline.yaml"), set: set.to_vec() })
}

/// Opens the rows to predict. A file is read once in advance, so that its errors are reported before the model is loaded.
fn input(args: &PredictArgs, facts: &DataFacts, trained: Dialect) -> Result<RowStream, Failure> {
    let dialect = args.rows.dialect.dialect();
    if args.input == Path::new(STANDARD) {
        return standard_input(args, facts, dialect);
    }
    let checked = |dialect| -> Result<RowStream, ReadError> {
        let mut rows = open_file(args, facts, dialect)?;
        if !args.input.is_file() {
            return Ok(rows);
        }
        let column = rows.text_column().map(|(name, _)| name.to_owned());
        rows.by_ref().try_for_each(|chunk| chunk.map(drop))?;
        RowStream::open(&args.input, &row_spec(args, facts, dialect, column))
    };
    let rows = match checked(dialect) {
        Err(error) if dialect == Dialect::default() => read_as_trained(checked, trained).ok_or(error)?,
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

/// Reads the rows with delimiter and encoding of the training rows, if that succeeds.
fn read_as_trained(read: impl Fn(Dialect) -> Result<RowStream, ReadError>, trained: Dialect) -> Option<RowStream> {
    let Dialect { delimiter, encoding } = trained;
    let part = |delimiter, encoding| Dialect { delimiter, encoding };
    // Most encodings accept UTF-8 bytes, so that they are tried later.
    let candidates = [part(delimiter, None), part(None, encoding), trained];
    let (rows, used) = candidates
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
        options: facts.options.clone(),
        words: facts.words,
        passthrough: if args.only_predictions { Passthrough::None } else { Passthrough::All },
        bad_rows: if args.strict { BadRowPolicy::Fail } else { BadRowPolicy::Skip },
        chunk_rows: CHUNK_ROWS,
        ..RowSpec::default()
    }
}

/// Opens the rows of a file. The default column of the texts is that of the run, if the file has it.
fn open_file(args: &PredictArgs, facts: &DataFacts, dialect: Dialect) -> Result<RowStream, ReadError> {
    let open = |text: Option<&String>| RowStream::open(&args.input, &row_spec(args, facts, dialect, text.cloned()));
    if args.text.is_some() {
        return open(args.text.as_ref());
    }
    match open(Some(&facts.text)) {
        Err(error) if is_missing(&error, &facts.text) && !error.has_other_delimiter() => open(None),
        rows => rows,
    }
}

fn is_missing(error: &ReadError, text: &str) -> bool {
    matches!(error, ReadError::MissingColumn { column, .. } if column == text)
}

fn standard_input(args: &PredictArgs, facts: &DataFacts, dialect: Dialect) -> Result<RowStream, Failure> {
    let spec = row_spec(args, facts, dialect, args.text.clone());
    if let Some(format) = args.format {
        return Ok(RowStream::from_reader(io::stdin(), "standard input", format, &spec)?);
    }
    let lines = lines(args.text.as_ref().unwrap_or(&facts.text))?;
    Ok(RowStream::from_reader(lines, "standard input", Format::Lines, &spec)?)
}

/// Reads standard input as one text per line. The header of a table with the column `text` is an error.
fn lines(text: &str) -> Result<Box<dyn Read + Send>, Failure> {
    let mut input = BufReader::new(io::stdin());
    let mut first = Vec::new();
    // On a terminal this would block before the model is loaded, and tables are not typed.
    if !io::stdin().is_terminal() {
        input.read_until(b'\n', &mut first).map_err(|error| format!("read standard input: {error}"))?;
    }
    if let Some(format) = Format::detect_table(&String::from_utf8_lossy(&first), text) {
        return Err(format!(
            "read standard input as one text per line: its first line is that of a {format} file with the column `{text}`; use \
             --format {format}, or --format lines if the line is a text"
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
        return PredictionWriter::to_writer(io::stdout(), format, spec, &rows.row_schema()).map_err(with_option);
    }
    PredictionWriter::create(&args.output, spec, &rows.row_schema()).map_err(with_option)
}

fn check_output(args: &PredictArgs) -> Result<(), Failure> {
    let checked = match args.output == Path::new(STANDARD) {
        true => PredictionWriter::check_stream(args.output_format.unwrap_or(Format::Csv)),
        false => PredictionWriter::check(&args.output, args.output_format, args.overwrite),
    };
    checked.map_err(with_option)
}

fn with_option(error: WriteError) -> Failure {
    match error {
        WriteError::Exists { path } => format!("write {}: it exists; --overwrite replaces it", path.display()).into(),
        WriteError::Column { .. } | WriteError::Type { .. } | WriteError::LateKey { .. } => {
            format!("{error}; --only-predictions leaves out the input's columns").into()
        }
        error => error.into(),
    }
}

fn replaced_columns_note(columns: &[String]) -> Option<String> {
    let names = columns.iter().map(|column| format!("`{column}`")).collect::<Vec<_>>().join(", ");
    match columns.len() {
        0 => None,
        1 => Some(format!("note: the input's column {names} is replaced by the new one")),
        _ => Some(format!("note: the input's columns {names} are replaced by the new ones")),
    }
}

/// Returns a spinner, which is visible only on a terminal.
fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} rows, {per_sec}");
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = style { spinner.with_style(style) } else { spinner }
}
