//! Records of a run for tests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::{EvaluationRecord, Manifest, RunInfo, StepRecord};

pub(crate) fn run_info(folder: PathBuf) -> RunInfo {
    let options = [("name", "demo"), ("train.seed", "7"), ("optimizer.with.lr", "0.01"), ("loader.drop_last", "true")];
    RunInfo {
        name: "demo".to_owned(),
        id: "demo-1".to_owned(),
        folder,
        options: options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        trainable: 1234,
        resumed_at: 0,
    }
}

pub(crate) fn step(step: u64) -> StepRecord {
    StepRecord {
        step,
        epoch: step as f64 / 8.0,
        loss: 1.0 / step as f64,
        accuracy: Some(0.5),
        lr: 0.01,
        grad_norm: 2.0,
        rows: 4,
        tokens: 100,
        seconds: 0.5,
        bytes_up: 1000,
        bytes_down: 2000,
        ..StepRecord::default()
    }
}

pub(crate) fn evaluation(step: u64) -> EvaluationRecord {
    let metrics = BTreeMap::from([("accuracy".to_owned(), 0.75)]);
    EvaluationRecord { step, loss: 0.25, metrics, rows: 16, tokens: 300, seconds: 1.0, ..EvaluationRecord::default() }
}

pub(crate) fn manifest() -> Manifest {
    let manifest = serde_json::json!({
        "name": "demo",
        "status": { "state": "finished" },
        "versions": { "sepal": "0.1.0", "libtorch": "2" },
        "seed": 7,
        "model": { "source": "m", "passed_over": [], "digest": "d", "weights": "w", "tokenizer": "t" },
        "data": {
            "train": "t", "validation": "v", "passed_over": [], "train_digest": "", "validation_digest": "",
            "train_rows": 8, "validation_rows": 4, "truncated_rows": 0,
        },
        "parameters": { "trainable": 1234, "total": 5678 },
        "steps": 3,
        "bytes": { "sent": 1, "received": 2 },
        "started": "2025-01-01T00:00:00+00:00",
        "seconds": 3.0,
        "train_seconds": 2.0,
        "train_tokens": 300,
        "metrics": { "accuracy": 0.75 },
        "adapter_digest": "abc",
    });
    serde_json::from_value(manifest).expect("a manifest")
}
