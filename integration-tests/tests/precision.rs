//! Training in 16 bits: final losses, and recovery from overflow.

use sepal_core::DType;
use sepal_integration_tests::fixture::{Fixture, Run, static_swarm};
use sepal_integration_tests::golden::{Golden, Trained, assert_grad, distance};
use sepal_remote::{RemoteError, RemoteOptions, RemoteSequential, SwarmPath};
use sepal_server::BlockServer;
use serde_json::Value;
use tch::Tensor;

/// Returns the mean loss of the last pass, and the validation loss after it.
fn final_losses(run: &Run) -> [f64; 2] {
    let losses = run.losses();
    let last = &losses[losses.len() - 12..];
    let validation = run.records("evaluation").last().and_then(|record| record["loss"].as_f64()).expect("a loss");
    [last.iter().sum::<f64>() / last.len() as f64, validation]
}

fn assert_within_2_percent(what: &str, found: &Run, expected: &Run) {
    for (found, expected) in final_losses(found).into_iter().zip(final_losses(expected)) {
        let off = found / expected - 1.0;
        assert!(off.abs() < 0.02, "{what}: {found} instead of {expected}, off by {:.2} %", 100.0 * off);
    }
}

fn bytes(run: &Run) -> f64 {
    run.manifest()["bytes"]["sent"].as_f64().expect("bytes")
}

#[test]
fn sixteen_bit_training_ends_near_the_32_bit_loss() {
    for model in ["llama-gqa", "bloom"] {
        let fixture = Fixture::new(model);
        let plain = fixture.run(&[]);
        assert!(plain.manifest()["scale"].is_null() && plain.records("step")[0]["scale"].is_null());
        for precision in ["bf16", "f16"] {
            let run = fixture.run(&[&format!("train.precision={precision}")]);
            assert_within_2_percent(&format!("{model} {precision}"), &run, &plain);
            assert_ne!(run.losses(), plain.losses(), "it makes a difference");
            assert!(bytes(&run) < 0.6 * bytes(&plain), "hidden states travel in 16 bits");
            let scale = (precision == "f16").then_some(65536.0);
            assert!(run.records("step").iter().all(|step| step["scale"].as_f64() == scale), "{precision}");
            assert_eq!((&run.manifest()["scale"].as_f64(), &run.manifest()["skipped_steps"]), (&scale, &0.into()));
        }
        // Inputs and outputs of the blocks are rounded, even if the wire format is wider.
        let wide = fixture.run(&["train.precision=f16", "swarm.with.wire_dtype=f32"]);
        assert_within_2_percent(&format!("{model} f16 over f32"), &wide, &plain);
        assert!(bytes(&wide) > 0.99 * bytes(&plain));
        let first_here = fixture.run(&["train.precision=f16", "model.local_blocks=1"]);
        assert_within_2_percent(&format!("{model} f16, one block here"), &first_here, &plain);
        let narrow = fixture.run(&["swarm.with.wire_dtype=f16"]);
        assert_eq!(narrow.manifest()["scale"], 65536.0, "gradients that travel as f16 are scaled");
    }
}

/// Asserts that the scale of each step follows from the previous steps, as in `torch.amp.GradScaler`, and that a
/// skipped step does not advance the schedule.
fn assert_scaled_as_torch_does(steps: &[Value], init_scale: f64, growth_interval: u32) {
    let (mut scale, mut tracker, mut skipped) = (init_scale as f32, 0, 0);
    for (before, step) in [&Value::Null].into_iter().chain(steps).zip(steps) {
        assert_eq!(step["scale"].as_f64(), Some(scale.into()), "{step}");
        if before["skipped"].is_string() {
            assert_eq!(step["lr"], before["lr"], "{before}, then {step}");
        }
        if step["skipped"].is_string() {
            (scale, tracker, skipped) = (scale * 0.5, 0, skipped + 1);
            assert!(step["grad_norm"].is_null(), "{step}");
        } else {
            tracker += 1;
            assert!(step["grad_norm"].as_f64().is_some(), "{step}");
        }
        if tracker == growth_interval {
            (scale, tracker) = (scale * 2.0, 0);
        }
        assert_eq!(step["skipped_steps"], skipped, "{step}");
    }
}

#[test]
fn overflow_on_the_wire_skips_steps_and_the_run_recovers() {
    let fixture = Fixture::new("llama-gqa");
    let [first, second] = [fixture.serve("0:1", "127.0.0.1:0"), fixture.serve("1:3", "127.0.0.1:0")];
    let swarm = static_swarm(&[&first, &second]);
    let scaler = "train.scaler={init_scale: 1.0e+11, growth_interval: 6}";
    let sets = [&swarm[0], &swarm[1], "train.precision=f16", scaler, "train.epochs=10", "evaluate.every=end"];
    for path in ["star", "relay"] {
        let path = format!("swarm.with.path={path}");
        let sets = [&sets[..], &[&path, "swarm.with.micro_batch_tokens=60"]].concat();
        let (run, messages) = fixture.run_with_messages(&sets);
        assert!(!messages.contains("a server failed"), "nobody is left for an overflow: {messages}");
        let steps = run.records("step");
        assert_eq!(steps.len(), 120, "as many passes as were asked for");
        assert_scaled_as_torch_does(&steps, 1.0e11, 6);
        let skips = steps.last().expect("steps")["skipped_steps"].as_u64().expect("a number");
        assert!((12..60).contains(&skips), "{skips} skips");
        assert!(steps[110..].iter().any(|step| step["skipped"].is_null()), "it recovers");
        assert!(run.accuracy() >= 0.85, "and learns: {}", run.accuracy());
        assert_eq!((&run.manifest()["skipped_steps"], &run.manifest()["steps"]), (&skips.into(), &120.into()));
        let reasons: Vec<&str> = steps.iter().filter_map(|step| step["skipped"].as_str()).collect();
        assert_eq!(reasons[0], "send non-finite gradients as f16");
        assert!(reasons.iter().any(|reason| reason.contains(&first.addr)), "{reasons:?}");
        assert!(messages.contains("step 1/120 skipped, loss scale 1.00e11: send non-finite gradients"), "{messages}");
        assert!(run.stdout.contains(&format!("over 120 steps, {skips} of them skipped")), "{}", run.stdout);
    }
}

#[test]
fn lasting_overflow_stops_the_run() {
    let fixture = Fixture::new("llama-gqa");
    let text = fixture.failure(&["train.precision=f16", "train.scaler.init_scale=1.0e+38", "train.epochs=10"]);
    assert!(text.contains("make step 50: 50 steps in a row were skipped"), "{text}");
    let run = fixture.only_run();
    assert_eq!((&run.manifest()["status"]["state"], &run.manifest()["skipped_steps"]), (&"failed".into(), &50.into()));
    assert_eq!(run.records("step").len(), 50);
}

#[test]
fn prompts_beyond_their_format_stop_the_run_at_once() {
    let fixture = Fixture::new("llama-gqa");
    let sets = ["train.precision=f16", "optimizer.with.lr=1.0e+5", "schedule.with.warmup_steps=0"];
    let text = fixture.failure(&sets);
    assert!(text.contains("send non-finite prompts as f16"), "no smaller scale is any help: {text}");
    assert_eq!(fixture.only_run().records("step").len(), 1);
}

fn servers(golden: &Golden) -> [BlockServer; 2] {
    ["0:1", "1:3"].map(|blocks| golden.serve_listening(blocks, 1 << 30))
}

fn backward(golden: &Golden, remote: &RemoteSequential, scale: f64) -> Result<Trained, RemoteError> {
    let trained = golden.trained();
    let logits = trained.golden_logits(golden, remote);
    let loss: Tensor = golden.loss(&logits) * scale;
    remote.backward(&loss).map(|()| trained)
}

#[test]
fn overflowing_gradients_name_their_server_and_leave_the_session_usable() {
    let golden = Golden::open("llama-gqa");
    let servers = servers(&golden);
    let addresses = servers.each_ref().map(|server| server.endpoint().to_string());
    for (path, expects_overflow) in [(SwarmPath::Star, false), (SwarmPath::Relay, false), (SwarmPath::Relay, true)] {
        let options =
            RemoteOptions { path, expects_overflow, wire_dtype: Some(DType::F16), ..RemoteOptions::default() };
        let remote = golden.connect(&servers, options);
        // The largest gradients are 0.4 of the pooled rows and 0.26 of the prompts.
        let error = backward(&golden, &remote, 1e9).err().expect("it overflows at once");
        assert!(matches!(&error, RemoteError::NonFiniteInput { what: "gradients", .. }), "{error}");
        assert!(error.is_overflow());
        let error = backward(&golden, &remote, 6e5).err().expect("it overflows on the way");
        let RemoteError::NonFinite { server, what: "gradients", .. } = &error else { panic!("{error}") };
        assert!(error.is_overflow() && addresses.iter().any(|address| server.contains(address)), "{error}");
        assert_eq!(server.contains(" or "), expects_overflow, "{error}");
        let trained = backward(&golden, &remote, 1024.0).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let off = distance(&(trained.prompts().grad() / 1024.0), &golden.get("deep.grad.prompts"));
        assert!(off < 1e-3, "{path:?}: the next one is right: {off}");
        // An error of libtorch is not mistaken for an earlier server error.
        let error = remote.backward(&Tensor::from(1.0_f32)).expect_err("no graph");
        assert!(matches!(error, RemoteError::Local { .. }), "{error}");
    }
    assert!(servers.iter().all(|server| server.stats().info().load.tapes == 0), "no tape is left");
}

#[test]
fn scaled_gradients_of_micro_batches_add_up() {
    for (wire_dtype, tolerance) in [(DType::F32, 1e-4), (DType::F16, 4e-3), (DType::Bf16, 4e-2)] {
        let golden = Golden::open("llama-gqa");
        let servers = servers(&golden);
        let options =
            RemoteOptions { micro_batch_tokens: 14, wire_dtype: Some(wire_dtype), ..RemoteOptions::default() };
        let trained = backward(&golden, &golden.connect(&servers, options), 4096.0).expect("gradients");
        for (name, grad) in trained.grads() {
            let (grad, expected) = (grad / 4096.0, golden.get(&format!("deep.grad.{name}")));
            let off = distance(&grad, &expected) / expected.abs().max().double_value(&[]);
            assert!(off < tolerance, "{wire_dtype} {name}: off by {off:.2e} of the largest entry");
        }
    }
}

#[test]
fn client_with_overflowing_gradients_does_not_disturb_others() {
    let golden = Golden::open("llama-gqa");
    let server = [golden.serve_listening("0:3", 1 << 30)];
    let client = |scale: f64, wire_dtype: DType| {
        let golden = Golden::open("llama-gqa");
        let remote =
            golden.connect(&server, RemoteOptions { wire_dtype: Some(wire_dtype), ..RemoteOptions::default() });
        for _ in 0..20 {
            match backward(&golden, &remote, scale) {
                Ok(trained) if wire_dtype == DType::F32 => {
                    trained.grads().iter().for_each(|(name, grad)| {
                        assert_grad(name, &(grad / scale), &golden.get(&format!("deep.grad.{name}")));
                    });
                }
                outcome => assert!(outcome.err().expect("it overflows").is_overflow()),
            }
        }
    };
    std::thread::scope(|scope| {
        let client = &client;
        for (scale, wire_dtype) in [(1.0, DType::F32), (6e5, DType::F16), (2.0, DType::F32), (6e5, DType::F16)] {
            scope.spawn(move || client(scale, wire_dtype));
        }
    });
}
