use std::collections::BTreeMap;
use std::fmt;

use sepal_core::{NameMatching, nearest};
use serde_json::Value;

use crate::{Entry, OptionProblem, Options};

/// Kind of plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PluginKind {
    /// Task head: hidden states to logits and a loss.
    Head,
    /// Tuning mode: the trainable tensors injected into the frozen model.
    Tuning,
    /// Optimizer.
    Optimizer,
    /// Learning-rate schedule.
    Schedule,
    /// Tracker: shows a run elsewhere as it goes.
    Tracker,
}

impl PluginKind {
    /// Every kind, in the order of a pipeline file.
    pub const ALL: [Self; 5] = [Self::Head, Self::Tuning, Self::Optimizer, Self::Schedule, Self::Tracker];

    /// Key of a pipeline file that chooses plugins of this kind.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Head => "task",
            Self::Tuning => "tuning",
            Self::Optimizer => "optimizer",
            Self::Schedule => "schedule",
            Self::Tracker => "track",
        }
    }
}

/// The noun that messages use, for example `task head`.
impl fmt::Display for PluginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Head => "task head",
            Self::Tuning => "tuning mode",
            Self::Optimizer => "optimizer",
            Self::Schedule => "schedule",
            Self::Tracker => "tracker",
        })
    }
}

/// Plugins by kind and name.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    entries: BTreeMap<(PluginKind, &'static str), Entry>,
}

impl Catalog {
    /// Returns a catalog without plugins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a plugin.
    ///
    /// # Errors
    /// [`DuplicateError`] if a plugin of this kind has the name or an alias already.
    pub fn insert(&mut self, kind: PluginKind, entry: Entry) -> Result<(), DuplicateError> {
        let mut names = std::iter::once(entry.name).chain(entry.aliases.iter().copied());
        if let Some(name) = names.find(|name| self.entries(kind).any(|other| other.is_named(name))) {
            return Err(DuplicateError { kind, name });
        }
        self.entries.insert((kind, entry.name), entry);
        Ok(())
    }

    /// Adds the plugin of these options.
    ///
    /// # Errors
    /// [`RegisterError`] if a plugin of this kind has the name or an alias already, or the example has no JSON form.
    pub fn register<C: Options>(&mut self) -> Result<&mut Self, RegisterError> {
        let entry = Entry::new(C::NAME, &C::example(), C::check).map_err(|source| RegisterError::Example {
            kind: C::KIND,
            name: C::NAME,
            source,
        })?;
        self.insert(C::KIND, entry.with_aliases(C::ALIASES))?;
        Ok(self)
    }

    /// Plugins of one kind, by name.
    pub fn entries(&self, kind: PluginKind) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |((of, _), _)| *of == kind).map(|(_, entry)| entry)
    }

    /// Returns the options as the plugin reads them, with every default filled in.
    ///
    /// # Errors
    /// [`ResolveError`] if there is no such plugin, or it does not accept the options.
    pub fn resolve(&self, kind: PluginKind, name: &str, options: Value) -> Result<Value, ResolveError> {
        let entry = self.find(kind, name)?;
        entry.resolve(options).map_err(|source| ResolveError::Options { kind, name: entry.name, source })
    }

    /// Returns the problems of options that [`resolve`](Self::resolve) accepts.
    ///
    /// # Errors
    /// [`ResolveError`] as there.
    pub fn check(&self, kind: PluginKind, name: &str, options: Value) -> Result<Vec<OptionProblem>, ResolveError> {
        let entry = self.find(kind, name)?;
        entry.check(options).map_err(|source| ResolveError::Options { kind, name: entry.name, source })
    }

    /// Returns the plugin of this name or alias.
    ///
    /// # Errors
    /// [`ResolveError::Unknown`] if there is none.
    pub fn find(&self, kind: PluginKind, name: &str) -> Result<&Entry, ResolveError> {
        self.entries(kind).find(|entry| entry.is_named(name)).ok_or_else(|| {
            let known: Vec<&'static str> = self.entries(kind).map(|entry| entry.name).collect();
            let nearest = nearest(name, known.iter().copied(), NameMatching::Options).map(str::to_owned);
            ResolveError::Unknown { kind, name: name.to_owned(), known, nearest }
        })
    }
}

/// A name that is listed twice.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("register {kind} `{name}`: there is one of this name already")]
pub struct DuplicateError {
    pub kind: PluginKind,
    pub name: &'static str,
}

/// A plugin that cannot be registered.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum RegisterError {
    /// Name that is registered already.
    #[error(transparent)]
    Duplicate(#[from] DuplicateError),
    /// Example without a JSON form.
    #[error("write the example of {kind} `{name}`")]
    Example { kind: PluginKind, name: &'static str, source: serde_json::Error },
}

/// Options that cannot be resolved.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum ResolveError {
    /// No plugin of that name.
    #[error("find {kind} `{name}`{} (known: {})", did_you_mean(nearest), known.join(", "))]
    Unknown { kind: PluginKind, name: String, known: Vec<&'static str>, nearest: Option<String> },
    /// Options that the plugin does not accept.
    #[error("read the options of {kind} `{name}`")]
    Options { kind: PluginKind, name: &'static str, source: serde_json::Error },
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(name: &'static str, aliases: &'static [&'static str]) -> Entry {
        Entry::new(name, &Value::Null, |_: &Value| Vec::new()).expect("an entry").with_aliases(aliases)
    }

    #[test]
    fn aliases_are_found_and_not_listed() {
        let mut catalog = Catalog::new();
        catalog.insert(PluginKind::Tuning, entry("new", &["old", "oldest"])).expect("the names are free");
        assert_eq!(catalog.find(PluginKind::Tuning, "oldest").expect("there is one").name, "new");
        assert!(catalog.resolve(PluginKind::Tuning, "old", json!({})).is_ok());
        assert!(catalog.find(PluginKind::Optimizer, "old").is_err());
        let error = catalog.find(PluginKind::Tuning, "older").expect_err("there is none").to_string();
        assert!(error.ends_with("(known: new)"), "{error}");

        for taken in [entry("old", &[]), entry("other", &["new"]), entry("another", &["old"])] {
            assert!(catalog.insert(PluginKind::Tuning, taken.clone()).is_err(), "{taken:?}");
        }
        catalog.insert(PluginKind::Optimizer, entry("old", &[])).expect("another kind");
    }
}
