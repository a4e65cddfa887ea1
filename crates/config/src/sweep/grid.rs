//! Expansion of a sweep into the settings of its runs. Pure: it knows no pipeline.

use serde_json::{Map, Value};

use super::settings::{Setting, below};
use super::{HALVING, MAX_RUNS, OVER, SWEEP};
use crate::diagnose::Finding;
use crate::layers::{Layer, MAX_KEYS};
use crate::path::KeyPath;
use crate::words::show;

/// Keys that all runs of a sweep have in common.
const COMMON: [&str; 3] = ["name", "output.folder", SWEEP];

/// One key of a grid and its values.
struct Axis {
    /// Settings of each value; several where a value is a map of keys.
    values: Vec<Vec<Setting>>,
}

/// Returns the settings of each run. Problems are added to `findings`.
pub(super) fn expand(sweep: &Value, findings: &mut Vec<Finding>) -> Vec<Vec<Setting>> {
    let key = KeyPath::keys([SWEEP]);
    let runs = match sweep {
        Value::Null => {
            findings.push(Finding::new(
                key.clone(),
                "missing, expected keys with lists of values, such as `train.seed: [0..3]`",
            ));
            Vec::new()
        }
        Value::Array(entries) => list(&key, entries, findings),
        Value::Object(fields) => {
            let mut axes = Vec::new();
            let mut listed = None;
            for (name, value) in fields {
                match name.as_str() {
                    HALVING => {}
                    OVER => match value {
                        Value::Array(entries) => listed = Some(list(&key.key(OVER), entries, findings)),
                        Value::Object(keys) => {
                            let place = key.key(OVER);
                            keys.iter()
                                .for_each(|(name, value)| axis(name, &place.key(name), value, &mut axes, findings));
                        }
                        other => findings.push(not_keys(key.key(OVER), other)),
                    },
                    _ => axis(name, &key.key(name), value, &mut axes, findings),
                }
            }
            match listed {
                // A grid beside a list repeats each entry of the list.
                Some(entries) => {
                    product(std::iter::once(Axis { values: entries }).chain(axes).collect(), &key, findings)
                }
                None if axes.is_empty() && findings.is_empty() => {
                    findings.push(Finding::new(
                        key.clone(),
                        "expected a key with a list of values, such as `train.seed: [0..3]`",
                    ));
                    Vec::new()
                }
                None => product(axes, &key, findings),
            }
        }
        other => {
            findings.push(not_keys(key.clone(), other));
            Vec::new()
        }
    };
    for (index, settings) in runs.iter().enumerate() {
        if !check_keys(index, settings, findings) {
            break;
        }
    }
    runs
}

fn not_keys(key: KeyPath, value: &Value) -> Finding {
    Finding::new(key, format!("expected a map of keys with lists of values, or a list of maps, found {}", show(value)))
}

/// Runs of a list: each entry is a map of keys and values.
fn list(key: &KeyPath, entries: &[Value], findings: &mut Vec<Finding>) -> Vec<Vec<Setting>> {
    if entries.is_empty() || entries.len() > MAX_RUNS {
        findings.push(Finding::new(key.clone(), format!("expected 1 to {MAX_RUNS} runs, found {}", entries.len())));
        return Vec::new();
    }
    let mut runs = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        match entry {
            Value::Object(fields) => {
                let mut settings = Vec::new();
                leaves("", &key.index(i), fields, &mut settings);
                runs.push(settings);
            }
            other => findings.push(Finding::new(
                key.index(i),
                format!("expected a map of keys and values, such as `train.seed: 1`, found {}", show(other)),
            )),
        }
    }
    runs
}

/// Adds the settings of a map. Maps in it are read key by key, but a choice of a plugin is one value.
fn leaves(outer: &str, place: &KeyPath, fields: &Map<String, Value>, settings: &mut Vec<Setting>) {
    for (name, value) in fields {
        let (key, place) = (joined(outer, name), place.key(name));
        match value {
            Value::Object(inner) if is_map_of_keys(inner) => leaves(&key, &place, inner, settings),
            value => settings.push(Setting { key, value: value.clone(), place }),
        }
    }
}

/// Returns the sweep with paths `a.b` as the keys of its grid, instead of maps in maps, so that layers override single keys.
/// A key that is written twice is a problem.
pub(crate) fn with_paths_as_keys(sweep: Value) -> Result<Value, Finding> {
    paths_as_keys(&KeyPath::keys([SWEEP]), sweep)
}

fn paths_as_keys(outer: &KeyPath, sweep: Value) -> Result<Value, Finding> {
    let Value::Object(fields) = sweep else { return Ok(sweep) };
    let mut keys = Map::new();
    for (name, value) in fields {
        let place = outer.key(&name);
        match name.as_str() {
            HALVING => drop(keys.insert(name, value)),
            OVER => drop(keys.insert(name, paths_as_keys(&place, value)?)),
            _ => insert_paths(&mut keys, name, &place, value)?,
        }
    }
    Ok(Value::Object(keys))
}

/// Returns the sweep with its keys in the order in which the layers first write them. Merged maps are in alphabetical order.
pub(crate) fn in_written_order(sweep: Value, layers: &[Layer]) -> Value {
    ordered(sweep, &layers.iter().filter_map(|layer| layer.value(SWEEP)).collect::<Vec<_>>())
}

fn ordered(value: Value, written: &[&Value]) -> Value {
    let Value::Object(mut fields) = value else { return value };
    let mut keys = Map::new();
    for name in written.iter().filter_map(|value| value.as_object()).flat_map(Map::keys) {
        let Some(field) = fields.shift_remove(name) else { continue };
        let inner = written.iter().filter_map(|value| value.get(OVER));
        let field = if name == OVER { ordered(field, &inner.collect::<Vec<_>>()) } else { field };
        keys.insert(name.clone(), field);
    }
    keys.extend(fields);
    Value::Object(keys)
}

fn insert_paths(keys: &mut Map<String, Value>, key: String, place: &KeyPath, value: Value) -> Result<(), Finding> {
    match value {
        Value::Object(fields) if is_map_of_keys(&fields) => fields
            .into_iter()
            .try_for_each(|(name, value)| insert_paths(keys, joined(&key, &name), &place.key(&name), value)),
        _ if keys.contains_key(&key) => {
            Err(Finding::new(place.clone(), format!("expected each key once, found `{key}` again")))
        }
        value => {
            keys.insert(key, value);
            Ok(())
        }
    }
}

fn is_map_of_keys(fields: &Map<String, Value>) -> bool {
    !fields.is_empty() && !fields.contains_key("use")
}

fn joined(outer: &str, name: &str) -> String {
    if outer.is_empty() { name.to_owned() } else { format!("{outer}.{name}") }
}

/// Adds the axis of `key`.
fn axis(key: &str, place: &KeyPath, value: &Value, axes: &mut Vec<Axis>, findings: &mut Vec<Finding>) {
    let entries: Vec<(KeyPath, &Value)> = match value {
        Value::Array(entries) => entries.iter().enumerate().map(|(i, entry)| (place.index(i), entry)).collect(),
        Value::String(text) if Range::parse(text).is_some() => vec![(place.clone(), value)],
        other => {
            let message = format!("expected a list of values or a range such as `0..3`, found {}", show(other));
            return findings.push(Finding::new(place.clone(), message));
        }
    };
    let mut values: Vec<(KeyPath, Value)> = Vec::new();
    for (place, entry) in entries {
        match entry.as_str().and_then(Range::parse).map(|range| range.values()) {
            Some(Ok(numbers)) => values.extend(numbers.map(|number| (place.clone(), Value::from(number)))),
            Some(Err(message)) => findings.push(Finding::new(place, message)),
            None => values.push((place, entry.clone())),
        }
    }
    if value.as_array().is_some_and(Vec::is_empty) {
        findings.push(Finding::new(place.clone(), "expected at least one value, found an empty list"));
    }
    for (i, (place, value)) in values.iter().enumerate() {
        if values[..i].iter().any(|(_, earlier)| earlier == value) {
            findings
                .push(Finding::new(place.clone(), format!("expected different values, found {} twice", show(value))));
        }
    }
    let settings = |(place, value): (KeyPath, Value)| match value {
        Value::Object(fields) if is_map_of_keys(&fields) => {
            let mut settings = Vec::new();
            leaves(key, &place, &fields, &mut settings);
            settings
        }
        value => vec![Setting { key: key.to_owned(), value, place }],
    };
    axes.push(Axis { values: values.into_iter().map(settings).collect() });
}

/// Every combination of the values; those of the last axis change fastest.
fn product(axes: Vec<Axis>, key: &KeyPath, findings: &mut Vec<Finding>) -> Vec<Vec<Setting>> {
    let count = axes.iter().fold(1_usize, |count, axis| count.saturating_mul(axis.values.len()));
    if count > MAX_RUNS {
        findings.push(Finding::new(key.clone(), format!("expected at most {MAX_RUNS} runs, found {count}")));
        return Vec::new();
    }
    axes.into_iter().fold(vec![Vec::new()], |runs: Vec<Vec<Setting>>, axis| {
        let with_values = |run: &Vec<Setting>| -> Vec<Vec<Setting>> {
            axis.values.iter().map(|settings| [run.as_slice(), settings.as_slice()].concat()).collect()
        };
        runs.iter().flat_map(with_values).collect()
    })
}

/// Checks the keys of one run; false if there is a problem, which other runs of a grid repeat.
fn check_keys(index: usize, settings: &[Setting], findings: &mut Vec<Finding>) -> bool {
    let before = findings.len();
    for (i, setting) in settings.iter().enumerate() {
        let Setting { key, place, .. } = setting;
        let refuse = |message: String| Finding::new(place.clone(), message);
        if key.split('.').any(str::is_empty) || key.split('.').count() > MAX_KEYS {
            findings.push(refuse(format!("expected a path of keys such as `train.seed`, found `{key}`")));
        }
        if COMMON.iter().any(|common| key == common || below(key, common) || below(common, key)) {
            findings.push(refuse(format!("expected a key that may differ between the runs of a sweep, found `{key}`")));
        }
        if settings[..i].iter().any(|earlier| earlier.key == *key) {
            findings.push(refuse(format!("expected each key once, found `{key}` again in run {}", index + 1)));
        }
        if let Some(outer) = settings.iter().find(|outer| sets_inside(outer, key)) {
            let (outer, run) = (&outer.key, index + 1);
            findings.push(refuse(format!(
                "expected each key once, found `{key}` again in run {run}: its value of `{outer}` sets it"
            )));
        }
    }
    findings.len() == before
}

/// True if `key` lies inside of the setting's value, and the value sets it.
fn sets_inside(setting: &Setting, key: &str) -> bool {
    let inner = key.strip_prefix(setting.key.as_str()).and_then(|suffix| suffix.strip_prefix('.'));
    inner.is_some_and(|inner| inner.split('.').try_fold(&setting.value, |value, name| entry(value, name)).is_some())
}

/// Value of a key of a map, or of an index of a list.
fn entry<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Array(entries) => entries.get(name.parse::<usize>().ok()?),
        other => other.get(name),
    }
}

/// Range of whole numbers: `0..3` are 0, 1 and 2, `0..=3` are 0 to 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    first: i64,
    /// Number after the last one.
    end: i64,
}

impl Range {
    /// Reads a range; `None` for other texts.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once("..")?;
        let (last, is_inclusive) = last.strip_prefix('=').map_or((last, false), |last| (last, true));
        let number = |text: &str| text.trim().parse::<i64>().ok();
        let (first, last) = (number(first)?, number(last)?);
        Some(Self { first, end: last.saturating_add(i64::from(is_inclusive)) })
    }

    pub(super) fn values(self) -> Result<std::ops::Range<i64>, String> {
        let Self { first, end } = self;
        if end <= first {
            return Err(format!("expected a range with numbers in it; the end {end} is not one of its numbers"));
        }
        if end.saturating_sub(first) > MAX_RUNS as i64 {
            return Err(format!("expected a range of at most {MAX_RUNS} numbers"));
        }
        Ok(first..end)
    }
}
