//! Blocks of one server in several stacks, as on several devices: the numbers are those of one stack.

use std::collections::BTreeMap;

use sepal_blocks::Placement;
use sepal_integration_tests::fixture::{Fixture, Run, static_swarm};
use sepal_integration_tests::golden::{Golden, Trained, span};
use sepal_remote::RemoteOptions;
use sepal_server::{BlockServer, DeviceStacks, Limits, ModelIdentity, ServerOptions};
use tch::Tensor;

fn serve(golden: &Golden, n_stacks: usize, tape_budget_bytes: u64) -> BlockServer {
    let placements = vec![Placement::default(); n_stacks];
    let stacks = DeviceStacks::load(&golden.checkpoint, span(&golden.all_blocks()), &placements).expect("blocks");
    let limits = Limits { tape_budget_bytes, ..Limits::default() };
    let options = ServerOptions { limits, threads: Some(1), ..ServerOptions::default() };
    BlockServer::embedded(stacks, ModelIdentity::from_checkpoint(&golden.checkpoint), options).expect("a server")
}

/// Returns the logits, with a tape and without, and the gradients of a step, as lists of numbers.
fn step(golden: &Golden, mode: &str, n_stacks: usize, tape_budget_bytes: u64) -> BTreeMap<String, Vec<f32>> {
    let server = serve(golden, n_stacks, tape_budget_bytes);
    let options = RemoteOptions { deterministic: true, ..RemoteOptions::default() };
    let remote = golden.connect(std::slice::from_ref(&server), options);
    let trained = Trained::new(golden, mode);
    let logits = trained.golden_logits(golden, &remote);
    golden.loss(&logits).backward();
    let predicted = tch::no_grad(|| trained.golden_logits(golden, &remote));
    let flat = |tensor: &Tensor| Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).expect("numbers");
    let grads = trained.grads().into_iter().map(|(name, grad)| (name, flat(&grad)));
    grads.chain([("logits".to_owned(), flat(&logits)), ("predicted".to_owned(), flat(&predicted))]).collect()
}

#[test]
fn stacks_compute_bit_for_bit_as_one() {
    let (plain, adapters) = (Golden::open("llama-gqa"), Golden::with_adapters("llama-gqa"));
    let learned_positions = Golden::open("gpt2");
    let modes = ["ptune", "deep"].map(str::to_owned).to_vec();
    for (golden, modes) in [(&plain, modes.clone()), (&learned_positions, modes), (&adapters, adapters.cases())] {
        for mode in modes {
            for tape_budget_bytes in [1 << 30, 0] {
                let one = step(golden, &mode, 1, tape_budget_bytes);
                assert!(one.len() > 2 && one.values().flatten().any(|number| *number != 0.0), "{mode}");
                for n_stacks in [2, 3] {
                    let several = step(golden, &mode, n_stacks, tape_budget_bytes);
                    assert_eq!(several, one, "{mode} on {n_stacks} stacks, {tape_budget_bytes} bytes of tapes");
                }
            }
        }
    }
}

#[test]
fn runs_on_several_devices_of_a_server_are_bit_exact() {
    let fixture = Fixture::new("llama-gqa");
    let on = |devices: &str, more: &[&str]| -> Run {
        let server = fixture.serve_with("0:3", "127.0.0.1:0", &["--device", devices]);
        let swarm = static_swarm(&[&server]);
        let usual = ["train.deterministic=true", "train.max_steps=10", &swarm[0], &swarm[1]];
        fixture.run(&[&usual[..], more].concat())
    };
    for more in [
        &[][..],
        &["model.local_blocks=1"],
        &["tuning={ use: lora, with: { r: 4, alpha: 6.0 } }"],
        &["tuning.use=ptune", "swarm.with.wire_dtype=bf16"],
    ] {
        let one = on("cpu", more);
        // Devices beyond the number of blocks have none.
        for devices in ["cpu,cpu", "cpu,cpu,cpu,cpu"] {
            let several = on(devices, more);
            assert_eq!(several.losses(), one.losses(), "{devices}, {more:?}");
            assert_eq!(several.manifest()["metrics"], one.manifest()["metrics"], "{devices}, {more:?}");
            assert!(several.adapter() == one.adapter(), "{devices}, {more:?}: the adapters differ");
        }
    }
}

#[test]
fn wrong_device_of_a_list_is_named() {
    let fixture = Fixture::new("llama-gqa");
    for (devices, wrong) in [("cpu,cuda:x", "`cuda:x`"), ("gpu,cpu", "`gpu`")] {
        let output = fixture.sepal(&["serve", "model", "--device", devices]).output().expect("sepal runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(&format!("{wrong} is not a device; write cpu or cuda:N")), "{text}");
    }
}
