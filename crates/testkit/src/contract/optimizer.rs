use sepal_nn::Parameters;
use sepal_optim::Optimizer;
use sepal_plugin::{Opt, OptContext, Plugin};
use tch::{Kind, Tensor};

use super::{check_options, numbers};

/// Checks an optimizer.
pub fn check_optimizer<P: Plugin<Opt>>() {
    check_options::<Opt, P>();
    let name = P::NAME;
    let (params, restored_params) = (parameters(), parameters());
    let (mut optimizer, mut restored) = (build::<P>(), build::<P>());
    let before = digest(&params);
    for step in 0..4 {
        let state = restored.state().expect("a state");
        restored = build::<P>();
        restored.load_state(&restored_params, &state).expect("an optimizer takes its own state");
        assert_eq!(restored.state().expect("a state"), state, "`{name}`: a state is the same after saving and loading");
        move_once(&mut *optimizer, &params, step);
        move_once(&mut *restored, &restored_params, step);
        let same = digest(&params) == digest(&restored_params);
        assert!(same, "`{name}`: an optimizer that was saved and restored does what it would have done");
    }
    assert_ne!(digest(&params), before, "`{name}`: parameters move");
    let still = params.get(STILL).expect("it was added");
    assert_eq!(still.detach(), numbers(&[3]), "`{name}`: a parameter without a gradient is left as it is");
    let state = optimizer.state().expect("a state");
    let mut other = Parameters::new();
    drop(other.add("other", &numbers(&[2])).expect("the store is empty"));
    let refused = state.is_empty() || optimizer.load_state(&other, &state).is_err();
    assert!(refused, "`{name}`: a state of other parameters is refused");
    assert_eq!(optimizer.state().expect("a state"), state, "`{name}`: a refused state changes nothing");
}

/// Parameter that never has a gradient.
const STILL: &str = "still";

fn build<P: Plugin<Opt>>() -> Box<dyn Optimizer> {
    P::build(P::example(), &mut OptContext {}).expect("the example builds")
}

fn parameters() -> Parameters {
    let mut params = Parameters::new();
    for (name, shape) in
        [("number", &[][..]), ("vector", &[3]), (STILL, &[3]), ("matrix", &[2, 3]), ("cube", &[2, 2, 3])]
    {
        drop(params.add(name, &numbers(shape)).expect("the name is new"));
    }
    params
}

fn move_once(optimizer: &mut dyn Optimizer, params: &Parameters, step: i64) {
    for (name, param) in params.iter().filter(|&(name, _)| name != STILL) {
        param.shallow_clone().zero_grad();
        let grad: Tensor = (numbers(&param.size()) + (name.len() as i64 + step)).cos();
        (param * grad).sum(Kind::Float).backward();
    }
    let lr = optimizer.lr();
    optimizer.step(params, lr).expect("a step");
}

fn digest(params: &Parameters) -> String {
    params.digest().expect("parameters can be read")
}
