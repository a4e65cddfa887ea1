//! Configurations with missing or duplicate keys against transformers: logits of models whose weights are derived from
//! the names of their tensors, as in `make_configs.py`.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sepal_checkpoint::{Checkpoint, OpenError};
use sepal_core::{Family, Ragged, Want};
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::goldens::EXACT;
use crate::model::{Tiny, forward, goldens};

#[derive(Deserialize)]
struct Goldens {
    ids: Vec<i64>,
    bases: BTreeMap<String, Map<String, Value>>,
    tensors: Vec<Vec<Vec<Value>>>,
    cases: Vec<Case>,
}

/// Configuration: one of the bases with keys removed and replaced, and its logits.
#[derive(Deserialize)]
struct Case {
    base: String,
    kind: String,
    about: String,
    set: Map<String, Value>,
    without: Vec<String>,
    tensors: usize,
    logits: Vec<f64>,
}

impl Goldens {
    fn config(&self, case: &Case) -> Map<String, Value> {
        let mut config = self.bases[&case.base].clone();
        config.retain(|key, _| !case.without.contains(key));
        config.extend(case.set.clone());
        config
    }

    /// Writes the model of a case into `folder` and returns its head, which is not part of the model.
    fn write(&self, case: &Case, folder: &Path) -> Tensor {
        std::fs::write(folder.join("config.json"), Value::Object(self.config(case)).to_string()).expect("written");
        let is_gemma = case.base.starts_with("gemma");
        let tensor = |line: &Vec<Value>| {
            let name = line[0].as_str().expect("a name").to_owned();
            let shape: Vec<usize> = line[1..].iter().map(|dim| dim.as_u64().expect("a size") as usize).collect();
            let numbers = weights(&name, shape.iter().product(), is_gemma);
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            (name, shape, bytes)
        };
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = self.tensors[case.tensors].iter().map(tensor).collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("bytes fit the shape"))
        });
        let file = safetensors::serialize(views, None).expect("serialized");
        std::fs::write(folder.join("model.safetensors"), file).expect("written");
        let (name, shape, _) = tensors.iter().find(|(name, ..)| name == "score.weight").expect("a head");
        let head = weights(name, shape.iter().product(), is_gemma);
        Tensor::from_slice(&head).view([shape[0] as i64, shape[1] as i64])
    }

    /// Returns the largest error of Sepal's logits.
    fn largest_error(&self, case: &Case) -> Result<f64, OpenError> {
        let folder = tempfile::tempdir().expect("a folder");
        let head = self.write(case, folder.path());
        Checkpoint::open(folder.path())?;
        let model = Tiny::read(folder.path());
        let ends = model.ends();
        let tokens = ends.embed(&Tensor::from_slice(&self.ids)).expect("embedded");
        let rows = Ragged::from_lengths([self.ids.len()]).expect("rows");
        let last = forward(&model.full_stack(), &tokens, 0, &rows, Want::LastOfRows);
        let logits = ends.final_norm(&last).expect("normed").matmul(&head.tr());
        let logits = Vec::<f32>::try_from(logits.flatten(0, -1)).expect("numbers");
        assert_eq!(logits.len(), case.logits.len());
        let error = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs();
        // Propagates NaN, unlike `f64::max`.
        Ok(logits.iter().zip(&case.logits).map(error).fold(0.0, |max, error| if error <= max { max } else { error }))
    }
}

/// Returns the tensor `name`: splitmix64 of the FNV-1a hash of its name and the index of each number.
fn weights(name: &str, count: usize, is_gemma: bool) -> Vec<f32> {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325, hash);
    let is_norm = name.ends_with("weight") && (name.contains("norm") || name.contains(".ln_"));
    let is_embedding = !is_norm && ["embed", "wte", "wpe"].iter().any(|part| name.contains(part));
    let (factor, shift) = match (is_norm, is_embedding) {
        (true, _) => (0.4, if is_gemma { 0.0 } else { 1.0 }),
        (false, true) => (0.2, 0.0),
        (false, false) => (0.6, 0.0),
    };
    let number = |index: u64| {
        let mut x = seed.wrapping_add(index).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        factor * ((x >> 40) as f32 / (1 << 24) as f32 - 0.5) + shift
    };
    (0..count as u64).map(number).collect()
}

fn read_goldens() -> Goldens {
    let file = std::fs::read(goldens().join("configs.json")).expect("the goldens");
    serde_json::from_slice(&file).expect("goldens")
}

#[test]
fn configurations_give_the_logits_of_transformers() {
    let goldens = read_goldens();
    let mut errors = Vec::new();
    for case in &goldens.cases {
        let Case { base, kind, about, .. } = case;
        match goldens.largest_error(case) {
            Ok(off) if off <= EXACT => {}
            Ok(off) => errors.push(format!("{base}, {kind} of {about}: off by {off}")),
            Err(error) => errors.push(format!("{base}, {kind} of {about}: {error}")),
        }
    }
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

/// Each family has goldens with missing keys, and with duplicate or unused ones.
#[test]
fn configurations_cover_every_family() {
    let goldens = read_goldens();
    for family in Family::ALL {
        let has = |kind: &str| goldens.cases.iter().any(|case| case.base == family.name() && case.kind == kind);
        assert!(has("default") && (has("places") || has("unused")), "{}", family.name());
    }
}
