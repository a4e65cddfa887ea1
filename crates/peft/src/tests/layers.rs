//! Adapters of linear layers: LORA and IA3.

use std::collections::BTreeMap;
use std::path::Path;

use sepal_core::{DType, HostTensor, NamedHostTensor, SiteRole};
use sepal_nn::{share_from_host, to_host};
use serde_json::{Value, json};
use tch::Tensor;

use super::{
    HEAD_BESIDE_LAYERS, RANK, Random, difference, import, imported_factor, logits, lora_factor, lora_options, named,
    tiny, try_export,
};
use crate::adapter::Adapter;
use crate::config::{CONFIG, TENSORS};
use crate::{ExportOptions, Form, Import, ImportOptions, UsedPlugin, Verify, export};

const ROWS: [&[i64]; 3] = [&[3, 1, 4, 1, 5], &[9, 2], &[6]];

fn rows() -> Vec<Vec<i64>> {
    ROWS.map(<[i64]>::to_vec).into()
}

fn is_query_or_value(role: SiteRole) -> bool {
    matches!(role, SiteRole::Query | SiteRole::Value | SiteRole::QueryKeyValue)
}

fn read_config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join(CONFIG)).expect("a configuration")).expect("JSON")
}

fn tensors(folder: &Path) -> BTreeMap<String, HostTensor> {
    let tensors = sepal_nn::file::read(&folder.join(TENSORS)).expect("tensors").tensors;
    tensors.into_iter().map(|named| (named.name, named.tensor)).collect()
}

#[test]
fn export_of_layers_computes_the_trained_logits() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in sepal_testkit::tiny::models() {
        let (_, checkpoint) = tiny(&name);
        // The text model of a multimodal model can only be merged.
        if checkpoint.multimodal_type().is_some() {
            continue;
        }
        let n_blocks = checkpoint.config().n_blocks;
        for (form, random) in [
            (Form::Lora, Random::lora(&checkpoint, n_blocks, |_| true)),
            (Form::Lora, Random::lora(&checkpoint, 1, |site| is_query_or_value(site.role))),
            (Form::Ia3, Random::ia3(&checkpoint)),
        ] {
            let home = tempfile::tempdir_in(folder.path()).expect("a folder");
            let adapter = random.write(home.path());
            let exported = try_export(home.path(), &checkpoint, &adapter, form).expect("exported");
            let verified = exported.verified.expect("verified");
            assert!(verified.largest > 0.1, "{name}: {verified:?}");
            assert!(verified.difference <= 5e-5 * verified.largest.max(1.0), "{name} {form}: {verified:?}");
        }
    }
}

#[test]
fn lora_is_written_as_by_peft() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("llama-gqa");
    let config = checkpoint.config();
    let random = Random::lora(&checkpoint, 2, |site| is_query_or_value(site.role));
    let options = ExportOptions {
        base_model: "owner/name".to_owned(),
        tuning: vec![lora_options(true)],
        ..ExportOptions::default()
    };
    let out = folder.path().join("out");
    let exported = export(&options, &checkpoint, &random.write(folder.path()), &out).expect("exported");
    let description = "low-rank additions (LoRA, rank 3) to self_attn.q_proj, self_attn.v_proj of 2 blocks";
    assert_eq!((exported.form, exported.description.as_str()), (Form::Lora, description));
    assert_eq!(
        read_config(&out),
        json!({
            "base_model_name_or_path": "owner/name", "bias": "none", "fan_in_fan_out": false, "inference_mode": true,
            "layers_to_transform": [1, 2], "lora_alpha": 5, "lora_dropout": 0.0, "modules_to_save": ["score"],
            "peft_type": "LORA", "r": RANK, "target_modules": ["q_proj", "v_proj"], "task_type": "SEQ_CLS",
            "use_rslora": true,
        })
    );
    let found = tensors(&out);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let layers = |block: usize| {
        ["q_proj.lora_A", "q_proj.lora_B", "v_proj.lora_A", "v_proj.lora_B"]
            .map(|end| format!("base_model.model.model.layers.{block}.self_attn.{end}.weight"))
    };
    let mut expected: Vec<String> = [layers(1), layers(2)].concat();
    expected.push(HEAD_BESIDE_LAYERS.to_owned());
    assert_eq!(names, expected);
    assert_eq!(found[&expected[2]].shape(), [RANK, config.hidden]);
    assert_eq!(found[&expected[3]].shape(), [config.kv_size(), RANK]);
    // The second block's factors are the first of the stack.
    let stacked = &random.tensors[0].tensor;
    assert_eq!(found[&expected[0]].to_f32(), stacked.rows(0..1).expect("a block").to_f32());
    let card = std::fs::read_to_string(out.join("README.md")).expect("a card");
    assert!(card.contains("Low-rank additions (LoRA, rank 3)") && card.contains("as they are (LORA)"), "{card}");
}

#[test]
fn ia3_is_written_as_by_peft() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("gpt2");
    let random = Random::ia3(&checkpoint);
    try_export(folder.path(), &checkpoint, &random.write(folder.path()), Form::Ia3).expect("exported");
    let out = folder.path().join("out");
    assert_eq!(
        read_config(&out),
        json!({
            "base_model_name_or_path": "owner/name", "fan_in_fan_out": true, "feedforward_modules": ["mlp.c_proj"],
            "inference_mode": true, "modules_to_save": ["score"], "peft_type": "IA3",
            "target_modules": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"], "task_type": "SEQ_CLS",
        })
    );
    let (found, hidden) = (tensors(&out), checkpoint.config().hidden);
    let shape = |site: &str| found[&format!("base_model.model.transformer.h.1.{site}.ia3_l")].shape().to_vec();
    assert_eq!((shape("attn.c_attn"), shape("mlp.c_proj")), (vec![3 * hidden, 1], vec![1, checkpoint.config().ffn]));
}

#[test]
fn export_needs_the_options_of_the_run() {
    let (_, checkpoint) = tiny("llama-gqa");
    let random = Random::lora(&checkpoint, 3, |_| true);
    let refused = |tuning: Vec<UsedPlugin>, tensors: Vec<NamedHostTensor>, expected: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        let adapter = Random::with_head(&checkpoint, "lora", tensors).write(folder.path());
        let options = ExportOptions { base_model: "b".to_owned(), tuning, ..ExportOptions::default() };
        let error = export(&options, &checkpoint, &adapter, &folder.path().join("out")).expect_err(expected);
        let text = sepal_core::in_one_line(&error);
        assert!(text.contains(expected), "{text}");
        assert!(!folder.path().join("out").exists());
    };
    let factors = || random.tensors[..2].to_vec();
    refused(Vec::new(), factors(), "no `alpha`");
    let mut other = lora_options(false);
    other.with["r"] = json!(8);
    refused(vec![other], factors(), "the options say rank 8, and the adapter has rank 3");
    let both = [factors(), vec![named("prompts", &[4, checkpoint.config().hidden as i64])]].concat();
    refused(vec![lora_options(false)], both, "it combines ptune and lora, and a folder of PEFT holds one method");
    let site = random.tensors[0].name.trim_start_matches("lora_A:").to_owned();
    let scale = named(&format!("scale_output:{site}"), &[3, random.tensors[1].tensor.shape()[1] as i64]);
    refused(vec![lora_options(false)], [factors(), vec![scale]].concat(), "it combines lora and ia3");
    refused(vec![lora_options(false)], random.tensors[..1].to_vec(), &format!("has no `lora_B:{site}`"));
    let wide = vec![named("lora_A:mlp.router", &[3, 3, 8]), named("lora_B:mlp.router", &[3, 8, 3])];
    refused(vec![lora_options(false)], wide, "`lora_A:mlp.router`");
}

#[test]
fn import_of_an_export_of_layers_is_bit_exact() {
    let (_, checkpoint) = tiny("gpt2");
    let lora = Random::lora(&checkpoint, 1, |site| is_query_or_value(site.role));
    for (form, random) in [(Form::Lora, lora), (Form::Ia3, Random::ia3(&checkpoint))] {
        let folder = tempfile::tempdir().expect("a folder");
        let adapter = random.write(folder.path());
        try_export(folder.path(), &checkpoint, &adapter, form).expect("exported");
        let (out, trained) = (folder.path().join("out"), Adapter::read(&adapter).expect("read"));
        for (name, is_foreign) in [("own", false), ("foreign", true)] {
            if is_foreign {
                std::fs::remove_file(out.join("sepal.json")).expect("removed");
            }
            let open = Import::open(&ImportOptions::default(), Some(&checkpoint), &out, &folder.path().join(name));
            let import = open.expect("imported");
            assert_eq!(import.is_foreign(), is_foreign);
            let mode = import.modes()[0].clone();
            if form == Form::Lora {
                let expected = json!({ "targets": ["attn.c_attn"], "r": 3, "alpha": 5, "rslora": false,
                    "blocks": { "last": 1 } });
                assert_eq!(Value::Object(mode.with), expected);
            }
            let read = Adapter::read(&import.finish(None).expect("written")).expect("read");
            assert_eq!((read.tensors, read.score), (trained.tensors.clone(), trained.score.clone()));
        }
    }
}

/// Writes a LORA of PEFT for two layers of `llama-gqa`, with `change` of its configuration and tensors.
fn saved_lora(folder: &Path, change: impl FnOnce(&mut Value, &mut Vec<NamedHostTensor>)) {
    let (_, checkpoint) = tiny("llama-gqa");
    let random = Random::lora(&checkpoint, 3, |site| is_query_or_value(site.role));
    try_export(folder, &checkpoint, &random.write(folder), Form::Lora).expect("exported");
    let out = folder.join("out");
    std::fs::remove_file(out.join("sepal.json")).expect("removed");
    let mut config = read_config(&out);
    let mut named: Vec<NamedHostTensor> =
        tensors(&out).into_iter().map(|(name, tensor)| NamedHostTensor { name, tensor }).collect();
    change(&mut config, &mut named);
    std::fs::write(out.join(CONFIG), config.to_string()).expect("written");
    sepal_nn::file::write(&out.join(TENSORS), &named, &BTreeMap::new()).expect("written");
}

#[test]
fn layers_with_other_ranks_and_alphas_are_converted() {
    let (_, checkpoint) = tiny("llama-gqa");
    let cut = |tensor: &HostTensor, dim: i64| {
        let cut = share_from_host(tensor).expect("a tensor").narrow(dim, 0, 2);
        to_host(&cut, DType::F32).expect("on the host")
    };
    let (plain, patterned) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    // The same additions: one layer has its second factor scaled by hand, the other by its alpha and rank.
    let is_changed = |name: &str| name.contains("layers.1.self_attn.q_proj");
    saved_lora(plain.path(), |_, named| {
        for tensor in named.iter_mut().filter(|named| is_changed(&named.name)) {
            let is_a = tensor.name.contains("lora_A");
            let zeroed = share_from_host(&tensor.tensor).expect("a tensor").narrow(i64::from(!is_a), 0, 2);
            let size = if is_a { [1, zeroed.size()[1]] } else { [zeroed.size()[0], 1] };
            let zeros = Tensor::zeros(size, (tch::Kind::Float, tch::Device::Cpu));
            let padded = Tensor::cat(&[zeroed, zeros], i64::from(!is_a));
            // 7 / 2 of the changed layer by 5 / 3 of the others.
            let scaled = if is_a { padded } else { padded * (7.0 / 2.0 / (5.0 / 3.0)) };
            tensor.tensor = to_host(&scaled, DType::F32).expect("on the host");
        }
    });
    saved_lora(patterned.path(), |config, named| {
        config["alpha_pattern"] = json!({ "layers.1.self_attn.q_proj": 7 });
        config["rank_pattern"] = json!({ "layers.1.self_attn.q_proj": 2 });
        for tensor in named.iter_mut().filter(|named| is_changed(&named.name)) {
            tensor.tensor = cut(&tensor.tensor, i64::from(tensor.name.contains("lora_B")));
        }
    });
    let computed = [&plain, &patterned].map(|folder| {
        let (out, back) = (folder.path().join("out"), folder.path().join("back"));
        let import = Import::open(&ImportOptions::default(), Some(&checkpoint), &out, &back).expect("imported");
        let (factor, notices) = (imported_factor(import.modes()), import.notices().join("\n"));
        (logits(&checkpoint, &import.finish(None).expect("written"), factor, &rows()), notices)
    });
    assert!(difference(&computed[0].0, &computed[1].0) <= 1e-5, "{computed:?}");
    assert!(!computed[0].1.contains("converted") && computed[1].1.contains("were converted"), "{computed:?}");
}

#[test]
fn rank_stabilized_lora_has_its_own_factor() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("llama-gqa");
    saved_lora(folder.path(), |config, _| config["use_rslora"] = json!(true));
    let (out, back) = (folder.path().join("out"), folder.path().join("back"));
    let import = Import::open(&ImportOptions::default(), Some(&checkpoint), &out, &back).expect("imported");
    assert_eq!(imported_factor(import.modes()), lora_factor(true));
    let adapter = import.finish(None).expect("written");
    let [plain, stabilized] = [false, true].map(|rslora| logits(&checkpoint, &adapter, lora_factor(rslora), &rows()));
    assert!(difference(&plain, &stabilized) > 1e-3, "the factor has an effect");
}

#[test]
fn unsupported_layers_are_refused() {
    type Change = fn(&mut Value, &mut Vec<NamedHostTensor>);
    let cases: [(Change, &str); 7] = [
        (|config, _| config["use_dora"] = json!(true), "import LORA with `use_dora: true` (DoRA)"),
        (|config, _| config["lora_alpha"] = json!(-1), "`lora_alpha` of adapter_config.json is not a positive number"),
        (
            |_, named| named.retain(|named| !named.name.contains("layers.2.")),
            "it changes `self_attn.q_proj` in the blocks [0, 1] of 3; a run has the same layers in all of its blocks",
        ),
        (
            |_, named| named.retain(|named| !named.name.contains("layers.0.self_attn.v_proj")),
            "it changes `self_attn.v_proj` in the blocks [1, 2] of 3",
        ),
        (
            |_, named| named.retain(|named| !named.name.contains("v_proj.lora_B")),
            "it has no `base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight`",
        ),
        (
            |_, named| named[0].name = "base_model.model.lm_head.lora_A.weight".to_owned(),
            "`base_model.model.lm_head.lora_A.weight` is not of a layer that a run can tune",
        ),
        (
            |config, _| config["peft_type"] = json!("IA3"),
            "it holds `base_model.model.model.layers.0.self_attn.q_proj.lora_A",
        ),
    ];
    for (change, expected) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        saved_lora(folder.path(), change);
        let (_, checkpoint) = tiny("llama-gqa");
        let (out, back) = (folder.path().join("out"), folder.path().join("back"));
        let error = import(&ImportOptions::default(), Some(&checkpoint), &out, &back).expect_err(expected);
        let text = sepal_core::in_one_line(&error);
        assert!(text.contains(expected), "{text}");
        assert!(!back.exists());
    }
}

#[test]
fn factors_at_the_other_end_of_a_layer_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("llama-gqa");
    let adapter = Random::ia3(&checkpoint).write(folder.path());
    try_export(folder.path(), &checkpoint, &adapter, Form::Ia3).expect("exported");
    let (out, back) = (folder.path().join("out"), folder.path().join("back"));
    std::fs::remove_file(out.join("sepal.json")).expect("removed");
    let mut found = tensors(&out);
    let name = "base_model.model.model.layers.1.mlp.down_proj.ia3_l";
    found.insert(name.to_owned(), named("x", &[checkpoint.config().hidden as i64, 1]).tensor);
    let named: Vec<_> = found.into_iter().map(|(name, tensor)| NamedHostTensor { name, tensor }).collect();
    sepal_nn::file::write(&out.join(TENSORS), &named, &BTreeMap::new()).expect("written");
    let error = import(&ImportOptions::default(), Some(&checkpoint), &out, &back).expect_err("another end");
    assert!(error.to_string().contains(&format!("`{name}` scales the outputs of its layer")), "{error}");
}

#[test]
fn verification_compares_with_the_scaled_additions() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_, checkpoint) = tiny("gpt2");
    let adapter = Random::lora(&checkpoint, 2, |_| true).write(folder.path());
    let without = logits(&checkpoint, &adapter, 0.0, &rows());
    let with = logits(&checkpoint, &adapter, lora_factor(false), &rows());
    assert!(difference(&without, &with) > 1e-2, "the additions have an effect");
    let options = ExportOptions {
        base_model: "b".to_owned(),
        tuning: vec![lora_options(false)],
        verify: Verify::Rows(rows()),
        ..ExportOptions::default()
    };
    let exported = export(&options, &checkpoint, &adapter, &folder.path().join("out")).expect("exported");
    let verified = exported.verified.expect("verified");
    let largest = with.iter().fold(0.0, |largest: f64, logit| largest.max(logit.abs()));
    assert!((verified.largest - largest).abs() <= 1e-4 && verified.rows == 3, "{verified:?} for {with:?}");
}
