//! Reference values of PyTorch for tests.

use std::collections::HashMap;

use sepal_nn::Parameters;
use tch::{Kind, Tensor, no_grad};

use crate::Optimizer;

/// Tensors of the goldens' file `FILE.safetensors` by name.
pub(crate) fn goldens(file: &str) -> HashMap<String, Tensor> {
    let path = format!("{}/../testkit/goldens/{file}.safetensors", env!("CARGO_MANIFEST_DIR"));
    Tensor::read_safetensors(path).expect("goldens").into_iter().collect()
}

/// Parameters of `optim.safetensors`.
const NAMES: [&str; 4] = ["prompts", "deep_prompts", "score.weight", "score.bias"];
/// Number of steps of each of its runs.
const STEPS: i64 = 12;

/// Makes the steps of the run `run` of `optim.safetensors` with the optimizer of `build`, and compares each with the
/// reference. A second optimizer, saved and restored after each step, must be equal bit by bit.
pub(crate) fn check_run(run: &str, build: impl Fn() -> Box<dyn Optimizer>) {
    let goldens = goldens("optim");
    let (params, restored_params) = (parameters(&goldens, &NAMES), parameters(&goldens, &NAMES));
    let (mut optimizer, mut restored) = (build(), build());
    for step in 0..STEPS {
        let lr = optimizer.lr() * goldens["factors"].double_value(&[step]);
        let state = restored.state().expect("a state");
        restored = build();
        restored.load_state(&restored_params, &state).expect("the same parameters");
        assert_eq!(restored.state().expect("a state"), state, "{run}: what is restored in step {step} was saved");
        golden_step(&mut *optimizer, &params, &goldens, step, lr);
        golden_step(&mut *restored, &restored_params, &goldens, step, lr);
        for (name, param) in params.iter() {
            let expected = goldens[&format!("{run}.{name}")].get(step);
            let far = no_grad(|| ((param - &expected).abs() / expected.abs().clamp_min(1.0)).max().double_value(&[]));
            assert!(far < 1e-6, "{run}: {name} is {far} away after step {step}");
        }
        let [found, expected] = [&restored_params, &params].map(|params| params.digest().expect("read"));
        assert_eq!(found, expected, "{run}: a restored optimizer does the same in step {step}");
    }
}

/// Parameters with the initial values `init.NAME` of the goldens.
pub(crate) fn parameters(goldens: &HashMap<String, Tensor>, names: &[&str]) -> Parameters {
    let mut params = Parameters::new();
    for &name in names {
        drop(params.add(name, &goldens[&format!("init.{name}")]).expect("new"));
    }
    params
}

fn golden_step(
    optimizer: &mut dyn Optimizer,
    params: &Parameters,
    goldens: &HashMap<String, Tensor>,
    step: i64,
    lr: f64,
) {
    for (name, param) in params.iter() {
        param.shallow_clone().zero_grad();
        let grad = goldens[&format!("grad.{name}")].get(step);
        (param * grad).sum(Kind::Float).backward();
    }
    optimizer.step(params, lr).expect("a step");
}
