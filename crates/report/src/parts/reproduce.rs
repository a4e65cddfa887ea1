use askama::Template;

use crate::page::{Section, render};
use crate::read::Run;
use crate::text;

#[derive(Template)]
#[template(path = "reproduce.html")]
struct Reproduce {
    command: String,
    digest: String,
    seed: u64,
    sepal: String,
    libtorch: String,
    exact: bool,
}

/// Section with the command that reproduces the run.
pub(crate) fn section(run: &Run) -> Option<Section> {
    let path = run.folder.join("pipeline.yaml").display().to_string();
    let reproduce = Reproduce {
        command: format!("sepal run {}", quoted(&path)),
        digest: text::cut(&run.manifest.adapter_digest, 200),
        seed: run.manifest.seed,
        sepal: text::cut(&run.manifest.versions.sepal, 60),
        libtorch: text::cut(&run.manifest.versions.libtorch, 60),
        exact: run.options.get("train.deterministic") == Some("true"),
    };
    Some(Section::new("again", "Run it again", [render(&reproduce)]))
}

/// Path quoted for a shell.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path.to_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn quoted_paths_are_valid_for_shell() {
        assert_eq!(quoted("runs/sst2-2026/pipeline.yaml"), "runs/sst2-2026/pipeline.yaml");
        assert_eq!(quoted("my runs/it's"), r"'my runs/it'\''s'");
    }
}
