//! Options of `sepal serve` from a YAML file.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, Error, Parser};
use sepal_core::{NameMatching, ServerName, nearest};
use serde_json::{Map, Value};

use crate::args::{Args, Command as Subcommand};

/// Command that reads options from a file, and the option that names the file.
const COMMAND: &str = "serve";
const OPTION: &str = "config";

/// Parses a command line. The options of the file that `--config` names come before those of the command line.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Args, Error> {
    let Some((file, matches)) = config_file(&arguments) else { return Args::try_parse_from(arguments) };
    let failed = |kind, message: String| Args::command().error(kind, format!("{}: {message}", file.display()));
    let options = read(&file).map_err(|message| failed(ErrorKind::Io, message))?;
    let more = to_arguments(&options, &matches).map_err(|message| failed(ErrorKind::UnknownArgument, message))?;
    let position = arguments.iter().position(|argument| argument == COMMAND).map_or(arguments.len(), |index| index + 1);
    let (start, end) = arguments.split_at(position);
    let parsed = Args::try_parse_from(start.iter().cloned().chain(more).chain(end.iter().cloned()));
    let args = parsed.map_err(|error| {
        let text = error.to_string();
        let message = text.strip_prefix("error: ").unwrap_or(&text);
        failed(error.kind(), format!("with the options of this file: {}", message.trim_end()))
    })?;
    match &args.command {
        Subcommand::Serve(serve) if serve.model.is_empty() => {
            let message = "`model` is required, in this file or on the command line";
            Err(failed(ErrorKind::MissingRequiredArgument, message.to_owned()))
        }
        _ => Ok(args),
    }
}

/// Returns the file that `--config` names, and the matches of the command line without it.
fn config_file(arguments: &[OsString]) -> Option<(PathBuf, ArgMatches)> {
    // Options that the command line lacks may be in the file, so that errors are left to the second pass.
    let matches = Args::command().ignore_errors(true).try_get_matches_from(arguments).ok()?;
    let (_, matches) = matches.subcommand().filter(|(name, _)| *name == COMMAND)?;
    let file: &PathBuf = matches.try_get_one(OPTION).ok()??;
    Some((file.clone(), matches.clone()))
}

fn read(file: &Path) -> Result<Map<String, Value>, String> {
    // The front and the engine read it one after the other, and a pipe has its text only once.
    if file.exists() && !file.is_file() {
        return Err("expected a file, found a folder or a pipe".into());
    }
    let text = std::fs::read_to_string(file).map_err(|error| format!("the file cannot be read: {error}"))?;
    let options = serde_saphyr::options! { strict_booleans: true };
    match serde_saphyr::from_str_with_options(&text, options) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(Value::Null) => Ok(Map::new()),
        Ok(_) => Err("expected a map of options, for example `listen: 0.0.0.0:4000`".into()),
        Err(error) => Err(format!("expected YAML: {error}")),
    }
}

/// Returns the options that the command line does not set, as arguments.
fn to_arguments(options: &Map<String, Value>, matches: &ArgMatches) -> Result<Vec<OsString>, String> {
    let mut program = Args::command();
    // Options of the program become those of each command.
    program.build();
    let command = program.find_subcommand(COMMAND).ok_or("the command does not exist")?;
    let mut arguments = Vec::new();
    for (key, value) in options {
        let arg = find(command, key)?;
        if matches.value_source(arg.get_id().as_str()) != Some(ValueSource::CommandLine) {
            arguments.extend(values(arg, key, value)?);
        }
    }
    Ok(arguments)
}

/// Key of an argument in the file.
fn key_of(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().to_string(), |long| long.replace('-', "_"))
}

fn find<'a>(command: &'a Command, key: &str) -> Result<&'a Arg, String> {
    let is_option = |arg: &&Arg| !matches!(key_of(arg).as_str(), OPTION | "help" | "version");
    let known: Vec<(String, &Arg)> = command.get_arguments().filter(is_option).map(|arg| (key_of(arg), arg)).collect();
    if let Some((_, arg)) = known.iter().find(|(name, _)| name == key) {
        return Ok(arg);
    }
    let names = known.iter().map(|(name, _)| name.as_str());
    let hint = match nearest(key, names, NameMatching::Options) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("`sepal {COMMAND} --help` lists the options"),
    };
    Err(format!("there is no option `{key}`; {hint}"))
}

fn values(arg: &Arg, key: &str, value: &Value) -> Result<Vec<OsString>, String> {
    let flag = arg.get_long();
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let repeats = matches!(arg.get_action(), ArgAction::Append);
    let argument = |text: String| flag.map_or_else(|| text.clone(), |flag| format!("--{flag}={text}")).into();
    match (value, is_switch) {
        (Value::Bool(true), true) => Ok(flag.map(|flag| format!("--{flag}").into()).into_iter().collect()),
        (Value::Bool(false), true) | (Value::Null, _) => Ok(Vec::new()),
        (_, true) => Err(format!("expected true or false for `{key}`")),
        (Value::String(text), _) if is_of::<PathBuf>(arg) && text.starts_with("~/") => Err(format!(
            "`{key}` begins with `~`, which stands for a home folder in a shell only; write the complete path"
        )),
        (Value::String(text), _) => Ok(vec![argument(text.clone())]),
        // YAML's numbers lose zeros, signs and bases, as `010` does.
        (Value::Number(_), _) if is_of::<String>(arg) || is_of::<PathBuf>(arg) || is_of::<ServerName>(arg) => {
            Err(format!("expected a text for `{key}`; put the number in quotation marks"))
        }
        (Value::Number(number), _) => Ok(vec![argument(number.to_string())]),
        (Value::Array(list), _) if repeats => {
            let text = |item: &Value| item.as_str().map(str::to_owned).ok_or(format!("expected texts in `{key}`"));
            list.iter().map(|item| text(item).map(argument)).collect()
        }
        _ => Err(format!("expected one value for `{key}`")),
    }
}

/// True if the values of an argument are of this type.
fn is_of<T: 'static>(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<T>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ServeArgs;

    fn parse_with(file: &str, arguments: &[&str]) -> Result<ServeArgs, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("serve.yaml");
        std::fs::write(&path, file).expect("the file is written");
        let config = format!("--config={}", path.display());
        let all = ["sepal", "serve", &config].iter().chain(arguments).map(OsString::from).collect();
        match parse(all).map_err(|error| error.to_string())?.command {
            Subcommand::Serve(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn file_sets_options_that_the_command_line_lacks() {
        let file = "model: [hub:a/b, ./c]\nlisten: 0.0.0.0:4000\nblocks: 0:10\nlan: true\np2p: false\nmax_rows: 8\n\
                    interface: eth0\ndevice: [cpu, cpu]\nname: lab-3\n";
        let args = parse_with(file, &["--max-rows", "9"]).expect("valid");
        assert_eq!((args.model.len(), args.max_rows, args.lan, args.p2p, args.devices.len()), (2, 9, true, false, 2));
        assert_eq!(args.blocks.map(|span| span.to_string()).as_deref(), Some("0:10"));
        assert_eq!(args.listen.map(|addr| addr.to_string()).as_deref(), Some("0.0.0.0:4000"));
        assert_eq!(args.name.map(|name| name.to_string()).as_deref(), Some("lab-3"));
        let args = parse_with("model: ./c\n", &["./d"]).expect("valid");
        assert_eq!(args.model.iter().map(ToString::to_string).collect::<Vec<_>>(), ["./d"]);
        let args = parse_with("model: ./c\nname: '010'\n", &[]).expect("valid");
        assert_eq!(args.name.map(|name| name.to_string()).as_deref(), Some("010"));
        assert!(parse_with("model: ./c\nlog_format: json\n", &["--log-format", "text"]).is_ok());
        // An option of the command line may need one of the file.
        assert!(parse_with("model: ./c\nlan: true\n", &["--interface", "eth0"]).is_ok());
    }

    #[test]
    fn errors_name_the_file_and_the_option() {
        for (file, expected) in [
            ("max_row: 3", "there is no option `max_row`; did you mean `max_rows`?"),
            ("config: x.yaml", "there is no option `config`"),
            ("lan: 3", "expected true or false for `lan`"),
            ("name: [a]", "expected one value for `name`"),
            ("name: 010", "expected a text for `name`; put the number in quotation marks"),
            ("identity: 3", "expected a text for `identity`"),
            ("secret_file: ~/secret", "`secret_file` begins with `~`"),
            ("model: ./c\nlog_format: xml", "invalid value 'xml' for '--log-format"),
            ("model: ./c\nmax_rows: many", "invalid value 'many' for '--max-rows"),
            ("[1]", "expected a map of options"),
            ("a: [", "expected YAML"),
            ("listen: 0.0.0.0:4000", "required"),
        ] {
            let error = parse_with(file, &[]).expect_err(file);
            assert!(error.contains("serve.yaml: ") && error.contains(expected), "{file}: {error}");
        }
        let missing = parse(["sepal", "serve", "--config", "no.yaml"].map(OsString::from).to_vec());
        assert!(missing.expect_err("no file").to_string().contains("no.yaml: the file cannot be read"));
        let folder = parse(["sepal", "serve", "--config", "."].map(OsString::from).to_vec());
        assert!(folder.expect_err("a folder").to_string().contains("expected a file"));
    }
}
