//! Suggestions for unknown commands.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Error};
use sepal_core::{NameMatching, nearest};

use crate::args::Args;
use crate::options_file;

/// Names of the commands in other programs, the most frequent first.
const SYNONYMS: &[(&str, &[&str])] = &[
    ("run", &["train", "fit", "finetune", "tune", "learn", "start", "resume", "continue"]),
    ("sweep", &["grid", "search", "hpo", "optimize", "seeds"]),
    ("predict", &["infer", "inference", "classify", "apply", "label", "generate"]),
    ("evaluate", &["test", "score", "measure", "benchmark"]),
    ("init", &["new", "create", "draft", "setup"]),
    ("plan", &["estimate", "profile", "dry-run", "preview"]),
    ("validate", &["check", "verify", "lint"]),
    ("render", &["show", "resolve", "config"]),
    ("fetch", &["download", "get", "pull"]),
    ("report", &["summary", "compare", "results", "html"]),
    ("serve", &["host", "server", "worker"]),
    ("serve-task", &["api", "deploy", "http", "gateway"]),
    ("export", &["save", "convert"]),
    ("import", &["load"]),
    ("push", &["upload", "publish", "share"]),
    ("swarm", &["servers", "peers", "nodes"]),
    ("doctor", &["info", "env", "diagnose", "debug"]),
    ("plugins", &["heads", "extensions", "list"]),
    ("completions", &["completion", "autocomplete"]),
    ("man", &["manual", "docs"]),
];

const SUGGESTIONS: usize = 3;

/// Parses the command line, or ends the program with an error.
pub fn parse() -> Args {
    let words = || std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    options_file::parse(std::env::args_os().collect()).unwrap_or_else(|error| with_suggestions(error, words()).exit())
}

fn with_suggestions(mut error: Error, arguments: impl IntoIterator<Item = String>) -> Error {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return error;
    }
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand).cloned() else { return error };
    let command = parent(Args::command(), &name, arguments);
    match suggestions(&command, &name) {
        found if found.is_empty() => drop(error.remove(ContextKind::SuggestedSubcommand)),
        found => drop(error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(found))),
    }
    error
}

/// Returns the command that lacks the subcommand `name`.
fn parent(mut command: Command, name: &str, arguments: impl IntoIterator<Item = String>) -> Command {
    for argument in arguments.into_iter().take_while(|argument| argument != name) {
        if let Some(found) = command.find_subcommand(&argument) {
            command = found.clone();
        }
    }
    command
}

fn suggestions(command: &Command, name: &str) -> Vec<String> {
    let commands: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let named = commands.iter().map(|&name| (name, name));
    let synonyms = SYNONYMS.iter().flat_map(|(command, words)| words.iter().map(|word| (*word, *command)));
    // `nearest` prefers the last of several equally near words.
    let mut words: Vec<(&str, &str)> =
        synonyms.filter(|(_, command)| commands.contains(command)).chain(named).collect();
    words.reverse();
    let mut found = Vec::new();
    while found.len() < SUGGESTIONS {
        let Some(word) = nearest(name, words.iter().map(|(word, _)| *word), NameMatching::Options) else { break };
        let Some(&(_, command)) = words.iter().find(|(known, _)| *known == word) else { break };
        found.push(command.to_owned());
        words.retain(|(_, other)| *other != command);
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::Parser;

    use super::*;

    fn suggested(arguments: &[&str]) -> Vec<String> {
        let arguments = arguments.iter().map(|&argument| argument.to_owned());
        let error = Args::try_parse_from(["sepal".to_owned()].into_iter().chain(arguments.clone())).expect_err("wrong");
        let error = with_suggestions(error, arguments);
        match error.get(ContextKind::SuggestedSubcommand) {
            Some(ContextValue::Strings(names)) => names.clone(),
            None => Vec::new(),
            Some(other) => panic!("expected names, found {other:?}"),
        }
    }

    #[test]
    fn unknown_command_suggests_the_likeliest_first() {
        for (names, expected) in [
            ("tran train trian fit fine-tune finetune rn", "run"),
            ("test eval evalute", "evaluate"),
            ("infer classify pred", "predict"),
            ("new", "init"),
            ("check", "validate"),
            ("download", "fetch"),
            ("server", "serve"),
            ("deploy servetask", "serve-task"),
            ("upload", "push"),
            ("manual", "man"),
        ] {
            for name in names.split(' ') {
                assert_eq!(suggested(&[name]).first().map(String::as_str), Some(expected), "{name}");
            }
        }
        assert!(!suggested(&["tran"]).contains(&"man".to_owned()));
        assert!(suggested(&["xyzzy"]).is_empty());
    }

    #[test]
    fn unknown_subcommand_suggests_a_sibling() {
        assert_eq!(suggested(&["swarm", "stats"]), ["status"]);
        assert_eq!(suggested(&["export", "pft"]), ["peft"]);
        assert!(suggested(&["swarm", "train"]).is_empty());
    }

    #[test]
    fn synonyms_name_existing_commands_once() {
        let command = Args::command();
        let names: HashSet<&str> = command.get_subcommands().map(Command::get_name).collect();
        let words: Vec<&str> = SYNONYMS.iter().flat_map(|(_, words)| *words).copied().collect();
        assert!(SYNONYMS.iter().all(|(command, _)| names.contains(command)));
        assert!(words.iter().all(|word| !names.contains(word)));
        assert_eq!(words.iter().collect::<HashSet<_>>().len(), words.len());
    }
}
