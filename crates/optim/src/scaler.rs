use sepal_core::{GradScalerConfig, NamedHostTensor};
use sepal_nn::Parameters;
use tch::{TchError, Tensor};

use crate::state::{Saved, StateError, save};
use crate::{Optimizer, StepError};

/// Scaler that multiplies losses so that small gradients do not vanish in 16 bits, and skips the steps whose gradients
/// overflow; each step equals `torch.amp.GradScaler`'s.
///
/// One step consists of [`scale_loss`](Self::scale_loss) for each loss and its backward pass,
/// [`unscale`](Self::unscale), operations on plain gradients (clipping), [`step`](Self::step), and
/// [`update`](Self::update).
#[derive(Debug, Clone)]
pub struct GradScaler {
    config: GradScalerConfig,
    scale: f32,
    /// Number of consecutive steps with finite gradients since the last change of the scale.
    growth_tracker: u32,
    /// True if a gradient of the current step is not finite.
    found: bool,
}

const SCALER: &str = "scaler";
const SCALE: &str = "scale";
const GROWTH_TRACKER: &str = "growth_tracker";

impl GradScaler {
    /// Creates a scaler without state.
    pub fn new(config: GradScalerConfig) -> Self {
        Self { scale: config.init_scale as f32, config, growth_tracker: 0, found: false }
    }

    /// Returns the current loss scale.
    pub fn scale(&self) -> f64 {
        self.scale.into()
    }

    /// Returns the scaled loss for the backward pass, attached to the graph of `loss`.
    ///
    /// # Errors
    /// [`TchError`] if libtorch fails.
    pub fn scale_loss(&self, loss: &Tensor) -> Result<Tensor, TchError> {
        loss.f_mul_scalar(self.scale())
    }

    /// Divides all gradients by the scale, in place, and returns true if all are finite. Call it once for each step,
    /// after its last backward pass.
    ///
    /// # Errors
    /// [`TchError`] if libtorch fails.
    pub fn unscale(&mut self, params: &Parameters) -> Result<bool, TchError> {
        let inverse = Tensor::from((1.0 / self.scale()) as f32);
        let mut found = Tensor::from(0.0_f32);
        for (_, param) in params.iter() {
            let mut grad = param.f_grad()?;
            if grad.defined() {
                // One pass by libtorch's own kernel, as in `torch.amp`.
                tch::no_grad(|| grad.f_internal_amp_non_finite_check_and_unscale(&mut found, &inverse))?;
            }
        }
        self.found |= f64::try_from(&found)? != 0.0;
        Ok(!self.found)
    }

    /// Marks a gradient of this step as non-finite, also one that never reached the parameters.
    pub fn record_overflow(&mut self) {
        self.found = true;
    }

    /// Makes a step of `optimizer` at the learning rate `lr` unless a gradient was not finite, and returns true if it
    /// was made.
    ///
    /// # Errors
    /// [`StepError`] if libtorch fails.
    pub fn step(&self, optimizer: &mut dyn Optimizer, params: &Parameters, lr: f64) -> Result<bool, StepError> {
        if !self.found {
            optimizer.step(params, lr)?;
        }
        Ok(!self.found)
    }

    /// Updates the scale for the next step: smaller after a skipped step, larger after enough others. Call it once at
    /// the end of each step.
    pub fn update(&mut self) {
        let GradScalerConfig { growth_factor, backoff_factor, growth_interval, .. } = self.config;
        // Computed in double precision and rounded, as in libtorch.
        let times = |factor: f64| (self.scale() * factor) as f32;
        if self.found {
            self.scale = times(backoff_factor);
            self.growth_tracker = 0;
        } else if self.growth_tracker + 1 < growth_interval {
            self.growth_tracker += 1;
        } else {
            self.scale = Some(times(growth_factor)).filter(|scale| scale.is_finite()).unwrap_or(self.scale);
            self.growth_tracker = 0;
        }
        self.found = false;
    }

    /// Returns the state of the scaler as named tensors, under names that no optimizer uses.
    ///
    /// # Errors
    /// [`StateError`] if libtorch cannot copy them.
    pub fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        let tracker = Tensor::from(self.growth_tracker as f32);
        Ok(vec![save(SCALER, SCALE, &Tensor::from(self.scale))?, save(SCALER, GROWTH_TRACKER, &tracker)?])
    }

    /// Restores the state returned by [`state`](Self::state).
    ///
    /// # Errors
    /// [`StateError`] if a tensor is missing or not a scalar; nothing changes then.
    pub fn load_state(&mut self, state: &[NamedHostTensor]) -> Result<(), StateError> {
        let mut saved = Saved::new(state)?;
        let (scale, tracker) = (saved.take_number(SCALER, SCALE)?, saved.take_count(SCALER, GROWTH_TRACKER)?);
        saved.check_empty()?;
        (self.scale, self.growth_tracker, self.found) = (scale as f32, tracker.unsigned_abs(), false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tch::{Kind, no_grad};

    use super::*;
    use crate::goldens::{goldens, parameters};
    use crate::{AdamW, AdamWConfig, Linear, LinearConfig, Schedule, clip_grad_norm};

    const STEPS: usize = 24;

    fn scalar(goldens: &HashMap<String, Tensor>, key: &str) -> f64 {
        goldens[key].double_value(&[])
    }

    /// Sum of `weights` times each parameter as a 16-bit float, in which the gradient of a large loss overflows.
    fn loss(params: &Parameters, goldens: &HashMap<String, Tensor>, step: &str) -> Tensor {
        let term = |(name, param): (&str, &Tensor)| {
            let halved = param.to_kind(Kind::Half).to_kind(Kind::Float);
            (halved * &goldens[&format!("{step}.weights.{name}")]).sum(Kind::Float)
        };
        params.iter().map(term).sum()
    }

    /// Makes the steps of the golden run `run` and compares each with PyTorch's; scaler and optimizer are saved and
    /// restored in the middle. Returns the skipped steps.
    fn check(run: &str, config: GradScalerConfig) -> Vec<usize> {
        let goldens = goldens("scaler");
        let mut params = parameters(&goldens, &["prompts", "score.weight"]);
        let adamw = AdamWConfig { lr: 1e-2, weight_decay: 0.01, ..AdamWConfig::default() };
        let mut optimizer = AdamW::new(adamw.clone());
        let schedule = Linear::new(LinearConfig { warmup_steps: 3, ..LinearConfig::default() }, STEPS);
        let mut scaler = GradScaler::new(config.clone());
        let (mut made, mut skipped) = (0, Vec::new());
        for step in 0..STEPS {
            if step == STEPS / 2 {
                let (of_scaler, of_optimizer) = (scaler.state().expect("a state"), optimizer.state().expect("a state"));
                (scaler, optimizer) = (GradScaler::new(config.clone()), AdamW::new(adamw.clone()));
                scaler.load_state(&of_scaler).expect("its own");
                optimizer.load_state(&params, &of_optimizer).expect("the same parameters");
            }
            let key = format!("{run}.step{step}");
            assert_eq!(scaler.scale(), scalar(&goldens, &format!("{key}.scale")), "{key}");
            params.zero_grad();
            scaler.scale_loss(&loss(&params, &goldens, &format!("step{step}"))).expect("a loss").backward();
            let finite = scaler.unscale(&params).expect("unscaled");
            assert_eq!(!finite, scalar(&goldens, &format!("{key}.skipped")) != 0.0, "{key}");
            let norm = clip_grad_norm(&params, 1.0).expect("a norm");
            if finite {
                assert!((norm - scalar(&goldens, &format!("{key}.norm"))).abs() < 1e-5, "{key}: {norm}");
            }
            let lr = optimizer.lr() * schedule.factor(made);
            assert!((lr - scalar(&goldens, &format!("{key}.lr"))).abs() < 1e-8, "{key}: {lr}");
            match scaler.step(&mut optimizer, &params, lr).expect("a step") {
                true => made += 1,
                false => skipped.push(step),
            }
            scaler.update();
            let tracker = scalar(&goldens, &format!("{key}.growth_tracker"));
            assert_eq!(f64::from(scaler.growth_tracker), tracker, "{key}");
            for (name, param) in params.iter() {
                let far = no_grad(|| (param - &goldens[&format!("{key}.param.{name}")]).abs().max()).double_value(&[]);
                assert!(far < 1e-6, "{name} is {far} away after {key}");
            }
        }
        skipped
    }

    #[test]
    fn overflow_skip_backoff_and_recovery_equal_pytorch() {
        // The run overflows at the initial scale, twice on purpose, at a NaN, and after growing too far.
        let skipped = check("usual", GradScalerConfig { growth_interval: 3, ..GradScalerConfig::default() });
        assert!([7, 8, 14].iter().all(|step| skipped.contains(step)), "on purpose: {skipped:?}");
        assert!(skipped.len() > 3 && skipped.len() < STEPS / 2, "by itself, too: {skipped:?}");
    }

    #[test]
    fn odd_factors_round_as_in_pytorch() {
        let config =
            GradScalerConfig { init_scale: 1.0e6, growth_factor: 1.7, backoff_factor: 0.3, growth_interval: 2 };
        assert!(check("odd", config).len() > 3);
    }

    #[test]
    fn recorded_overflow_skips_step() {
        let mut params = Parameters::new();
        let x = params.add("x", &Tensor::from(1.0_f32)).expect("new");
        let mut optimizer = AdamW::new(AdamWConfig::default());
        let mut scaler = GradScaler::new(GradScalerConfig { init_scale: 8.0, ..GradScalerConfig::default() });
        scaler.scale_loss(&(&x * 2.0)).expect("a loss").backward();
        scaler.record_overflow();
        assert!(!scaler.unscale(&params).expect("unscaled"));
        assert_eq!(x.grad().double_value(&[]), 2.0);
        assert!(!scaler.step(&mut optimizer, &params, 0.1).expect("skipped"));
        assert_eq!(x.double_value(&[]), 1.0);
        assert!(optimizer.state().expect("a state").is_empty(), "the optimizer counts no step");
        scaler.update();
        assert_eq!(scaler.scale(), 4.0);
        assert!(scaler.step(&mut optimizer, &params, 0.1).expect("a step"), "the next one is made");
    }

    #[test]
    fn scale_stays_within_fp32() {
        let config = GradScalerConfig { init_scale: 2.0_f64.powi(127), growth_interval: 1, ..Default::default() };
        let mut scaler = GradScaler::new(config);
        scaler.update();
        assert_eq!(scaler.scale(), 2.0_f64.powi(127));
    }

    #[test]
    fn load_state_of_other_object_is_error() {
        let mut scaler = GradScaler::new(GradScalerConfig::default());
        let state = scaler.state().expect("a state");
        assert!(matches!(scaler.load_state(&state[..1]), Err(StateError::Missing { .. })));
        let other = NamedHostTensor { name: "step.x".to_owned(), tensor: state[0].tensor.clone() };
        let more = [state.clone(), vec![other]].concat();
        assert!(matches!(scaler.load_state(&more), Err(StateError::Unknown { .. })));
        assert_eq!(scaler.state().expect("a state"), state);
    }
}
