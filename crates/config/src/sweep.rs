//! Sweeps: several runs of one pipeline, with different values of some keys.

mod format;
mod grid;
mod problems;
mod settings;

use std::collections::HashMap;

use sepal_catalog::{Catalog, schema_of};
use serde_json::Value;

use crate::checks;
use crate::diagnose::{Finding, violations};
use crate::layers::{Layer, Merged};
use crate::load::{Layers, choose_format, fill_in, with_listed_names};
use crate::path::KeyPath;
use crate::problem::{Problem, Problems};
use crate::schema::{Choices, Form, choices, schema};
use crate::spec::{HalvingSpec, Spec};
use crate::ticket::withhold;
use problems::MemberProblems;
use settings::{apply, below};

pub(crate) use self::grid::{in_written_order, with_paths_as_keys};
pub use self::settings::Setting;

/// Key of a sweep in a pipeline file.
pub(crate) const SWEEP: &str = "sweep";
/// Key of early stopping in a sweep.
const HALVING: &str = "halving";
/// Key of the long form of a grid or a list.
const OVER: &str = "over";
/// Maximum number of runs of a sweep.
pub(crate) const MAX_RUNS: usize = 1000;

/// Several runs of one pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// Runs in order: the last key of a grid changes fastest.
    pub members: Vec<Member>,
    /// Early end of runs that fall behind, if requested.
    pub halving: Option<HalvingSpec>,
    /// Notices, one line each, on options that an override made meaningless.
    pub notices: Vec<String>,
    /// Pipeline file with all overrides that reads as this sweep.
    pub yaml: String,
}

/// One run of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Values that differ from the pipeline, in the order of the sweep.
    pub settings: Vec<Setting>,
    /// Checked pipeline of the run.
    pub spec: Spec,
}

impl Layers {
    /// True if the file describes several runs. A file that cannot be read as YAML describes none.
    pub fn is_sweep(&self) -> bool {
        self.layers().is_ok_and(|layers| !Merged::new(&layers).value[SWEEP].is_null())
    }

    /// Merges the layers and checks every run of the sweep.
    ///
    /// # Errors
    /// [`Problems`]: those of all runs at once, each with its place in the sweep and the run.
    pub fn load_sweep(&self, catalog: &Catalog) -> Result<Sweep, Problems> {
        let (mut merged, layers, notices) = self.merge(catalog)?;
        let fields = merged.value.as_object_mut();
        let sweep = fields.and_then(|fields| fields.shift_remove(SWEEP)).unwrap_or_default();
        let sweep = in_written_order(sweep, &layers);
        let mut findings = Vec::new();
        let runs = grid::expand(&sweep, &mut findings);
        findings.extend(format::undecided(&merged.value, &runs));
        choose_format(&mut merged.value);
        let yaml = written(&merged.value, &sweep);
        let yaml = yaml.map_err(|error| Problems::of_pipeline(self.name(), error.to_string()))?;
        let halving = halving(&sweep, &merged.value, &mut findings);
        let problem = |finding: Finding| {
            let Finding { key, message, suggestion } = finding;
            Problem { origin: merged.origin_of(&key, &layers), key, message, suggestion }
        };
        Problems::check(findings.into_iter().map(problem).collect())?;
        let members = Members { merged: &merged, layers: &layers, catalog }.check(runs)?;
        let is_compared_by_default = halving.as_ref().is_some_and(|halving| halving.metric.is_none());
        let has_other_metric = |pair: &[Member]| pair[0].spec.evaluate.metric != pair[1].spec.evaluate.metric;
        if is_compared_by_default && members.windows(2).any(has_other_metric) {
            let message = "expected `metric`, because the runs differ in `evaluate.metric`";
            let finding = Finding::new(KeyPath::keys([SWEEP, HALVING]), message);
            Problems::check(vec![problem(finding)])?;
        }
        Ok(Sweep { members, halving, notices, yaml })
    }
}

/// Pipeline file of a sweep.
fn written(pipeline: &Value, sweep: &Value) -> Result<String, serde_saphyr::SerializeError> {
    let mut file = pipeline.clone();
    if let Some(fields) = file.as_object_mut() {
        fields.insert(SWEEP.to_owned(), sweep.clone());
    }
    withhold(&mut file);
    serde_saphyr::to_string(&file)
}

/// Reads the options of early stopping.
fn halving(sweep: &Value, pipeline: &Value, findings: &mut Vec<Finding>) -> Option<HalvingSpec> {
    let value = sweep.get(HALVING).filter(|value| !value.is_null())?;
    let key = KeyPath::keys([SWEEP, HALVING]);
    let schema = schema_of::<HalvingSpec>();
    let found = violations(&schema, value);
    let is_valid = found.is_empty();
    findings.extend(found.into_iter().map(|finding| Finding { key: key.join(finding.key.segments()), ..finding }));
    if pipeline["evaluate"]["every"] == "never" {
        findings
            .push(Finding::new(key, "expected evaluations, which decide the runs that continue (`evaluate.every`)"));
    }
    is_valid.then(|| serde_json::from_value(value.clone()).ok()).flatten()
}

/// Checks of the runs of a sweep.
struct Members<'a> {
    /// The pipeline without the sweep.
    merged: &'a Merged,
    layers: &'a [Layer],
    catalog: &'a Catalog,
}

impl Members<'_> {
    fn check(&self, runs: Vec<Vec<Setting>>) -> Result<Vec<Member>, Problems> {
        let schema = schema(self.catalog);
        let name = "the pipeline";
        let choices = choices(self.catalog);
        let (mut problems, mut members) = (MemberProblems::default(), Vec::new());
        let mut seen: HashMap<String, usize> = HashMap::new();
        let count = runs.len();
        for (index, settings) in runs.into_iter().enumerate() {
            let value = match self.value(&settings, &choices) {
                Ok(value) => value,
                Err(finding) => {
                    problems.add(index, &settings, finding);
                    continue;
                }
            };
            let mut findings = violations(&schema, &with_listed_names(&value, self.catalog));
            findings.extend(checks::findings(&value, self.catalog));
            if !findings.is_empty() {
                findings.into_iter().for_each(|finding| problems.add(index, &settings, finding));
                continue;
            }
            let spec = fill_in(value, self.catalog).map_err(|error| Problems::of_pipeline(name, error))?;
            let written = serde_json::to_string(&spec).unwrap_or_default();
            match seen.insert(written, index) {
                Some(earlier) => {
                    let message = format!("expected different runs, found run {} again", earlier + 1);
                    let key = settings.first().map_or_else(|| KeyPath::keys([SWEEP]), Setting::path);
                    problems.add(index, &settings, Finding::new(key, message));
                }
                None => members.push(Member { settings, spec }),
            }
        }
        Problems::check(problems.into_problems(count, self.merged, self.layers))?;
        Ok(members)
    }

    /// Pipeline of one run. Options that a changed plugin does not have are left out, unless the run sets them.
    fn value(&self, settings: &[Setting], choices: &[Choices]) -> Result<Value, Finding> {
        let mut value = self.merged.value.clone();
        let mut ordered: Vec<&Setting> = settings.iter().collect();
        // A whole map comes before the keys in it.
        ordered.sort_by_key(|setting| setting.key.split('.').count());
        for setting in &ordered {
            apply(&mut value, setting)?;
        }
        for choice_key in choices.iter().filter(|choice_key| choice_key.form != Form::List) {
            let before = self.merged.value[choice_key.key]["use"].as_str();
            let after = value[choice_key.key]["use"].as_str();
            let is_changed = before.is_some() && before != after;
            let Some(known) = after.filter(|_| is_changed).and_then(|name| choice_key.options(name)) else { continue };
            let known: Vec<String> = known.into_iter().map(str::to_owned).collect();
            let with = format!("{}.with", choice_key.key);
            let options = value[choice_key.key].get_mut("with").and_then(Value::as_object_mut);
            if let Some(options) = options {
                let is_set =
                    |option: &str| settings.iter().any(|setting| is_set_by(&format!("{with}.{option}"), setting));
                options.retain(|option, _| known.iter().any(|name| name == option) || is_set(option));
            }
        }
        Ok(value)
    }
}

/// True if the setting gives the value of `key` or of a map around it.
fn is_set_by(key: &str, setting: &Setting) -> bool {
    key == setting.key || below(key, &setting.key) || below(&setting.key, key)
}

#[cfg(test)]
mod tests;
