//! `sepal predict` and `sepal evaluate`: predictions and metrics of a trained run.

use std::io::{self, BufRead, BufReader, Cursor, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sepal_assets::Sources;
use sepal_config::spec::RowsSpec;
use sepal_config::{Layers, Spec};
use sepal_core::visible;
use sepal_data::{
    BadRowPolicy, Dialect, EncodedRow, Format, OutputSpec, Passthrough, PredictionRef, PredictionWriter, ReadError,
    RowSpec, RowStream, RowTexts, Rows, TableSpec, VALIDATION_SPLITS, WriteError,
};
use sepal_pipeline::{Classifier, ClassifierError, LabelledSource, LabelledTable, Session, SharedBase};
use sepal_plugin::{Prediction, Registry};
use sepal_track::{DataFacts, Manifest};
use serde_json::{Value, json};

use crate::abstain::check_abstaining;
use crate::args::{EvaluateArgs, LabelledArgs, PipelineArgs, PredictArgs};
use crate::console::Console;
use crate::interrupt::stop_on_interrupt;
use crate::joint_rows::{check_columns, shared_facts};
use crate::output::{Failure, VisibleLines, print, print_json, print_progress};
use crate::pipeline_file::load;
use crate::runs::{self, NamedRun};
use crate::status_line::StatusLine;
use crate::units::grouped;

pub(crate) const STANDARD: &str = "-";
const CHUNK_ROWS: usize = 1024;
const NAMED_ROWS: usize = 5;

pub(crate) fn predict(registry: &Registry, args: &PredictArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt("stopping after these rows; no incomplete file is left")?;
    let mut console = Console::default();
    // Errors of input and output are reported before the model is loaded.
    let runs = runs::named(&args.runs)?;
    check_output(args)?;
    let facts = shared_facts(&runs)?;
    check_columns(&runs, args)?;
    effective_sets(&args.rows.set, &[(WHERE, ALL_ROWS), ("skip_empty", ALL_ROWS)])?;
    let specs = runs.iter().map(|run| trained_spec(registry, &run.folder, &args.rows.set));
    let specs = specs.collect::<Result<Vec<_>, _>>()?;
    let trained = specs.first().map_or_else(Dialect::default, |spec| spec.data.rows.dialect());
    let mut rows = input(args, facts, trained)?;
    if rows.text_column().is_none() {
        return Err(rows.no_rows_error().into());
    }
    PredictionWriter::check_row_schema(&rows.row_schema()).map_err(with_option)?;
    let classifiers = open_all(registry, &runs, &specs, &mut console, &stop)?;
    for (run, classifier) in runs.iter().zip(&classifiers) {
        check_abstaining(args.abstain_below, &run.name, classifier.task())?;
    }
    let mut writer = output(args, &runs, &classifiers, &rows)?;
    if let Some(note) = replaced_columns_note(writer.replaced()) {
        console.line(&note);
    }

    let shows_rows = args.output == Path::new(STANDARD) && io::stdout().is_terminal();
    let status = if shows_rows { None } else { StatusLine::on_terminal() };
    let line = |text: &str| match &status {
        Some(status) => status.line(text),
        None => console.line(text),
    };
    let sessions = classifiers.iter().map(Classifier::session).collect::<Result<Vec<_>, _>>()?;
    let started = Instant::now();
    let column = rows.text_column().map(|(name, _)| name.to_owned()).unwrap_or_default();
    let mut skipped = 0;
    for chunk in rows.by_ref() {
        let mut chunk = chunk?;
        let tokens = tokenize(&sessions, &mut chunk, &column)?;
        if args.strict
            && let Some(bad) = chunk.skipped.first()
        {
            return Err(ReadError::BadRow(bad.clone()).into());
        }
        for bad in chunk.skipped.iter().take(NAMED_ROWS.saturating_sub(skipped)) {
            line(&format!("left out {bad}"));
        }
        skipped += chunk.skipped.len();
        if !chunk.is_empty() {
            let classify = |(session, tokens): (&Session<'_>, &Vec<EncodedRow>)| session.classify(tokens);
            let predicted = sessions.iter().zip(&tokens).map(classify).collect::<Result<Vec<_>, _>>();
            let predicted = predicted.map_err(|error| error.renumbered(&chunk.numbers))?;
            let predicted: Vec<PredictionRef<'_>> = predicted.iter().map(prediction_ref).collect();
            match writer.write_all(&chunk, &predicted) {
                Err(WriteError::Closed) => return Ok(()),
                written => written.map_err(with_option)?,
            }
            if let Some(status) = &status {
                let (rows, seconds) = (writer.rows(), started.elapsed().as_secs_f64());
                status.show(&format!("{} rows, {:.0} rows/s", grouped(rows), rows as f64 / seconds.max(1e-9)));
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Err("predict: stopped; the incomplete file is removed".into());
        }
    }
    drop(status);
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
    let models = if runs.len() > 1 { format!(" with {} models", runs.len()) } else { String::new() };
    let written = grouped(written);
    console.line(&format!("predicted {written} {rows}{models}{left_out} in {seconds:.1} s, {rate:.0} rows/s"));
    Ok(())
}

/// Opens a single run where its pipeline places the blocks, and several on one base model.
fn open_all(
    registry: &Registry,
    runs: &[NamedRun],
    specs: &[Spec],
    console: &mut Console,
    stop: &AtomicBool,
) -> Result<Vec<Classifier>, Failure> {
    let base = SharedBase::new();
    let open = |(run, spec): (&NamedRun, &Spec)| match runs.len() {
        1 => Classifier::open(spec, &run.folder, registry, &mut *console, stop),
        _ => Classifier::open_on(&base, spec, &run.folder, registry, &mut *console, stop),
    };
    Ok(runs.iter().zip(specs).map(open).collect::<Result<Vec<_>, _>>()?)
}

fn prediction_ref(predicted: &Prediction) -> PredictionRef<'_> {
    let Prediction { class, logits, probabilities, items, thresholds, .. } = predicted;
    PredictionRef { items, thresholds, ..PredictionRef::new(class, logits, probabilities) }
}

/// Tokenizes the rows of a chunk for each run, and removes rows from it that have no token for one of them.
fn tokenize(sessions: &[Session<'_>], chunk: &mut Rows, column: &str) -> Result<Vec<Vec<EncodedRow>>, Failure> {
    let texts: Vec<&str> = chunk.texts.iter().map(String::as_str).collect();
    let pairs: Option<Vec<&str>> = chunk.pairs.as_ref().map(|pairs| pairs.iter().map(String::as_str).collect());
    let options = chunk.options.as_deref();
    let rows = || RowTexts { texts: &texts, pairs: pairs.as_deref(), options, ..RowTexts::default() };
    let encode =
        |session: &Session<'_>| session.encode(rows()).map_err(|error| error.located(|row| chunk.location(row)));
    let mut tokens = sessions.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let has_tokens: Vec<bool> =
        (0..chunk.len()).map(|row| tokens.iter().all(|tokens| tokens[row].has_tokens())).collect();
    if has_tokens.contains(&false) {
        chunk.skip_rows_without_tokens(column, &has_tokens)?;
        for tokens in &mut tokens {
            let mut flags = has_tokens.iter();
            tokens.retain(|_| flags.next().copied().unwrap_or(true));
        }
    }
    Ok(tokens)
}

pub(crate) fn evaluate(registry: &Registry, args: &EvaluateArgs) -> Result<(), Failure> {
    let stop = stop_on_interrupt("stopping after this batch; nothing is written")?;
    let mut console = Console::default();
    let (spec, rows) = labelled_rows(registry, &args.run, &args.labelled, &mut console, &stop)?;
    let classifier = Classifier::open(&spec, &args.run, registry, &mut console, &stop)?;
    check_abstaining(args.abstain_below, &classifier.manifest().name, classifier.task())?;
    let evaluation = classifier.evaluate(rows, &mut console, &stop)?;
    drop(console);
    if let Some(path) = &args.predictions {
        sepal_track::write_atomic(path, &evaluation.predictions)?;
    }
    let mut record = evaluation.record.clone();
    if let Some(covered) = args.abstain_below.and_then(|least| evaluation.covered(f64::from(least))) {
        record.metrics.insert("coverage".to_owned(), covered.coverage);
        record.metrics.extend(covered.accuracy.map(|accuracy| ("covered_accuracy".to_owned(), accuracy)));
    }
    if args.json {
        let json = json!({ "rows": record.rows, "loss": record.loss, "metrics": record.metrics });
        return print_json(&serde_json::to_string_pretty(&json)?);
    }
    let mut lines = vec![format!("{:<16} {}", "rows", grouped(record.rows as u64))];
    let headline = record.metrics.get_key_value(&evaluation.headline);
    let others = record.metrics.iter().filter(|(name, _)| **name != evaluation.headline);
    let metrics = headline.into_iter().chain(others).map(|(name, value)| format!("{:<16} {value:.4}", visible(name)));
    lines.extend(metrics);
    lines.push(format!("{:<16} {:.4}", "loss", record.loss));
    print(&lines.join("\n"))
}

/// Reads the pipeline of the run with the command line applied, and the labelled rows: their errors are reported before the
/// model is loaded.
pub(crate) fn labelled_rows(
    registry: &Registry,
    run: &Path,
    args: &LabelledArgs,
    console: &mut Console,
    stop: &AtomicBool,
) -> Result<(Spec, LabelledTable), Failure> {
    let keys = [("delimiter", "`--delimiter` names it"), ("encoding", "`--encoding` names it")];
    let set = effective_sets(&args.rows.set, &keys)?;
    let spec = trained_spec(registry, run, &args.rows.set)?;
    let facts = Manifest::read(run)?.data;
    let rows = labelled_source(&facts, args, &spec.data.rows, &set)?.read(console, stop)?;
    Ok((spec, rows))
}

/// Labelled rows, with the columns of the run where the command line names none. Of the filter `where` of `rows`, columns that
/// the command line does not set are of the training rows only.
fn labelled_source<'a>(
    facts: &DataFacts,
    args: &'a LabelledArgs,
    rows: &RowsSpec,
    set: &Value,
) -> Result<LabelledSource<'a>, Failure> {
    let filter = rows.filter.iter().filter(|(column, _)| set["data"][WHERE].get(column.as_str()).is_some());
    let columns = TableSpec {
        path: PathBuf::new(),
        format: args.format,
        dialect: args.rows.dialect.dialect(),
        text: args.text.clone().unwrap_or_else(|| facts.text.clone()),
        text_pair: args.rows.text_pair.clone().or_else(|| facts.text_pair.clone()),
        label: Some(args.label.clone().unwrap_or_else(|| facts.label.clone())),
        options: facts.options.clone(),
        words: facts.words,
        filter: filter.map(|(column, cell)| (column.clone(), cell.into())).collect(),
        skip_empty: rows.skip_empty,
    };
    let splits = match args.split.as_deref() {
        Some(split) => vec![split],
        None => [&["test"][..], &VALIDATION_SPLITS, &["train"]].concat(),
    };
    Ok(LabelledSource { sources: Sources::new(args.data.clone())?, columns, splits })
}

/// Key of the filter of rows, in `data`.
const WHERE: &str = "where";

/// Keys of `data` in a pipeline without effect on predictions and evaluations of a run, and why.
const WITHOUT_EFFECT: [(&str, &str); 12] = [
    ("template", "predictions need the template of the training"),
    ("train", OTHER_ROWS),
    ("validation", OTHER_ROWS),
    ("validation_split", OTHER_ROWS),
    ("otherwise", OTHER_ROWS),
    ("few_shot", OTHER_ROWS),
    ("text", "`--text` names the column"),
    ("text_pair", "`--text-pair` names the column"),
    ("label", "`--label` names the column"),
    ("format", "`--format` names the format"),
    ("words", FORM_OF_RUN),
    ("options", FORM_OF_RUN),
];

const ALL_ROWS: &str = "predictions are of all rows that have a text";
const OTHER_ROWS: &str = "the rows are those of the command line";
const FORM_OF_RUN: &str = "the rows have the form of those of the training";

/// Returns the values of `--set`. Keys of `data` without effect are refused: those of each command, and `keys`, each with the
/// reason.
fn effective_sets(set: &[String], keys: &[(&str, &str)]) -> Result<Value, Failure> {
    let values = Layers::values_of_sets(set)?;
    if values.get("task").is_some() {
        return Err("set task: predictions need the head of the training, with its labels; remove the setting".into());
    }
    match keys.iter().chain(&WITHOUT_EFFECT).find(|(key, _)| values["data"].get(key).is_some()) {
        Some((key, reason)) => Err(format!("set data.{key}: {reason}; remove the setting").into()),
        None => Ok(values),
    }
}

/// Reads the pipeline of the run with the environment and the command line applied.
fn trained_spec(registry: &Registry, run: &Path, set: &[String]) -> Result<Spec, Failure> {
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
        print_progress(&format!(
            "note: there is no column `{column}`; texts are taken from `{found}` (--text names another)"
        ));
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
    print_progress(&format!("note: the input is read with {}, as the training rows were", used.join(" and ")));
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
    if first.starts_with(b"\x1f\x8b") {
        return Err(
            "read standard input as one text per line: it is compressed by gzip; give its format by --format".into()
        );
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

fn output(
    args: &PredictArgs,
    runs: &[NamedRun],
    classifiers: &[Classifier],
    rows: &RowStream,
) -> Result<PredictionWriter, Failure> {
    let specs = runs.iter().zip(classifiers).map(|(run, classifier)| -> Result<OutputSpec, ClassifierError> {
        Ok(OutputSpec {
            format: args.output_format,
            probabilities: args.probabilities,
            abstain_below: args.abstain_below,
            overwrite: args.overwrite,
            prefix: if runs.len() > 1 { format!("{}.", run.name) } else { String::new() },
            ..classifier.output()?
        })
    });
    let specs = specs.collect::<Result<Vec<_>, _>>()?;
    if args.output == Path::new(STANDARD) {
        let format = args.output_format.unwrap_or(Format::Csv);
        // Rows of a file could change a terminal.
        let out: Box<dyn Write + Send> = match io::stdout().is_terminal() {
            true => Box::new(VisibleLines::new(io::stdout())),
            false => Box::new(io::stdout()),
        };
        return PredictionWriter::to_writer(out, format, specs, &rows.row_schema()).map_err(with_option);
    }
    PredictionWriter::create(&args.output, specs, &rows.row_schema()).map_err(with_option)
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
