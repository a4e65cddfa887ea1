use std::io;
use std::path::{Path, PathBuf};

use sepal_catalog::{Catalog, PluginKind};
use serde_json::{Map, Value};

use crate::checks;
use crate::diagnose::{Finding, violations};
use crate::layers::{ENV_PREFIX, Layer, Merged};
use crate::path::KeyPath;
use crate::problem::{Problem, Problems};
use crate::schema::{Choices, Form, GROUP_PARAMS, choices, schema};
use crate::spec::Spec;
use crate::spec::plugins::overridden;

/// Layers of a pipeline: a file, environment variables and options of the command line, later ones over earlier ones.
#[derive(Debug, Clone)]
pub struct Layers {
    name: String,
    text: String,
    env: Vec<(String, String)>,
    sets: Vec<String>,
}

/// A pipeline that was read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The pipeline, with every default filled in.
    pub spec: Spec,
    /// Notices, one line each, on options that an override made meaningless.
    pub notices: Vec<String>,
}

/// A pipeline with the layers that it was read from.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) loaded: Loaded,
    /// Written values, without defaults.
    pub(crate) merged: Merged,
    pub(crate) layers: Vec<Layer>,
}

impl Layers {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot be read.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let text = std::fs::read_to_string(path).map_err(|source| ReadError { path: path.into(), source })?;
        Ok(Self::text(path.display().to_string(), text))
    }

    /// Uses a text; `name` stands for the file in messages.
    pub fn text(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), env: Vec::new(), sets: Vec::new() }
    }

    /// Adds environment variables: `SEPAL__A__B` sets `a.b`; other variables are ignored.
    #[must_use]
    pub fn env(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.env.extend(variables.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)));
        self.env.sort();
        self
    }

    /// Adds options `a.b=value` of the command line, later ones over earlier ones. Values are YAML.
    #[must_use]
    pub fn sets(mut self, sets: impl IntoIterator<Item = String>) -> Self {
        self.sets.extend(sets);
        self
    }

    /// Merges the layers, checks everything that needs neither a tensor nor a connection, and fills in the defaults.
    ///
    /// # Errors
    /// [`Problems`]: all of them at once, each with its origin.
    pub fn load(&self, catalog: &Catalog) -> Result<Loaded, Problems> {
        self.load_traced(catalog).map(|traced| traced.loaded)
    }

    /// Loads like [`load`](Self::load), and keeps the origin of each value.
    pub(crate) fn load_traced(&self, catalog: &Catalog) -> Result<Traced, Problems> {
        let layers = self.layers()?;
        let unmerged = |error: String| Problems::of_pipeline(&self.name, error);
        let mut merged = Merged::new(&layers, &self.text).map_err(unmerged)?;
        let choices = choices(catalog);
        let notices = choices
            .iter()
            .filter(|choice_key| choice_key.form != Form::List)
            .flat_map(|choice_key| drop_stale(choice_key, &layers, &mut merged))
            .collect();

        let mut findings = violations(&schema(catalog), &with_listed_names(&merged.value, catalog));
        findings.extend(checks::findings(&merged.value, catalog));
        let problem = |Finding { key, message, suggestion }| {
            let origin = merged.origin_of(&key, &layers);
            Problem { origin, key, message, suggestion }
        };
        Problems::check(findings.into_iter().map(problem).collect())?;
        let spec = fill_in(merged.value.clone(), catalog).map_err(unmerged)?;
        Ok(Traced { loaded: Loaded { spec, notices }, merged, layers })
    }

    fn layers(&self) -> Result<Vec<Layer>, Problems> {
        let file = std::iter::once(Layer::file(&self.name, &self.text));
        let env = self.env.iter().map(|(name, value)| Layer::env(name, value));
        let sets = self.sets.iter().map(|text| Layer::set(text));
        let (mut layers, mut problems) = (Vec::new(), Vec::new());
        for layer in file.chain(env).chain(sets) {
            match layer {
                Ok(layer) => layers.push(layer),
                Err(problem) => problems.push(problem),
            }
        }
        Problems::check(problems).map(|()| layers)
    }
}

/// Removes options that a changed `use` does not know, and returns a notice for each.
fn drop_stale(choice_key: &Choices, layers: &[Layer], merged: &mut Merged) -> Vec<String> {
    let Some((name, changed_by)) = changed_choice(choice_key.key, layers) else { return Vec::new() };
    let Some(known) = choice_key.options(&name) else { return Vec::new() };
    let with = KeyPath::keys([choice_key.key, "with"]);
    let is_stale = |option: &str| !known.contains(&option) && merged.layer_of(&with.key(option)) < changed_by;
    let written = merged.value[choice_key.key]["with"].as_object();
    let stale: Vec<String> = written.into_iter().flat_map(Map::keys).filter(|key| is_stale(key)).cloned().collect();
    let options = merged.value.get_mut(choice_key.key).and_then(|choice| choice.get_mut("with"));
    if let Some(options) = options.and_then(Value::as_object_mut) {
        stale.iter().for_each(|option| drop(options.shift_remove(option)));
    }
    let notice =
        |option: &String| format!("{} is left out: {} `{name}` has no such option", with.key(option), choice_key.noun);
    stale.iter().map(notice).collect()
}

/// Last choice and its layer, if it differs from the choice of the earlier layers.
fn changed_choice(key: &str, layers: &[Layer]) -> Option<(String, usize)> {
    let mut chosen: Option<&str> = None;
    let mut changed = None;
    for (i, layer) in layers.iter().enumerate() {
        if let Some(name) = layer.get(key, "use").and_then(Value::as_str) {
            if chosen.is_some_and(|before| before != name) {
                changed = Some((name.to_owned(), i));
            }
            chosen = Some(name);
        }
    }
    changed
}

/// Choices of plugins of this kind; none if the key is missing.
fn choices_mut(value: &mut Value, kind: PluginKind) -> &mut [Value] {
    match value.get_mut(kind.key()) {
        Some(Value::Array(choices)) => choices,
        Some(choice) => std::slice::from_mut(choice),
        None => &mut [],
    }
}

/// Returns the pipeline with the names of plugins that the schema lists, instead of earlier ones.
fn with_listed_names(value: &Value, catalog: &Catalog) -> Value {
    let mut value = value.clone();
    for kind in PluginKind::ALL {
        for choice in choices_mut(&mut value, kind) {
            let entry = choice["use"].as_str().and_then(|name| catalog.find(kind, name).ok());
            if let Some((entry, name)) = entry.zip(choice.get_mut("use")) {
                *name = Value::from(entry.name);
            }
        }
    }
    value
}

/// Converts a value without problems to a spec, with the defaults of every plugin.
fn fill_in(mut value: Value, catalog: &Catalog) -> Result<Spec, String> {
    for kind in PluginKind::ALL {
        choices_mut(&mut value, kind).iter_mut().try_for_each(|choice| resolve(kind, choice, catalog))?;
    }
    if let Some(swarm) = value.get_mut("swarm").and_then(Value::as_object_mut) {
        swarm.entry("with").or_insert_with(|| Value::Object(Map::new()));
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn resolve(kind: PluginKind, choice: &mut Value, catalog: &Catalog) -> Result<(), String> {
    let name = choice["use"].as_str().unwrap_or_default().to_owned();
    let resolve = |options: Value| {
        catalog.resolve(kind, &name, options).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            format!("{error}{cause}")
        })
    };
    let resolved = resolve(choice["with"].take())?;
    for group in choice.get_mut("groups").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(group) = group.as_object_mut() else { continue };
        let own = group.iter().filter(|(key, _)| *key != GROUP_PARAMS).map(|(key, value)| (key.clone(), value.clone()));
        let own: Map<String, Value> = own.collect();
        let base = resolved.as_object().cloned().unwrap_or_default();
        let whole = resolve(overridden(&base, &own))?;
        own.keys().for_each(|key| drop(group.insert(key.clone(), whole[key].clone())));
    }
    choice["with"] = resolved;
    Ok(())
}

/// A pipeline file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[error("read {path}")]
pub struct ReadError {
    pub path: PathBuf,
    pub source: io::Error,
}
