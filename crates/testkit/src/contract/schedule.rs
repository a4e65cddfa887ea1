use sepal_plugin::{Plugin, Sched, SchedContext};

use super::check_options;

/// Checks a learning-rate schedule.
///
/// # Panics
/// If the contract is broken.
pub fn check_schedule<P: Plugin<Sched>>() {
    check_options::<Sched, P>();
    let name = P::NAME;
    for total_steps in [1, 2, 100] {
        let schedule = P::build(P::example(), &mut SchedContext { total_steps }).expect("the example builds");
        for step in 0..=total_steps {
            let factor = schedule.factor(step);
            assert!(factor.is_finite() && factor >= 0.0, "`{name}`: the factor of step {step} is {factor}");
            assert_eq!(factor, schedule.factor(step), "`{name}`: the factor depends on the step alone");
        }
    }
}
