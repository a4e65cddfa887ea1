//! Complete runs with the embedded server: their files, and their repetition.

use std::fs;

use safetensors::SafeTensors;
use sepal_integration_tests::fixture::{Fixture, Run, assert_close};
use sepal_testkit::tiny;

#[test]
fn run_learns_and_writes_its_files() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&[]);
    assert!(run.accuracy() >= 0.9, "the sentences tell their class: {}", run.stdout);
    assert!(run.stdout.contains("accuracy") && run.stdout.contains("tokens/s"), "{}", run.stdout);

    let adapter = run.adapter();
    let tensors = SafeTensors::deserialize(&adapter).expect("safetensors");
    for (name, shape) in [("prompts", vec![4, 32]), ("deep_prompts", vec![3, 4, 32]), ("score.weight", vec![2, 32])] {
        let tensor = tensors.tensor(name).expect("in the adapter");
        assert_eq!((tensor.shape(), tensor.dtype()), (shape.as_slice(), safetensors::Dtype::F32), "{name}");
    }
    assert_eq!(tensors.len(), 3);

    let manifest = run.manifest();
    assert_eq!(manifest["status"]["state"], "finished");
    assert_eq!(manifest["steps"], 60);
    assert_eq!(manifest["data"]["train_rows"], 192);
    assert_eq!(manifest["parameters"]["trainable"], 4 * 32 + 3 * 4 * 32 + 2 * 32);
    assert_eq!(run.records("step").len(), 60);
    assert_eq!(run.records("evaluation").len(), 5);
    assert!(std::fs::metadata(run.folder.join("predictions.parquet")).expect("predictions").len() > 500);
}

#[test]
fn every_family_and_mode_trains() {
    for model in tiny::models() {
        let fixture = Fixture::new(&model);
        for tuning in ["ptune", "deep-ptune"] {
            let run = fixture.run(&[&format!("tuning.use={tuning}"), "train.max_steps=24"]);
            let losses = run.losses();
            let (first, last) = (losses[..4].iter().sum::<f64>(), losses[20..].iter().sum::<f64>());
            assert!(last < first, "{model} {tuning}: {losses:?}");
        }
    }
}

#[test]
fn step_traffic_is_bounded() {
    let fixture = Fixture::new("llama-gqa");
    let run = fixture.run(&["evaluate.every=never"]);
    let (hidden, prefix, blocks) = (32, 4, 3);
    for record in run.records("step") {
        let number = |key: &str| record[key].as_u64().expect("a number");
        let deep = blocks * prefix * hidden * 4;
        let up = (number("tokens") + prefix) * hidden * 4 + deep + number("rows") * hidden * 4;
        let down = number("rows") * hidden * 4 + prefix * hidden * 4 + deep;
        // A tiny step consists mostly of message envelopes; a real one is within a tenth of its tensors.
        let envelopes = 2048;
        assert!(number("bytes_up") <= up * 11 / 10 + envelopes, "{} bytes up for {up}", number("bytes_up"));
        assert!(number("bytes_down") <= down * 11 / 10 + envelopes, "{} bytes down for {down}", number("bytes_down"));
        assert!(number("bytes_up") > up && number("bytes_down") > down, "everything was sent and counted");
    }
}

#[test]
fn run_repeated_from_its_folder_is_identical() {
    let fixture = Fixture::new("llama-gqa");
    let first = fixture.run(&["train.max_steps=12"]);
    let resolved = first.folder.join("pipeline.yaml");
    std::fs::copy(&resolved, fixture.path("pipeline.yaml")).expect("copied");
    let second = fixture.run(&[]);
    assert_eq!(first.losses(), second.losses());
    assert_eq!(first.adapter(), second.adapter());
    assert_ne!(first.folder, second.folder);
    let other = fixture.run(&["train.seed=8"]);
    assert_ne!(first.losses(), other.losses());
}

#[test]
fn run_of_zero_steps_writes_the_untrained_adapter() {
    let fixture = Fixture::new("llama-gqa");
    let untrained = fixture.run(&["train.max_steps=0"]);
    assert_eq!(untrained.records("evaluation").len(), 1);
    assert!(untrained.losses().is_empty());
    // A step with a tiny learning rate leaves the initial numbers unchanged.
    let still = fixture.run(&["train.max_steps=1", "optimizer.with.lr=1.0e-30"]);
    assert_eq!(untrained.adapter(), still.adapter());
    assert_eq!(untrained.manifest()["metrics"], still.manifest()["metrics"]);
}

#[test]
fn accumulation_equals_a_larger_batch() {
    let fixture = Fixture::new("bloom");
    let large = fixture.run(&["train.max_steps=10", "evaluate.every=end"]);
    let parts = fixture.run(&["train.max_steps=10", "evaluate.every=end", "loader.batch_size=4", "train.accumulate=4"]);
    assert_close(&parts.losses(), &large.losses());
}

#[test]
fn micro_batches_keep_the_losses() {
    let fixture = Fixture::new("qwen2");
    let large_batches = fixture.run(&["train.max_steps=10"]);
    let parts = fixture.run(&["train.max_steps=10", "swarm.with.micro_batch_tokens=40"]);
    assert_close(&parts.losses(), &large_batches.losses());
    let stateless = fixture.run(&["train.max_steps=10", "swarm.with.tape_budget_mb=0"]);
    assert_close(&stateless.losses(), &large_batches.losses());
}

#[test]
fn unshuffled_rows_are_read_in_file_order() {
    let fixture = Fixture::new("llama-gqa");
    let first = fixture.run(&["loader.shuffle=false", "train.max_steps=3"]);
    let other_seed = fixture.run(&["loader.shuffle=false", "train.max_steps=3", "train.seed=9"]);
    let tokens = |run: &Run| -> Vec<u64> {
        run.records("step").iter().map(|record| record["tokens"].as_u64().expect("a number")).collect()
    };
    assert_eq!(tokens(&first), tokens(&other_seed));
    let rows = tiny::sentences(48, 1);
    let words = |rows: &[(String, usize)]| rows.iter().map(|(text, _)| text.split(' ').count() as u64).sum::<u64>();
    assert_eq!(tokens(&first), [words(&rows[..16]), words(&rows[16..32]), words(&rows[32..48])]);
}

#[test]
fn evaluation_of_imbalanced_classes_prints_macro_f1_first() {
    let fixture = Fixture::new("llama-gqa");
    let text = fs::read_to_string(fixture.path("train.csv")).expect("read");
    let is_kept = |(i, line): &(usize, &str)| *i < 2 || i % 8 == 0 || line.ends_with(",1");
    let imbalanced: Vec<&str> = text.lines().enumerate().filter(is_kept).map(|(_, line)| line).collect();
    for (rows, headline) in [(text.clone(), "accuracy"), (imbalanced.join("\n"), "f1_macro")] {
        fs::write(fixture.path("train.csv"), rows).expect("written");
        let (_, messages) = fixture.run_with_messages(&["train.max_steps=2"]);
        let line = messages.lines().find(|line| line.starts_with("evaluated")).expect("an evaluation");
        assert!(line.starts_with(&format!("evaluated 48 rows after step 2: {headline} ")), "{line}");
        assert!(line.len() <= 80, "{line}");
    }
}
