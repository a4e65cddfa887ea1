use std::io;
use std::path::{Path, PathBuf};

use sepal_catalog::{Catalog, PluginKind};
use sepal_core::ComputeFormat;
use serde_json::{Map, Value};

use crate::checks;
use crate::diagnose::{Finding, violations};
use crate::layers::{ENV_PREFIX, Layer, Merged};
use crate::path::KeyPath;
use crate::problem::{Problem, Problems};
use crate::schema::{Choices, FAST, Form, GROUP_PARAMS, choices, schema};
use crate::spec::Spec;
use crate::spec::plugins::overridden;
use crate::sweep::{SWEEP, in_written_order};

/// Layers of a pipeline: a file, environment variables and options of the command line, later ones over earlier ones.
#[derive(Debug, Clone)]
pub struct Layers {
    name: String,
    text: String,
    /// True for the record of a run, which an earlier version may have written.
    is_record: bool,
    /// Name and text of a file with the sweep.
    sweep: Option<(String, String)>,
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
    /// Sweep as it is written, if there is one.
    pub(crate) sweep: Option<Value>,
}

impl Layers {
    /// Reads the file at `path`. In a run folder it is the record of the run, whose keys may be those of an earlier version.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot be read.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let is_record = is_record(path);
        // A pipeline may come by a pipe, that of a run folder is a file.
        let bytes = match is_record {
            true => sepal_machine::regular::read(path),
            false => std::fs::read(path),
        };
        let text = text(path, bytes)?;
        Ok(Self { is_record, ..Self::text(path.display().to_string(), text) })
    }

    /// Uses a text; `name` stands for the file in messages.
    pub fn text(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into(), is_record: false, sweep: None, env: Vec::new(), sets: Vec::new() }
    }

    /// Reads the sweep from the file at `path`, which holds the value of the key `sweep`.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot be read.
    pub fn sweep_over(mut self, path: &Path) -> Result<Self, ReadError> {
        let text = text(path, std::fs::read(path))?;
        self.sweep = Some((path.display().to_string(), text));
        Ok(self)
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

    /// Values of options `a.b=value` of the command line alone, as maps in maps.
    ///
    /// # Errors
    /// [`Problems`] of options without a key or with a value that is not YAML.
    pub fn values_of_sets(sets: &[String]) -> Result<Value, Problems> {
        let layers = Self::text("--set", "{}").sets(sets.iter().cloned()).layers()?;
        Ok(Merged::new(&layers).value)
    }

    /// Merges the layers, checks everything that needs neither a tensor nor a connection, and fills in the defaults.
    ///
    /// # Errors
    /// [`Problems`]: all of them at once, each with its origin.
    pub fn load(&self, catalog: &Catalog) -> Result<Loaded, Problems> {
        self.load_traced(catalog, false).map(|traced| traced.loaded)
    }

    /// Loads like [`load`](Self::load), and keeps the origin of each value. A sweep is a problem unless `allows_sweep`; its
    /// runs are not checked.
    pub(crate) fn load_traced(&self, catalog: &Catalog, allows_sweep: bool) -> Result<Traced, Problems> {
        let (merged, layers, notices) = self.merge(catalog)?;
        let mut value = merged.value.clone();
        let sweep =
            value.as_object_mut().and_then(|fields| fields.shift_remove(SWEEP)).filter(|sweep| !sweep.is_null());
        let mut findings = violations(&schema(catalog), &with_listed_names(&value, catalog));
        findings.extend(checks::findings(&value, catalog));
        if sweep.is_some() && !allows_sweep {
            let message = "found several runs where one is expected; `null` here leaves the pipeline without them";
            findings.push(Finding::new(KeyPath::keys([SWEEP]), message));
        }
        let problem = |Finding { key, message, suggestion }| {
            let origin = merged.origin_of(&key, &layers);
            Problem { origin, key, message, suggestion }
        };
        Problems::check(findings.into_iter().map(problem).collect())?;
        let spec = fill_in(value, catalog).map_err(|error| Problems::of_pipeline(&self.name, error))?;
        let sweep = sweep.map(|sweep| in_written_order(sweep, &layers));
        Ok(Traced { loaded: Loaded { spec, notices }, merged, layers, sweep })
    }

    /// Merges the layers, and leaves out options that an override made meaningless, with a notice for each.
    pub(crate) fn merge(&self, catalog: &Catalog) -> Result<(Merged, Vec<Layer>, Vec<String>), Problems> {
        let layers = self.layers()?;
        let mut merged = Merged::new(&layers);
        let choices = choices(catalog);
        let notices = choices
            .iter()
            .filter(|choice_key| choice_key.form != Form::List)
            .flat_map(|choice_key| drop_stale(choice_key, &layers, &mut merged))
            .collect();
        stand_in_for_training_rows(&mut merged.value);
        Ok((merged, layers, notices))
    }

    /// Name that stands for the file in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn layers(&self) -> Result<Vec<Layer>, Problems> {
        let file = Layer::file(&self.name, &self.text);
        let file = std::iter::once(if self.is_record { file.map(Layer::converted) } else { file });
        let sweep = self.sweep.iter().map(|(name, text)| Layer::file_of_key(name, text, SWEEP));
        let env = self.env.iter().map(|(name, value)| Layer::env(name, value));
        let sets = self.sets.iter().map(|text| Layer::set(text));
        let (mut layers, mut problems) = (Vec::new(), Vec::new());
        for layer in file.chain(sweep).chain(env).chain(sets) {
            match layer {
                Ok(layer) => layers.push(layer),
                Err(problem) => problems.push(problem),
            }
        }
        Problems::check(problems).map(|()| layers)
    }
}

/// Text of the file at `path`, which has to be UTF-8.
fn text(path: &Path, bytes: io::Result<Vec<u8>>) -> Result<String, ReadError> {
    let text = bytes.and_then(|bytes| {
        let problem =
            |problem: String| io::Error::new(io::ErrorKind::InvalidData, format!("{problem}; save it as UTF-8"));
        sepal_data::utf8_text(bytes).map_err(problem)
    });
    text.map_err(|source| ReadError { path: path.into(), source })
}

/// Without training, validation rows stand in for training rows that are not given.
fn stand_in_for_training_rows(value: &mut Value) {
    if value["train"]["max_steps"] != 0 {
        return;
    }
    let stand_in = |rows: &mut Value| {
        let Some(rows) = rows.as_object_mut() else { return };
        let validation = rows.get("validation").filter(|validation| !validation.is_null()).cloned();
        if rows.get("train").is_none_or(Value::is_null)
            && let Some(validation) = validation
        {
            rows.insert("train".to_owned(), validation);
        }
    };
    let Some(data) = value.get_mut("data") else { return };
    stand_in(data);
    data.get_mut("otherwise").and_then(Value::as_array_mut).into_iter().flatten().for_each(stand_in);
}

/// Returns true for the pipeline file of a run folder.
fn is_record(path: &Path) -> bool {
    let is_beside = |name: &str| path.with_file_name(name).is_file();
    path.ends_with("pipeline.yaml") && ["manifest.json", "metrics.jsonl"].into_iter().any(is_beside)
}

/// Removes options that a changed `use` does not know, and returns a notice for each that is not the default: the file of a
/// run lists every option.
fn drop_stale(choice_key: &Choices, layers: &[Layer], merged: &mut Merged) -> Vec<String> {
    let Some((before, name, changed_by)) = changed_choice(choice_key.key, layers) else { return Vec::new() };
    let Some(known) = choice_key.options(&name) else { return Vec::new() };
    let with = KeyPath::keys([choice_key.key, "with"]);
    let is_stale = |option: &str| !known.contains(&option) && merged.layer_of(&with.key(option)) < changed_by;
    let written = merged.value[choice_key.key]["with"].as_object();
    let stale: Vec<String> = written.into_iter().flat_map(Map::keys).filter(|key| is_stale(key)).cloned().collect();
    let options = merged.value.get_mut(choice_key.key).and_then(|choice| choice.get_mut("with"));
    let Some(options) = options.and_then(Value::as_object_mut) else { return Vec::new() };
    let mut notices = Vec::new();
    for option in &stale {
        let value = options.shift_remove(option).unwrap_or_default();
        if !choice_key.is_default(&before, option, &value) {
            let key = with.key(option);
            notices.push(format!("{key} is left out: {} `{name}` has no such option", choice_key.noun));
        }
    }
    notices
}

/// Choice of the earlier layers, last choice and its layer, if they differ.
fn changed_choice(key: &str, layers: &[Layer]) -> Option<(String, String, usize)> {
    let mut chosen: Option<&str> = None;
    let mut changed = None;
    for (i, layer) in layers.iter().enumerate() {
        if let Some(name) = layer.get(key, "use").and_then(Value::as_str) {
            if let Some(before) = chosen.filter(|before| *before != name) {
                changed = Some((before.to_owned(), name.to_owned(), i));
            }
            chosen = Some(name);
        }
    }
    changed
}

/// Choices of plugins of this kind; none if the key is missing.
pub(crate) fn choices_mut(value: &mut Value, kind: PluginKind) -> &mut [Value] {
    match value.get_mut(kind.key()) {
        Some(Value::Array(choices)) => choices,
        Some(choice) => std::slice::from_mut(choice),
        None => &mut [],
    }
}

/// Returns the pipeline with the names of plugins that the schema lists, instead of earlier ones.
pub(crate) fn with_listed_names(value: &Value, catalog: &Catalog) -> Value {
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
pub(crate) fn fill_in(mut value: Value, catalog: &Catalog) -> Result<Spec, String> {
    for kind in PluginKind::ALL {
        choices_mut(&mut value, kind).iter_mut().try_for_each(|choice| resolve(kind, choice, catalog))?;
    }
    if let Some(swarm) = value.get_mut("swarm").and_then(Value::as_object_mut) {
        swarm.entry("with").or_insert_with(|| Value::Object(Map::new()));
    }
    choose_format(&mut value);
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// Replaces `model.compute: fast` by a format: the fastest one of the device if all blocks are in this process. Servers
/// elsewhere have their own formats, so with them it is the default.
pub(crate) fn choose_format(value: &mut Value) {
    let is_here = matches!(value["swarm"]["use"].as_str(), None | Some("none" | "embedded"));
    let Some(model) = value.get_mut("model").and_then(Value::as_object_mut) else { return };
    if model.get("compute").is_none_or(|compute| compute != FAST) {
        return;
    }
    let device = model.get("device").and_then(|device| serde_json::from_value(device.clone()).ok()).unwrap_or_default();
    let format = is_here.then(|| ComputeFormat::fastest_on(device).name());
    model.insert("compute".to_owned(), format.into());
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
