//! Models and adapters with NaN or infinite numbers: one error that names the origin.

use std::fs;
use std::path::Path;

use sepal_integration_tests::fixture::{Fixture, failure_messages};
use serde_json::Value;

fn overwrite_tensor(path: &Path, tensor: &str, value: f32) {
    let mut bytes = fs::read(path).expect("read");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let [start, end] = [0, 1].map(|i| header[tensor]["data_offsets"][i].as_u64().expect("an offset") as usize);
    for number in bytes[8 + length + start..8 + length + end].chunks_exact_mut(4) {
        number.copy_from_slice(&value.to_le_bytes());
    }
    fs::write(path, bytes).expect("written");
}

#[test]
fn non_finite_model_fails_the_run_and_is_named() {
    let behind = "the hidden states after blocks 0:3 in this process have such values: check the model's files";
    let server = "hidden states sent to or received from servers have such values";
    let embeddings = "the model's embeddings have such values: check the model's files";
    let norm = "the hidden states after the model's final norm have such values: check the model's files";
    for (tensor, value, swarm, expected) in [
        ("model.embed_tokens.weight", f32::NAN, "none", embeddings),
        ("model.layers.1.mlp.down_proj.weight", f32::NAN, "none", behind),
        ("model.layers.1.mlp.down_proj.weight", f32::INFINITY, "none", behind),
        ("model.layers.1.mlp.down_proj.weight", f32::NAN, "embedded", server),
        ("model.norm.weight", f32::NAN, "none", norm),
        ("model.norm.weight", f32::NEG_INFINITY, "embedded", norm),
    ] {
        let fixture = Fixture::new("llama-gqa");
        overwrite_tensor(&fixture.path("model/model.safetensors"), tensor, value);
        let swarm = format!("swarm.use={swarm}");
        let text = fixture.failure(&["train.max_steps=0", &swarm]);
        let what = "predict validation rows 1, 2, 3, 4, 5, 6, 7, 8 and 40 more: the logits are NaN or infinite; ";
        assert!(text.contains(&format!("{what}{expected}")), "{tensor} {swarm}: {text}");
        let is_named = text.contains("returned non-finite hidden states for blocks 1:2");
        assert_eq!(is_named, expected == server, "{text}");
        assert_eq!(fixture.only_run().manifest()["status"]["state"], "failed");
    }
}

#[test]
fn non_finite_model_fails_the_first_step_and_is_named() {
    let norm = ("model.norm.weight", "the model's final norm");
    let embeddings = ("model.embed_tokens.weight", "the model's embeddings");
    let cases = [(norm, "none"), (norm, "embedded"), (embeddings, "none"), (embeddings, "embedded")];
    for ((tensor, origin), swarm) in cases {
        let fixture = Fixture::new("llama-gqa");
        overwrite_tensor(&fixture.path("model/model.safetensors"), tensor, f32::NAN);
        let text = fixture.failure(&[&format!("swarm.use={swarm}")]);
        assert!(text.contains("predict training rows") && text.contains(origin), "{tensor} {swarm}: {text}");
        let report = fixture.only_run().folder.join("report.html");
        assert!(report.is_file(), "a run without numbers has a report: {text}");
    }
}

#[test]
fn non_finite_adapter_is_refused_for_prediction_and_is_named() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["train.max_steps=2"]);
    overwrite_tensor(&run.folder.join("adapter.safetensors"), "score.weight", f32::INFINITY);
    let folder = run.folder.to_str().expect("text");
    fs::write(fixture.path("one.csv"), "id,sentence\n1,\n2,a good film\n").expect("written");
    let rows = format!("{}", fixture.path("one.csv").display());
    let commands: [(&[&str], &str); 3] = [
        (&["predict", folder, "-i", &rows, "-o", "out.csv"], "predict given row 2"),
        (&["evaluate", folder, "--data", "validation.csv"], "predict labelled rows 1, 2"),
        (&["serve-task", folder, "--listen", "127.0.0.1:0"], "predict given row 1"),
    ];
    for (command, expected) in commands {
        let text = failure_messages(fixture.sepal(command));
        let origin = "the logits are NaN or infinite; the trained parameter `score.weight` has such values";
        assert!(text.contains(expected) && text.contains(origin), "{command:?}: {text}");
    }
    assert!(!fixture.path("out.csv").exists(), "nothing half-written is left");
}
