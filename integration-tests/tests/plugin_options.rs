//! Complete runs with each optimizer, tuning mode and schedule, and each initialization of prompts.

use std::collections::HashMap;

use safetensors::SafeTensors;
use sepal_integration_tests::fixture::{Fixture, Run};

fn prompts(run: &Run) -> Vec<Vec<f32>> {
    rows(&run.adapter(), "prompts")
}

fn rows(bytes: &[u8], name: &str) -> Vec<Vec<f32>> {
    let file = SafeTensors::deserialize(bytes).expect("safetensors");
    let tensor = file.tensor(name).expect("it is there");
    let number = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("four bytes"));
    let numbers: Vec<f32> = tensor.data().chunks_exact(4).map(number).collect();
    numbers.chunks_exact(tensor.shape()[1]).map(<[f32]>::to_vec).collect()
}

#[test]
fn every_optimizer_learns() {
    let fixture = Fixture::new("llama-gqa");
    for optimizer in ["adafactor", "adam", "adamw", "lion", "sgd"] {
        let lr = HashMap::from([("adafactor", 0.1), ("lion", 0.01), ("sgd", 0.3)]);
        let with = format!("optimizer={{ use: {optimizer}, with: {{ lr: {} }} }}", lr.get(optimizer).unwrap_or(&0.03));
        let run = fixture.run(&[&with]);
        let losses = run.losses();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..6]), mean(&losses[losses.len() - 6..]));
        assert!(last < 0.8 * first, "{optimizer}: from {first} to {last}");
    }
}

fn tensor(run: &Run, name: &str) -> Vec<u8> {
    let bytes = run.adapter();
    SafeTensors::deserialize(&bytes).expect("safetensors").tensor(name).expect("it is there").data().to_vec()
}

#[test]
fn every_tuning_mode_trains() {
    let fixture = Fixture::new("llama-gqa");
    for (tuning, parameter) in [
        ("ptune", "prompts"),
        ("deep-ptune", "deep_prompts"),
        ("lora", "lora_B:self_attn.q_proj"),
        ("ia3", "scale_input:mlp.down_proj"),
        ("p-tuning", "p_tuning.mlp_head.4.bias"),
        ("prefix-kv", "prefix_keys_values"),
        ("prefix-tuning", "prefix_keys_values"),
    ] {
        let after = |steps: usize| fixture.run(&[&format!("tuning.use={tuning}"), &format!("train.max_steps={steps}")]);
        let (first, last) = (after(0), after(30));
        assert_ne!(tensor(&first, parameter), tensor(&last, parameter), "{tuning}: {parameter} moves");
        let losses = last.losses();
        assert!(losses[24..].iter().sum::<f64>() < losses[..6].iter().sum::<f64>(), "{tuning}: {losses:?}");
    }
}

#[test]
fn combined_modes_train_with_rates_of_their_own() {
    let fixture = Fixture::new("llama-gqa");
    let modes = "tuning=[{ use: deep-ptune, with: { pre_seq_len: 4 } }, { use: lora, with: { r: 2 } }]";
    let rate = |lr: f64| format!("optimizer.groups=[{{ params: ['lora_*'], lr: {lr} }}]");
    let (trained, frozen) = (fixture.run(&[modes, &rate(1e-2)]), fixture.run(&[modes, &rate(0.0)]));
    let start = fixture.run(&[modes, "train.max_steps=0"]);
    for name in ["lora_A:self_attn.v_proj", "lora_B:self_attn.v_proj"] {
        assert_eq!(tensor(&frozen, name), tensor(&start, name), "{name} has the rate zero");
        assert_ne!(tensor(&trained, name), tensor(&start, name), "{name}");
    }
    assert_ne!(tensor(&frozen, "deep_prompts"), tensor(&start, "deep_prompts"));
    let text = fixture.failure(&[modes, "optimizer.groups=[{ params: ['lora'], lr: 1 }]"]);
    assert!(text.contains("find a parameter that matches `lora`; there are score.weight, "), "{text}");
    let text = fixture.failure(&["tuning=[{ use: ptune }, { use: deep-ptune }]"]);
    assert!(text.contains("combine `ptune` and `deep-ptune`: both train `prompts`"), "{text}");
    let text = fixture.failure(&["tuning=[{ use: lora, with: { r: 64 } }, { use: ptune }]"]);
    assert!(text.contains("use option `r`: rank 64 is larger than `self_attn.v_proj`"), "{text}");
    let text = fixture.failure(&["tuning={ use: lora, with: { targets: [w1] } }"]);
    assert!(text.contains("use option `targets`: `w1` matches no linear layer that adapters can change"), "{text}");
}

#[test]
fn plateau_schedule_without_improvement_lowers_the_learning_rate() {
    let fixture = Fixture::new("llama-gqa");
    // No evaluation improves by this threshold.
    let plateau = "schedule={ use: reduce-on-plateau, with: { patience: 0, factor: 0.5, threshold: 0.99, warmup_steps: 0, warmup_ratio: 0.1 } }";
    let run = fixture.run(&[plateau]);
    let rates: Vec<f64> = run.records("step").iter().map(|step| step["lr"].as_f64().expect("a rate")).collect();
    assert_eq!(rates.len(), 60);
    // The first evaluation, after 12 steps, is the best; the next three do not improve.
    let expected = |step: usize| match step {
        0..6 => 0.03 * step as f64 / 6.0,
        6..24 => 0.03,
        24..36 => 0.015,
        36..48 => 0.0075,
        _ => 0.00375,
    };
    for (step, rate) in rates.iter().enumerate() {
        assert!((rate - expected(step)).abs() < 1e-12, "step {step} is made at {rate}");
    }
    let text = fixture.failure(&[plateau, "schedule.with.metric=f9"]);
    assert!(text.contains("find `f9` among the metrics of the task: accuracy"), "{text}");
    assert!(text.contains("(`schedule.with.metric`)"), "{text}");
    let text = fixture.failure(&[plateau, "evaluate.every=end"]);
    assert!(text.contains("expected evaluations while it trains (`evaluate.every`)"), "{text}");
}

#[test]
fn prompt_init_options_set_the_first_prompts() {
    let fixture = Fixture::new("llama-gqa");
    let model = std::fs::read(fixture.path("model").join("model.safetensors")).expect("a model");
    let words = rows(&model, "model.embed_tokens.weight");
    let start = |init: &str| fixture.run(&["train.max_steps=0", &format!("tuning.with.init={init}")]);
    // In the tiny tokenizer `awful` is 1 and `bright` is 9; `bad` and `good` are unknown.
    let from_text = start("{ text: awful bright awful }");
    assert_eq!(prompts(&from_text), [&words[1], &words[9], &words[1], &words[1]].map(Vec::clone));
    assert_eq!(prompts(&start("class-names"))[..2], [&words[0], &words[0]].map(Vec::clone));

    let trained = fixture.run(&[]);
    let adapter = trained.folder.join("adapter.safetensors");
    let again = start(&format!("{{ adapter: {} }}", adapter.display()));
    assert_eq!(prompts(&again), prompts(&trained));
    let deep = |run: &Run| {
        let bytes = run.adapter();
        SafeTensors::deserialize(&bytes).expect("safetensors").tensor("deep_prompts").expect("there").data().to_vec()
    };
    assert_eq!(deep(&again), deep(&trained));
    let init = format!("tuning.with={{ pre_seq_len: 5, init: {{ adapter: {} }} }}", adapter.display());
    let text = fixture.failure(&[&init]);
    assert!(text.contains("use option `init`: expected `prompts` of shape [5, "), "{text}");
}
