//! Reference values of PyTorch for tests.

use std::collections::HashMap;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use sepal_nn::Parameters;
use tch::{Kind, Tensor, no_grad};

use crate::Optimizer;

/// Tensors of an fp32 safetensors file by name.
pub(crate) fn goldens(bytes: &[u8]) -> HashMap<String, Tensor> {
    let file = SafeTensors::deserialize(bytes).expect("goldens");
    let tensor = |view: TensorView<'_>| {
        let numbers: Vec<f32> =
            view.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes"))).collect();
        let shape: Vec<i64> = view.shape().iter().map(|&dim| dim as i64).collect();
        Tensor::from_slice(&numbers).view(&shape[..])
    };
    file.tensors().into_iter().map(|(name, view)| (name, tensor(view))).collect()
}

/// Parameters of `optim.safetensors`.
const NAMES: [&str; 4] = ["prompts", "deep_prompts", "score.weight", "score.bias"];
/// Number of steps of each of its runs.
const STEPS: i64 = 12;

/// Makes the steps of the run `run` of `optim.safetensors` with the optimizer of `build`, and compares each with the
/// reference. A second optimizer, saved and restored after each step, must be equal bit by bit.
pub(crate) fn check_run(run: &str, build: impl Fn() -> Box<dyn Optimizer>) {
    let goldens = goldens(include_bytes!("../../testkit/goldens/optim.safetensors"));
    let (params, restored_params) = (parameters(&goldens), parameters(&goldens));
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
        let digest = |params: &Parameters| params.digest().expect("read");
        assert_eq!(
            digest(&params),
            digest(&restored_params),
            "{run}: a restored optimizer does the same in step {step}"
        );
    }
}

fn parameters(goldens: &HashMap<String, Tensor>) -> Parameters {
    let mut params = Parameters::new();
    for name in NAMES {
        drop(params.add(name, &goldens[&format!("init.{name}")]).expect("new"));
    }
    params
}

/// Makes a step with the gradients of the goldens.
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
