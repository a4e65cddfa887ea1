use std::fmt;

use sepal_core::NamedHostTensor;
use sepal_nn::Parameters;

use crate::{Optimizer, StateError, StepError};

/// Optimizer of parameters in groups, each with an optimizer of its own, as `param_groups` of PyTorch.
///
/// The learning rate is that of the first optimizer, or the largest of all if that is zero. A schedule's factor applies to
/// the learning rates of all groups.
pub struct GroupedOptimizer {
    groups: Vec<Group>,
}

/// Optimizer of some of the parameters.
struct Group {
    params: Vec<String>,
    optimizer: Box<dyn Optimizer>,
}

impl GroupedOptimizer {
    /// Uses each optimizer of `groups` for the parameters that match one of its patterns, and `others` for the parameters
    /// that match none. In a pattern, `*` stands for any text and `?` for one character.
    ///
    /// # Errors
    /// [`GroupError`] if a pattern matches no parameter, or two groups have the same parameter.
    pub fn new(
        others: Box<dyn Optimizer>,
        groups: Vec<(Vec<String>, Box<dyn Optimizer>)>,
        params: &Parameters,
    ) -> Result<Self, GroupError> {
        let names = || params.iter().map(|(name, _)| name);
        let mut grouped: Vec<Group> = Vec::new();
        for (patterns, optimizer) in groups {
            if let Some(pattern) = patterns.iter().find(|pattern| !names().any(|name| matches(pattern, name))) {
                let known = names().map(str::to_owned).collect();
                return Err(GroupError::NoParameter { pattern: pattern.clone(), known });
            }
            let is_member = |name: &&str| patterns.iter().any(|pattern| matches(pattern, name));
            let members: Vec<String> = names().filter(is_member).map(str::to_owned).collect();
            if let Some(name) = members.iter().find(|name| grouped.iter().any(|group| group.params.contains(name))) {
                return Err(GroupError::Twice { name: name.clone() });
            }
            grouped.push(Group { params: members, optimizer });
        }
        let is_free = |name: &&str| !grouped.iter().any(|group| group.params.iter().any(|member| member == name));
        let free = names().filter(is_free).map(str::to_owned).collect();
        let mut all = vec![Group { params: free, optimizer: others }];
        all.append(&mut grouped);
        Ok(Self { groups: all })
    }
}

impl Optimizer for GroupedOptimizer {
    fn lr(&self) -> f64 {
        let mut rates = self.groups.iter().map(|group| group.optimizer.lr());
        match rates.next() {
            Some(first) if first > 0.0 => first,
            _ => rates.fold(0.0, f64::max),
        }
    }

    fn step(&mut self, params: &Parameters, lr: f64) -> Result<(), StepError> {
        let of_all = self.lr();
        for Group { params: members, optimizer } in &mut self.groups {
            // All rates are zero otherwise.
            let scale = if of_all > 0.0 { optimizer.lr() / of_all } else { 1.0 };
            optimizer.step(&subset(params, members), lr * scale)?;
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<NamedHostTensor>, StateError> {
        let mut state = Vec::new();
        for (i, group) in self.groups.iter().enumerate() {
            let named =
                |NamedHostTensor { name, tensor }| NamedHostTensor { name: format!("{}{name}", prefix(i)), tensor };
            state.extend(group.optimizer.state()?.into_iter().map(named));
        }
        Ok(state)
    }

    fn load_state(&mut self, params: &Parameters, state: &[NamedHostTensor]) -> Result<(), StateError> {
        let states = split(state, self.groups.len())?;
        let before = self.groups.iter().map(|group| group.optimizer.state()).collect::<Result<Vec<_>, _>>()?;
        let result = self.load_groups(params, &states);
        if result.is_err() {
            // The groups before the one that failed.
            self.load_groups(params, &before)?;
        }
        result
    }
}

impl GroupedOptimizer {
    fn load_groups(&mut self, params: &Parameters, states: &[Vec<NamedHostTensor>]) -> Result<(), StateError> {
        for (Group { params: members, optimizer }, state) in self.groups.iter_mut().zip(states) {
            optimizer.load_state(&subset(params, members), state)?;
        }
        Ok(())
    }
}

impl fmt::Debug for GroupedOptimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.groups.iter().map(|group| &group.params)).finish()
    }
}

fn subset(params: &Parameters, members: &[String]) -> Parameters {
    params.subset(|name| members.iter().any(|member| member == name))
}

/// Prefix of the names in the state of a group.
fn prefix(group: usize) -> String {
    format!("group{group}.")
}

/// Returns the states of the groups, without their prefixes.
fn split(state: &[NamedHostTensor], n_groups: usize) -> Result<Vec<Vec<NamedHostTensor>>, StateError> {
    let mut states: Vec<Vec<NamedHostTensor>> = (0..n_groups).map(|_| Vec::new()).collect();
    for NamedHostTensor { name, tensor } in state {
        let own = (0..n_groups).find_map(|group| Some((group, name.strip_prefix(&prefix(group))?)));
        let (group, own) = own.ok_or_else(|| StateError::Unknown { name: name.clone() })?;
        states[group].push(NamedHostTensor { name: own.to_owned(), tensor: tensor.clone() });
    }
    Ok(states)
}

/// True if the pattern is the name, where `*` stands for any text and `?` for one character.
fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.chars().next(), name.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            let rest = &pattern[1..];
            name.char_indices().any(|(at, _)| matches(rest, &name[at..])) || matches(rest, "")
        }
        (Some(expected), Some(found)) if expected == '?' || expected == found => {
            matches(&pattern[expected.len_utf8()..], &name[found.len_utf8()..])
        }
        _ => false,
    }
}

/// Groups of parameters that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum GroupError {
    /// Pattern without a parameter.
    #[error("find a parameter that matches `{pattern}`; there are {}", known.join(", "))]
    NoParameter { pattern: String, known: Vec<String> },
    /// Parameter of two groups.
    #[error("group the parameters: `{name}` is in two groups")]
    Twice { name: String },
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor, no_grad};

    use super::*;
    use crate::{Adafactor, AdafactorConfig, AdamW, AdamWConfig, Sgd, SgdConfig};

    const NAMES: [&str; 4] = ["prompts", "lora_A:q", "lora_B:q", "score.weight"];

    fn params() -> Parameters {
        let mut params = Parameters::new();
        for (i, name) in NAMES.into_iter().enumerate() {
            let numbers = Tensor::from_slice(&[1.0_f32, -2.0, 3.0, 0.5]).view([2, 2]) * (i as f64 + 1.0);
            drop(params.add(name, &numbers).expect("new"));
        }
        params
    }

    fn adamw(lr: f64, weight_decay: f64) -> Box<dyn Optimizer> {
        Box::new(AdamW::new(AdamWConfig { lr, weight_decay, ..AdamWConfig::default() }))
    }

    fn grouped(patterns: &[&[&str]], rates: &[f64]) -> Result<GroupedOptimizer, GroupError> {
        let group = |(patterns, &lr): (&&[&str], &f64)| {
            (patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<String>>(), adamw(lr, 0.0))
        };
        GroupedOptimizer::new(adamw(1e-2, 0.1), patterns.iter().zip(rates).map(group).collect(), &params())
    }

    fn set_grads(params: &Parameters, step: usize) {
        for (i, (_, param)) in params.iter().enumerate() {
            param.shallow_clone().zero_grad();
            (param.square() * (0.1 * (i + step) as f64 - 0.2)).sum(Kind::Float).backward();
        }
    }

    fn digest(params: &Parameters) -> String {
        params.digest().expect("read")
    }

    #[test]
    fn each_group_steps_like_an_optimizer_of_its_own() {
        let (all, separate) = (params(), params());
        let mut optimizer = grouped(&[&["lora_*"], &["score.weight"]], &[5e-3, 0.0]).expect("groups");
        let is_lora = |name: &str| name.starts_with("lora_");
        let (lora, prompts) = (separate.subset(is_lora), separate.subset(|name| name == "prompts"));
        let (mut of_lora, mut of_prompts) = (adamw(5e-3, 0.0), adamw(1e-2, 0.1));
        for step in 0..4 {
            let factor = 0.5 / (step + 1) as f64;
            set_grads(&all, step);
            set_grads(&separate, step);
            optimizer.step(&all, optimizer.lr() * factor).expect("a step");
            of_lora.step(&lora, 1e-2 * factor * (5e-3 / 1e-2)).expect("a step");
            of_prompts.step(&prompts, 1e-2 * factor).expect("a step");
        }
        assert_eq!(digest(&all), digest(&separate), "a rate of zero leaves `score.weight` as it is");
        assert_ne!(digest(&all), digest(&params()));
    }

    #[test]
    fn restored_state_continues_bit_for_bit() {
        let build = |params: &Parameters| {
            let adafactor = Adafactor::new(AdafactorConfig::default());
            let sgd = Sgd::new(SgdConfig { lr: 0.1, momentum: 0.9, ..SgdConfig::default() });
            let groups: Vec<(Vec<String>, Box<dyn Optimizer>)> =
                vec![(vec!["lora_?:q".to_owned()], Box::new(sgd)), (vec!["prompts".to_owned()], Box::new(adafactor))];
            GroupedOptimizer::new(adamw(1e-2, 0.1), groups, params).expect("groups")
        };
        let (params, other) = (params(), params());
        let (mut optimizer, mut restored) = (build(&params), build(&other));
        for step in 0..4 {
            let state = restored.state().expect("a state");
            restored = build(&other);
            restored.load_state(&other, &state).expect("its own state");
            assert_eq!(restored.state().expect("a state"), state);
            for (optimizer, params) in [(&mut optimizer, &params), (&mut restored, &other)] {
                set_grads(params, step);
                optimizer.step(params, optimizer.lr()).expect("a step");
            }
            assert_eq!(digest(&params), digest(&other));
        }
        let state = optimizer.state().expect("a state");
        let names: Vec<&str> = state.iter().map(|named| named.name.as_str()).collect();
        assert!(names.contains(&"group0.exp_avg.score.weight") && names.contains(&"group1.momentum_buffer.lora_A:q"));

        // The last group refuses its state, after the first ones took theirs.
        let is_step = |named: &&NamedHostTensor| named.name != "group2.step.prompts";
        let broken: Vec<NamedHostTensor> = restored.state().expect("a state").iter().filter(is_step).cloned().collect();
        set_grads(&params, 9);
        optimizer.step(&params, optimizer.lr()).expect("a step");
        let state = optimizer.state().expect("a state");
        assert!(optimizer.load_state(&params, &broken).is_err());
        assert_eq!(optimizer.state().expect("a state"), state, "a refused state changes nothing");
        let foreign = [NamedHostTensor { name: "step.prompts".to_owned(), tensor: state[0].tensor.clone() }];
        assert!(matches!(optimizer.load_state(&params, &foreign), Err(StateError::Unknown { .. })));
    }

    #[test]
    fn rate_is_that_of_the_other_parameters_or_the_largest() {
        assert_eq!(grouped(&[&["lora_*"]], &[5e-3]).expect("groups").lr(), 1e-2);
        let frozen = |rate: f64| {
            let groups =
                vec![(vec!["lora_*".to_owned()], adamw(rate, 0.0)), (vec!["prompts".to_owned()], adamw(1e-4, 0.0))];
            GroupedOptimizer::new(adamw(0.0, 0.0), groups, &params()).expect("groups")
        };
        assert_eq!((frozen(5e-3).lr(), frozen(0.0).lr()), (5e-3, 1e-4));
        let all = params();
        set_grads(&all, 5);
        let mut optimizer = frozen(5e-3);
        optimizer.step(&all, optimizer.lr()).expect("a step");
        let moved = |name: &str| no_grad(|| all.get(name) != params().get(name));
        assert_eq!(NAMES.map(moved), [true, true, true, false]);
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("prompts", "prompts", true),
            ("prompt", "prompts", false),
            ("*", "prompts", true),
            ("*", "", true),
            ("lora_*", "lora_A:self_attn.q_proj", true),
            ("*q_proj", "lora_A:self_attn.q_proj", true),
            ("lora_?:*.q_proj", "lora_A:self_attn.q_proj", true),
            ("lora_?:*.v_proj", "lora_A:self_attn.q_proj", false),
            ("*a*a", "banana", true),
            ("?", "ä", true),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} and {name}");
        }
    }

    #[test]
    fn patterns_without_parameters_are_error() {
        let error = grouped(&[&["prompts", "lora"]], &[1e-3]).expect_err("no parameter").to_string();
        let expected = "find a parameter that matches `lora`; there are prompts, lora_A:q, lora_B:q, score.weight";
        assert_eq!(error, expected);
        let error = grouped(&[&["lora_*"], &["*:q"]], &[1e-3, 1e-2]).expect_err("twice");
        assert_eq!(error, GroupError::Twice { name: "lora_A:q".to_owned() });
    }
}
