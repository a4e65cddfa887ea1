//! `sepal completions` and `sepal man`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Args, CompletionsArgs, ManArgs};
use crate::output::{Failure, print};

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    print(completions_of(args.shell)?.trim_end())
}

pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let folder = &args.folder;
    let failed = |error: std::io::Error| format!("write manual pages into {}: {error}", folder.display());
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Args::command(), folder).map_err(failed)?;
    print(&format!("wrote manual pages; read them with: man {}", folder.join("sepal.1").display()))
}

fn completions_of(shell: Shell) -> Result<String, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "sepal", &mut text);
    Ok(String::from_utf8(text)?)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn commands() -> Vec<String> {
        let program = Args::command();
        let mut names = Vec::new();
        for command in program.get_subcommands() {
            names.push(command.get_name().to_owned());
            let below = command.get_subcommands().map(|below| format!("{}-{}", command.get_name(), below.get_name()));
            names.extend(below);
        }
        assert!(names.len() > 10, "{names:?}");
        names
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let text = completions_of(*shell).expect("completions");
            for name in commands() {
                let last = name.rsplit('-').next().expect("a name");
                assert!(text.contains(last), "{shell}: {name}");
            }
        }
        // The words above may stand anywhere in the script; in bash each command has its own case.
        let bash = completions_of(Shell::Bash).expect("completions");
        for command in Args::command().get_subcommands() {
            let case = format!("sepal,{})", command.get_name());
            assert!(bash.contains(&case), "{case}");
        }
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let folder = tempfile::tempdir().expect("a folder");
        man(&ManArgs { folder: folder.path().join("man") }).expect("pages");
        for name in commands() {
            let page = folder.path().join("man").join(format!("sepal-{name}.1"));
            let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{name}");
        }
    }
}
