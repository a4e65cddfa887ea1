//! Layers of values: file, environment and command line, and the origin of each value.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::diagnose::Finding;
use crate::path::{KeyPath, Segment};
use crate::positions::Positions;
use crate::problem::{Origin, Problem};
use crate::sweep::{SWEEP, with_paths_as_keys};
use crate::{renamed, yaml};

pub(crate) const ENV_PREFIX: &str = "SEPAL__";
/// Most parts of a key, as deep as a file may be.
pub(crate) const MAX_KEYS: usize = 64;

#[derive(Debug)]
pub(crate) struct Layer {
    origin: Origin,
    values: Map<String, Value>,
    /// Positions in the file, of values below the key that the file is for.
    positions: Positions,
    /// Key that the file is for; the root if it is a whole pipeline.
    root: KeyPath,
}

impl Layer {
    pub(crate) fn file(name: &str, text: &str) -> Result<Self, Problem> {
        let origin = |position| Origin::File { name: name.to_owned(), position };
        match yaml::parse(text) {
            Ok(Value::Object(values)) => {
                Self::of_values(Self { positions: Positions::new(text), ..Self::empty(origin(None)) }, values)
            }
            Ok(Value::Null) => Ok(Self::empty(origin(None))),
            Ok(_) => Err(problem(origin(None), "expected a map of keys, such as `name: my-run`")),
            Err(error) => Err(problem(origin(error.position), &error.message)),
        }
    }

    /// Layer of a file that holds the value of one key.
    pub(crate) fn file_of_key(name: &str, text: &str, key: &str) -> Result<Self, Problem> {
        let origin = |position| Origin::File { name: name.to_owned(), position };
        match yaml::parse(text) {
            Ok(value) => {
                let (positions, root) = (Positions::new(text), KeyPath::keys([key]));
                let values = Map::from_iter([(key.to_owned(), value)]);
                Self::of_values(Self { positions, root, ..Self::empty(origin(None)) }, values)
            }
            Err(error) => Err(problem(origin(error.position), &error.message)),
        }
    }

    fn empty(origin: Origin) -> Self {
        Self { origin, values: Map::new(), positions: Positions::default(), root: KeyPath::root() }
    }

    /// The empty layer with these values.
    fn of_values(empty: Self, mut values: Map<String, Value>) -> Result<Self, Problem> {
        if let Some(sweep) = values.get_mut(SWEEP) {
            *sweep = with_paths_as_keys(std::mem::take(sweep)).map_err(|finding| {
                let Finding { key, message, suggestion } = finding;
                Problem { origin: empty.origin_of(&key), key, message, suggestion }
            })?;
        }
        Ok(Self { values, ..empty })
    }

    /// Origin of the value at `path`, or of the section where it is missing.
    fn origin_of(&self, path: &KeyPath) -> Origin {
        let Origin::File { name, .. } = &self.origin else { return self.origin.clone() };
        let below = path.below(&self.root).map(|below| KeyPath::root().join(below));
        let position = below.and_then(|below| self.positions.nearest(&below));
        Origin::File { name: name.clone(), position }
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
        if keys.len() > MAX_KEYS {
            return Err(problem(origin, "expected a key of at most 64 parts, for example train.seed"));
        }
        let leaf = match yaml::parse_scalar(value) {
            Ok(leaf) => leaf,
            Err(error) => return Err(Problem { key: KeyPath::keys(keys.iter().copied()), ..problem(origin, &error) }),
        };
        match keys.iter().rev().fold(leaf, |below, key| json!({ *key: below })) {
            Value::Object(values) => Self::of_values(Self::empty(origin), values),
            _ => Err(problem(origin, "expected a key, for example train.seed")),
        }
    }

    /// The layer, with keys of earlier versions converted.
    pub(crate) fn converted(mut self) -> Self {
        renamed::convert(&mut self.values);
        self
    }

    pub(crate) fn get(&self, a: &str, b: &str) -> Option<&Value> {
        self.value(a)?.get(b)
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }
}

fn problem(origin: Origin, message: &str) -> Problem {
    Problem { origin, key: KeyPath::root(), message: message.to_owned(), suggestion: None }
}

#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) value: Value,
    fields: BTreeMap<String, Node>,
}

/// Value with its layer. A list belongs to one layer with all that it contains.
#[derive(Debug)]
enum Node {
    Leaf { layer: usize, value: Value },
    Map { layer: usize, fields: BTreeMap<String, Node> },
}

impl Node {
    fn new(layer: usize, value: &Value) -> Self {
        match value {
            Value::Object(values) => Self::Map { layer, fields: nodes(layer, values) },
            value => Self::Leaf { layer, value: value.clone() },
        }
    }

    fn layer(&self) -> usize {
        let (Self::Leaf { layer, .. } | Self::Map { layer, .. }) = self;
        *layer
    }

    /// Merges two maps, of which `later` takes precedence; it replaces any other value.
    fn merge(self, later: Self) -> Self {
        match (self, later) {
            (Self::Map { mut fields, .. }, Self::Map { layer, fields: later }) => {
                merge(&mut fields, later);
                Self::Map { layer, fields }
            }
            (_, later) => later,
        }
    }

    fn to_value(&self) -> Value {
        match self {
            Self::Leaf { value, .. } => value.clone(),
            Self::Map { fields, .. } => to_map(fields),
        }
    }
}

fn nodes(layer: usize, values: &Map<String, Value>) -> BTreeMap<String, Node> {
    values.iter().map(|(key, value)| (key.clone(), Node::new(layer, value))).collect()
}

fn merge(fields: &mut BTreeMap<String, Node>, later: BTreeMap<String, Node>) {
    for (key, later) in later {
        let merged = match fields.remove(&key) {
            Some(earlier) => earlier.merge(later),
            None => later,
        };
        fields.insert(key, merged);
    }
}

fn to_map(fields: &BTreeMap<String, Node>) -> Value {
    Value::Object(fields.iter().map(|(key, node)| (key.clone(), node.to_value())).collect())
}

impl Merged {
    /// Merges the layers, later ones over earlier ones.
    pub(crate) fn new(layers: &[Layer]) -> Self {
        let mut fields = BTreeMap::new();
        for (i, layer) in layers.iter().enumerate() {
            merge(&mut fields, nodes(i, &layer.values));
        }
        Self { value: normalized(to_map(&fields)), fields }
    }

    /// Index of the layer of the value at `path`, or of its closest existing ancestor.
    pub(crate) fn layer_of(&self, path: &KeyPath) -> usize {
        let (mut layer, mut fields) = (0, Some(&self.fields));
        for segment in path.segments() {
            let Segment::Key(key) = segment else { break };
            let Some(node) = fields.and_then(|fields| fields.get(key)) else { break };
            layer = node.layer();
            fields = if let Node::Map { fields, .. } = node { Some(fields) } else { None };
        }
        layer
    }

    /// Origin of the value at `path`, or of the section where it is missing.
    pub(crate) fn origin_of(&self, path: &KeyPath, layers: &[Layer]) -> Origin {
        match layers.get(self.layer_of(path)) {
            Some(layer) => layer.origin_of(path),
            None => Origin::File { name: "the pipeline".to_owned(), position: None },
        }
    }
}

const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

/// Sorts the keys of maps, and writes `3.0` as `3`, which readers of whole numbers accept.
pub(crate) fn normalized(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0) {
            // The bounds are powers of two, so that the conversions are exact.
            Some(float) if (0.0..TWO_TO_64).contains(&float) => json!(float as u64),
            Some(float) if (-TWO_TO_63..0.0).contains(&float) => json!(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(entries) => entries.into_iter().map(normalized).collect(),
        Value::Object(fields) => {
            let sorted: BTreeMap<String, Value> =
                fields.into_iter().map(|(key, value)| (key, normalized(value))).collect();
            sorted.into_iter().collect()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(texts: &[&str]) -> Merged {
        let layers: Vec<Layer> = texts.iter().map(|text| Layer::file("p.yaml", text).expect("a map")).collect();
        Merged::new(&layers)
    }

    #[test]
    fn later_layers_replace_values_and_join_maps() {
        let merged = merged(&["b: {y: 1, x: [1, 2]}\na: 3.0", "b: {x: [7], z: null}", "a: {c: 1}"]);
        let expected = json!({ "a": { "c": 1 }, "b": { "x": [7], "y": 1, "z": null } });
        assert_eq!(merged.value.to_string(), expected.to_string());
        let layer = |keys: &[&str]| merged.layer_of(&KeyPath::keys(keys.iter().copied()));
        assert_eq!([layer(&["b", "y"]), layer(&["b", "x"]), layer(&["b", "z"]), layer(&["a", "c"])], [0, 1, 1, 2]);
        assert_eq!([layer(&["b"]), layer(&["b", "missing"]), layer(&["missing"]), layer(&[])], [1, 1, 0, 0]);
        assert_eq!(merged.layer_of(&KeyPath::keys(["b", "x"]).index(0)), 1);
    }

    #[test]
    fn whole_numbers_have_no_fraction_and_others_stay() {
        let numbers = normalized(json!([3.0, -3.0, 1.0e16, u64::MAX, TWO_TO_64, 0.5]));
        assert_eq!(numbers, json!([3, -3, 10_000_000_000_000_000_u64, u64::MAX, TWO_TO_64, 0.5]));
    }

    #[test]
    fn key_without_end_is_refused() {
        let text = format!("{}b=1", "a.".repeat(MAX_KEYS));
        let problem = Layer::set(&text).expect_err("too deep");
        assert!(problem.message.contains("at most 64 parts"), "{problem}");
        assert!(Layer::set(&text[2..]).is_ok());
    }
}
