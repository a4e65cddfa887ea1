//! The usual step with other tuning modes in the place of deep prompts, on the same rows.

use std::cell::Cell as Value;

use sepal_blocks::BlockStack;
use sepal_checkpoint::linear_sites;
use sepal_core::{ModelConfig, Ragged, SiteRole, TunableName, Want};
use sepal_nn::{Tunable, init};
use tch::{Kind, Tensor};

use crate::model::{Random, smollm2};
use crate::processes::Checkpoint;
use crate::report::{Cell, Section, Target};
use crate::step::{Embedded, Inputs, Workload, moved};
use crate::turns::Turns;

const COLUMNS: &[&str] =
    &["adapter", "parameters", "direct s", "to deep prompts", "embedded s", "MB moved", "bytes to those needed"];

pub(crate) fn measure(rounds: usize, _: &Checkpoint) -> Section {
    let title = "Adapters: the usual step with each tuning mode, 32 sentences, SmolLM2-135M's shape; needed are the \
                 adapter and its gradient\nonce, and the hidden states of text and last tokens with their gradients";
    let mut section = Section::new(title, COLUMNS);
    let config = smollm2();
    let random = Random::new(config.clone());
    let (stack, embedded) = (random.all_blocks(), Embedded::new(&random, &config));
    let deep = Inputs::new(&config, &Workload::sentences(32));
    let query_value: &[SiteRole] = &[SiteRole::Query, SiteRole::Value];
    let all: &[SiteRole] = &[
        SiteRole::Query,
        SiteRole::Key,
        SiteRole::Value,
        SiteRole::AttentionOutput,
        SiteRole::MlpInput,
        SiteRole::MlpOutput,
    ];
    for (name, rank, roles, limits) in
        [("LoRA of queries and values", 8, query_value, Some((1.15, 1.1))), ("LoRA of all layers", 8, all, None)]
    {
        let lora = Lora::new(&config, rank, roles);
        let bytes = Value::new(0);
        let through_server = || {
            let before = moved(&embedded.remote);
            lora.remote(&embedded);
            bytes.set(moved(&embedded.remote) - before);
        };
        let turns = Turns::all(rounds);
        let [prompts, direct, remote] =
            turns.medians([&|| deep.direct(&stack), &|| lora.direct(&stack), &through_server]);
        let (ratio, traffic) = (direct / prompts, bytes.get() as f64 / lora.needed_bytes() as f64);
        section.row([
            Cell::Text(name.to_owned()),
            Cell::count(lora.numel()),
            Cell::Number(direct, 3),
            Cell::Number(ratio, 3),
            Cell::Number(remote, 3),
            Cell::Number(bytes.get() as f64 / 1e6, 2),
            Cell::Number(traffic, 3),
        ]);
        if let Some((time, transfer)) = limits {
            section.figure(format!("step of {name}, to the step of 16 deep prompts"), ratio, Target::AtMost(time));
            section.figure(format!("bytes of {name}, to those needed"), traffic, Target::AtMost(transfer));
        }
    }
    section
}

/// Low-rank additions to the layers of some roles, and the usual sentences.
struct Lora {
    tunables: Vec<Tunable>,
    rows: Ragged,
    text: Tensor, // [n_tokens, hidden]
}

impl Lora {
    fn new(config: &ModelConfig, rank: usize, roles: &[SiteRole]) -> Self {
        let rows = Ragged::from_lengths(Workload::sentences(32).lengths).expect("rows");
        let random = |shape: &[usize]| {
            let shape: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
            init::normal(&shape, 0.05, &mut init::rng(3, "adapters")).expect("numbers").set_requires_grad(true)
        };
        let sites = linear_sites(config).into_iter().filter(|site| roles.contains(&site.role));
        let tunables = sites.flat_map(|site| {
            let a = random(&[config.n_blocks, rank, site.inputs]);
            let b = random(&[config.n_blocks, site.outputs, rank]);
            let name = |name: TunableName| name.to_string();
            [
                Tunable::new(name(TunableName::LoraA(site.name.clone())), a),
                Tunable::new(name(TunableName::LoraB(site.name)), b),
            ]
        });
        Self { tunables: tunables.collect(), text: random(&[rows.n_tokens(), config.hidden]).detach(), rows }
    }

    fn direct(&self, stack: &BlockStack) {
        let last = stack.forward(&self.text, 0, &self.rows, &self.tunables, Want::LastOfRows).expect("a forward");
        last.sum(Kind::Float).backward();
    }

    fn remote(&self, embedded: &Embedded) {
        let tunables = self.tunables.iter().map(Tunable::shallow_clone).collect();
        let tuned = embedded.remote.tune(tunables).expect("tuned");
        let last = tuned.forward(None, &self.text, &self.rows, Want::LastOfRows).expect("a forward");
        last.sum(Kind::Float).backward();
    }

    fn numel(&self) -> usize {
        self.tunables.iter().map(|tunable| tunable.tensor.numel()).sum()
    }

    /// The adapter and its gradient, the hidden states of the text, and the last tokens' with their gradient.
    fn needed_bytes(&self) -> usize {
        let hidden = self.text.size()[1] as usize;
        size_of::<f32>() * (2 * self.numel() + hidden * (self.rows.n_tokens() + 2 * self.rows.len()))
    }
}
