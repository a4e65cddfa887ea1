use sepal_optim::Schedule;
use sepal_plugin::{Plugin, Sched, SchedContext};

use super::check_options;

/// Checks a learning-rate schedule.
pub fn check_schedule<P: Plugin<Sched>>() {
    check_options::<Sched, P>();
    let name = P::NAME;
    for total_steps in [0, 1, 2, 100] {
        let schedule = build::<P>(total_steps);
        check_factors(name, &*schedule, total_steps);
        for step in 0..=total_steps {
            let unmoved = schedule.factor(step) == schedule.factor(step);
            assert!(unmoved, "`{name}`: without an evaluation, the factor depends on the step alone");
        }
    }
    check_state::<P>(100);
}

fn build<P: Plugin<Sched>>(total_steps: usize) -> Box<dyn Schedule> {
    P::build(P::example(), &mut SchedContext { total_steps }).expect("the example builds")
}

fn check_factors(name: &str, schedule: &dyn Schedule, total_steps: usize) {
    for step in 0..=total_steps {
        let factor = schedule.factor(step);
        assert!(factor.is_finite() && factor >= 0.0, "`{name}`: the factor of step {step} is {factor}");
    }
}

/// Checks that a schedule that is saved and restored after each evaluation equals one that is not.
fn check_state<P: Plugin<Sched>>(total_steps: usize) {
    let name = P::NAME;
    let (mut schedule, mut restored) = (build::<P>(total_steps), build::<P>(total_steps));
    for step in 0..total_steps {
        // The values rise and fall, so that some are better than all before and most are not.
        let value = (step as f64 * 0.7).sin() + step as f64 / 1e3;
        schedule.evaluated(step, value);
        restored.evaluated(step, value);
        let state = restored.state().expect("a state");
        restored = build::<P>(total_steps);
        restored.load_state(&state).expect("a schedule takes its own state");
        assert_eq!(restored.state().expect("a state"), state, "`{name}`: a state is the same after saving and loading");
        let same = schedule.factor(step).to_bits() == restored.factor(step).to_bits();
        assert!(same, "`{name}`: a schedule that was saved and restored goes on as it would have");
    }
    check_factors(name, &*schedule, total_steps);
    let follows = schedule.watches().is_some();
    let has_state = !schedule.state().expect("a state").is_empty();
    assert_eq!(has_state, follows, "`{name}`: what watches evaluations has a state");
    let moved = (0..total_steps).any(|step| schedule.factor(step) != build::<P>(total_steps).factor(step));
    assert_eq!(moved, follows, "`{name}`: evaluations count for a schedule that watches them, and for no other");
}
