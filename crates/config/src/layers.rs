//! Layers of values: file, environment and command line, and the origin of each value.

use figment::value::{Dict, Map as Profiles, Value as Tagged};
use figment::{Figment, Metadata, Profile, Provider, Source};
use serde_json::{Map, Value, json};

use crate::path::{KeyPath, Segment};
use crate::positions::Positions;
use crate::problem::{Origin, Problem};
use crate::yaml;

pub(crate) const ENV_PREFIX: &str = "SEPAL__";

#[derive(Debug)]
pub(crate) struct Layer {
    origin: Origin,
    values: Map<String, Value>,
}

impl Layer {
    pub(crate) fn file(name: &str, text: &str) -> Result<Self, Problem> {
        let origin = |position| Origin::File { name: name.to_owned(), position };
        match yaml::parse(text) {
            Ok(Value::Object(values)) => Ok(Self { origin: origin(None), values }),
            Ok(Value::Null) => Ok(Self { origin: origin(None), values: Map::new() }),
            Ok(_) => Err(problem(origin(None), "expected a map of keys, such as `name: my-run`")),
            Err(error) => Err(problem(origin(error.position), &error.message)),
        }
    }

    /// Layer of an environment variable `SEPAL__A__B`, which sets `a.b`.
    pub(crate) fn env(name: &str, value: &str) -> Result<Self, Problem> {
        let origin = Origin::Env { name: name.to_owned() };
        let keys = name.strip_prefix(ENV_PREFIX).unwrap_or(name).to_lowercase();
        Self::new(origin, &keys.split("__").collect::<Vec<_>>(), value)
    }

    /// Layer of an option `--set a.b=value`.
    pub(crate) fn set(text: &str) -> Result<Self, Problem> {
        let origin = Origin::Set { text: text.to_owned() };
        match text.split_once('=') {
            Some((keys, value)) => Self::new(origin, &keys.trim().split('.').collect::<Vec<_>>(), value),
            None => Err(problem(origin, "expected KEY=VALUE, for example train.seed=7")),
        }
    }

    fn new(origin: Origin, keys: &[&str], value: &str) -> Result<Self, Problem> {
        if keys.iter().any(|key| key.is_empty()) {
            return Err(problem(origin, "expected a key, for example train.seed"));
        }
        let leaf = match yaml::parse_scalar(value) {
            Ok(leaf) => leaf,
            Err(error) => return Err(Problem { key: KeyPath::keys(keys.iter().copied()), ..problem(origin, &error) }),
        };
        match keys.iter().rev().fold(leaf, |below, key| json!({ *key: below })) {
            Value::Object(values) => Ok(Self { origin, values }),
            _ => Err(problem(origin, "expected a key, for example train.seed")),
        }
    }

    pub(crate) fn get(&self, a: &str, b: &str) -> Option<&Value> {
        self.values.get(a)?.get(b)
    }
}

fn problem(origin: Origin, message: &str) -> Problem {
    Problem { origin, key: KeyPath::root(), message: message.to_owned(), suggestion: None }
}

/// The metadata name that figment keeps is the layer's index.
struct Numbered<'a>(usize, &'a Layer);

impl Provider for Numbered<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::from(self.1.origin.to_string(), Source::Custom(self.0.to_string()))
    }

    fn data(&self) -> figment::Result<Profiles<Profile, Dict>> {
        let dict = Tagged::serialize(&self.1.values)?.into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(dict))
    }
}

#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) value: Value,
    tagged: Tagged,
    figment: Figment,
    positions: Positions,
}

impl Merged {
    /// Merges the layers, later ones over earlier ones. `text` is the text of the file, which is the first layer.
    pub(crate) fn new(layers: &[Layer], text: &str) -> Result<Self, String> {
        let start = Figment::new();
        let figment = layers.iter().enumerate().fold(start, |figment, (i, layer)| figment.merge(Numbered(i, layer)));
        let tagged = figment.find_value("").map_err(|error| error.to_string())?;
        let value = whole_numbers(serde_json::to_value(&tagged).map_err(|error| error.to_string())?);
        Ok(Self { value, tagged, figment, positions: Positions::new(text) })
    }

    /// Index of the layer of the value at `path`, or of its closest existing ancestor.
    pub(crate) fn layer_of(&self, path: &KeyPath) -> usize {
        let mut tagged = &self.tagged;
        for segment in path.segments() {
            let below = match segment {
                Segment::Key(key) => tagged.as_dict().and_then(|dict| dict.get(key)),
                Segment::Index(index) => tagged.as_array().and_then(|array| array.get(*index)),
            };
            let Some(below) = below else { break };
            tagged = below;
        }
        let source = self.figment.get_metadata(tagged.tag()).and_then(|metadata| metadata.source.as_ref());
        source.and_then(Source::custom).and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Origin of the value at `path`, or of the section where it is missing.
    pub(crate) fn origin_of(&self, path: &KeyPath, layers: &[Layer]) -> Origin {
        match layers.get(self.layer_of(path)).map(|layer| &layer.origin) {
            Some(Origin::File { name, .. }) => {
                Origin::File { name: name.clone(), position: self.positions.nearest(path) }
            }
            Some(origin) => origin.clone(),
            None => Origin::File { name: "the pipeline".to_owned(), position: None },
        }
    }
}

/// Writes `3.0` as `3`, which readers of whole numbers accept.
fn whole_numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15 => json!(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(entries) => entries.into_iter().map(whole_numbers).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, whole_numbers(value))).collect(),
        other => other,
    }
}
