use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sepal_blocks::{
    Batch, BlockStack, ForwardError, Injected, InputGrad, Keep, KeptPrefix, Output, Prefix, Tape, WantGrads,
};
use sepal_core::{
    DEEP_PROMPTS, DType, HostTensor, ModelConfig, NamedHostTensor, PREFIX_KEYS_VALUES, Span, Want, in_one_line,
};
use sepal_nn::host::{share_from_host, share_to_host, to_host};
use sepal_wire::codec::{self, GradWant, Grads, WireBatch};
use sepal_wire::{Failure, FailureCode};
use tch::Tensor;

use crate::rpc::lock;
use crate::tapes::{TapeId, TapeStore};

/// What a client has the server inject, checked against its span.
#[derive(Debug, Default)]
pub(crate) struct Tunables {
    /// `[span.len(), prefix_len, hidden]`.
    deep_prompts: Option<HostTensor>,
    /// `[span.len(), prefix_len, 2 * kv_size]`.
    keys_values: Option<HostTensor>,
    /// Keys and values of the prefix, once a forward without a tape has computed them.
    prefix: Mutex<Option<KeptPrefix>>,
}

impl Tunables {
    pub(crate) fn check(tunables: Vec<NamedHostTensor>, span: Span, config: &ModelConfig) -> Result<Self, Failure> {
        let mut checked = Self::default();
        for NamedHostTensor { name, tensor } in tunables {
            let (place, width, meaning) = match name.as_str() {
                DEEP_PROMPTS => (&mut checked.deep_prompts, config.hidden, "hidden"),
                PREFIX_KEYS_VALUES => (&mut checked.keys_values, 2 * config.kv_size(), "2 * kv_size"),
                _ => {
                    return Err(invalid(format!(
                        "unknown tunable `{name}`; this server knows {DEEP_PROMPTS} and {PREFIX_KEYS_VALUES}"
                    )));
                }
            };
            let shape = tensor.shape();
            let &[n_blocks, _, size] = shape else {
                return Err(invalid(format!("{name} has shape {shape:?}, expected [n_blocks, prefix_len, {meaning}]")));
            };
            if n_blocks != span.len() || size != width {
                return Err(invalid(format!(
                    "{name} has shape {shape:?}, but blocks {span} need [{}, prefix_len, {width}]",
                    span.len()
                )));
            }
            *place = Some(tensor);
        }
        Ok(checked)
    }
}

/// One call's work.
#[derive(Debug)]
pub(crate) enum Job {
    Forward(Forward),
    /// Forward, then backward from this gradient.
    Stateless(Forward, HostTensor, GradWant),
    Backward(Backward),
}

#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) span: Span,
    pub(crate) tunables: Arc<Tunables>,
    pub(crate) batch: WireBatch,
    pub(crate) want: Want,
    pub(crate) keep: bool,
    pub(crate) dtype: DType,
}

#[derive(Debug)]
pub(crate) struct Backward {
    pub(crate) tapes: Arc<Mutex<TapeStore>>,
    pub(crate) id: TapeId,
    /// What the tape is of.
    pub(crate) of: TapeOf,
    pub(crate) grad_output: HostTensor,
    pub(crate) want: GradWant,
}

/// What a tape is of, known without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TapeOf {
    pub(crate) span: Span,
    pub(crate) want: Want,
    pub(crate) positions: usize,
}

/// What a job comes to.
#[derive(Debug)]
pub(crate) enum Done {
    Forward {
        output: HostTensor,
        kept: Option<Kept>,
        /// The first block whose hidden states are not finite.
        not_finite: Option<usize>,
    },
    Grads(Grads),
}

/// A tape, and what it takes.
#[derive(Debug)]
pub(crate) struct Kept {
    /// None in tests of the store.
    pub(crate) tape: Option<Tape>,
    /// Memory held.
    pub(crate) bytes: u64,
}

impl Job {
    /// Positions that the blocks see, and those of a prefix that was kept, which attention sees.
    pub(crate) fn positions(&self) -> usize {
        match self {
            Job::Forward(Forward { batch, .. }) | Job::Stateless(Forward { batch, .. }, ..) => {
                batch.prefix_len + batch.rows.n_tokens()
            }
            Job::Backward(backward) => backward.of.positions,
        }
    }

    /// Positions times blocks times passes.
    pub(crate) fn token_blocks(&self) -> usize {
        match self {
            Job::Forward(forward) => self.positions() * forward.span.len(),
            Job::Stateless(forward, ..) => 2 * self.positions() * forward.span.len(),
            Job::Backward(backward) => self.positions() * backward.of.span.len(),
        }
    }

    /// Whether both can go through the blocks together.
    pub(crate) fn goes_with(&self, other: &Job) -> bool {
        match (self, other) {
            (Job::Forward(a), Job::Forward(b)) => (a.span, a.want, a.keep) == (b.span, b.want, b.keep),
            (Job::Backward(a), Job::Backward(b)) => {
                (a.of.span, a.of.want, a.want.input, a.want.tunables)
                    == (b.of.span, b.of.want, b.want.input, b.want.tunables)
            }
            _ => false,
        }
    }
}

/// Runs jobs that go together; each has an outcome of its own, in order.
pub(crate) fn run(stack: &BlockStack, jobs: Vec<Job>) -> Vec<Result<Done, Failure>> {
    let (mut forwards, mut backwards, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for job in jobs {
        match job {
            Job::Forward(forward) => forwards.push(forward),
            Job::Backward(backward) => backwards.push(backward),
            Job::Stateless(forward, grad_output, want) => alone.push(stateless(stack, forward, &grad_output, want)),
        }
    }
    alone.extend(run_forwards(stack, &forwards));
    alone.extend(run_backwards(stack, backwards));
    alone
}

/// Numbers of one forward, as tensors.
struct Inputs<'a> {
    hidden: Tensor,
    deep_prompts: Option<Tensor>,
    keys_values: Option<Tensor>,
    prefix: MutexGuard<'a, Option<KeptPrefix>>,
}

impl<'a> Inputs<'a> {
    /// Blocks write into none of it, so the memory of what came is used as it is.
    fn new(forward: &'a Forward) -> Result<Self, Failure> {
        let tensor = |host: &HostTensor| share_from_host(host).map_err(|error| failed(&error));
        let prefix = forward.tunables.prefix.lock().unwrap_or_else(PoisonError::into_inner);
        if forward.batch.prefix_kept && prefix.as_ref().is_none_or(|kept| kept.len() != forward.batch.prefix_len) {
            return Err(invalid("a batch without its prefix, which was not kept here"));
        }
        // Checked here, so that it fails this call alone and not those that are run with it.
        let of_prefix = |name: &str, tunable: &Option<HostTensor>| {
            let prefix_len = forward.batch.prefix_len;
            match tunable.as_ref().filter(|_| prefix_len > 0) {
                Some(found) if found.shape()[1] != prefix_len => {
                    let found = found.shape();
                    Err(invalid(format!("{name} have shape {found:?}, but the prefix has {prefix_len} positions")))
                }
                fitting => fitting.map(tensor).transpose(),
            }
        };
        let deep_prompts = of_prefix(DEEP_PROMPTS, &forward.tunables.deep_prompts)?;
        let keys_values = of_prefix(PREFIX_KEYS_VALUES, &forward.tunables.keys_values)?;
        Ok(Self { hidden: tensor(&forward.batch.hidden)?, deep_prompts, keys_values, prefix })
    }

    fn batch<'b>(&'b self, forward: &'b Forward) -> Batch<'b> {
        let WireBatch { prefix_len, prefix_kept, rows, .. } = &forward.batch;
        let prefix = match &*self.prefix {
            Some(kept) if *prefix_kept => Prefix::Kept(kept),
            _ => Prefix::Computed(*prefix_len),
        };
        let injected = Injected { deep_prompts: self.deep_prompts.as_ref(), keys_values: self.keys_values.as_ref() };
        Batch { hidden: &self.hidden, prefix, rows, injected }
    }
}

fn run_forwards(stack: &BlockStack, jobs: &[Forward]) -> Vec<Result<Done, Failure>> {
    let Some(first) = jobs.first() else { return Vec::new() };
    let mut inputs: Vec<Result<Inputs<'_>, Failure>> = jobs.iter().map(Inputs::new).collect();
    let keep = if first.keep { Keep::Tape } else { Keep::Prefix };
    let batches: Vec<Batch<'_>> =
        jobs.iter().zip(&inputs).filter_map(|(job, input)| Some(input.as_ref().ok()?.batch(job))).collect();
    let outputs = stack.run(first.span, &batches, first.want, keep).map_err(|error| refused(&error));
    let mut outputs = match outputs {
        Ok(outputs) => Ok(outputs.into_iter()),
        Err(failure) => Err(failure),
    };
    let is_shared = jobs.len() > 1;
    let done = jobs.iter().zip(&mut inputs).map(|(job, input)| {
        let input = input.as_mut().map_err(|failure| failure.clone())?;
        let outputs = outputs.as_mut().map_err(|failure| failure.clone())?;
        let Output { hidden, tape, prefix, not_finite } = outputs.next().ok_or_else(|| invalid("no output"))?;
        if let Some(prefix) = prefix {
            *input.prefix = Some(prefix);
        }
        let kept = tape.map(|tape| Kept { bytes: tape.bytes() as u64, tape: Some(tape) });
        Ok(Done::Forward { output: host(&hidden, job.dtype, is_shared)?, kept, not_finite })
    });
    done.collect()
}

fn run_backwards(stack: &BlockStack, jobs: Vec<Backward>) -> Vec<Result<Done, Failure>> {
    let (mut wants, mut tapes) = (Vec::new(), Vec::new());
    for job in jobs {
        let Backward { id, grad_output, want, .. } = job;
        let kept = lock(&job.tapes).take(id).and_then(|kept| kept.tape);
        let gone = || Failure::new(FailureCode::TapeExpired, "the tape gave way to others");
        let given = kept.ok_or_else(gone).and_then(|tape| gradient(&grad_output, &tape).map(|grad| (tape, grad)));
        wants.push(given.map(|given| {
            tapes.push(given);
            want
        }));
    }
    let Some(&want) = wants.iter().flatten().next() else {
        return wants.into_iter().map(|want| want.map(|_| Done::Grads(Grads::default()))).collect();
    };
    let is_shared = tapes.len() > 1;
    let mut grads = back(stack, tapes, want).map(Vec::into_iter);
    let done = wants.into_iter().map(|want| {
        let (want, grads) = (want?, grads.as_mut().map_err(|failure| failure.clone())?);
        grads_on_wire(grads.next().ok_or_else(|| invalid("no gradient"))?, want, is_shared).map(Done::Grads)
    });
    done.collect()
}

fn stateless(stack: &BlockStack, forward: Forward, grad_output: &HostTensor, want: GradWant) -> Result<Done, Failure> {
    let kept = match run_forwards(stack, &[forward]).pop() {
        Some(Ok(Done::Forward { kept: Some(kept), .. })) => kept,
        Some(Err(failure)) => return Err(failure),
        _ => return Err(Failure::new(FailureCode::ComputeFailed, "no tape was kept")),
    };
    let tape = kept.tape.ok_or_else(|| Failure::new(FailureCode::ComputeFailed, "no tape was kept"))?;
    let grad_output = gradient(grad_output, &tape)?;
    let grads = back(stack, vec![(tape, grad_output)], want)?;
    grads
        .into_iter()
        .next()
        .ok_or_else(|| invalid("no gradient"))
        .and_then(|grads| grads_on_wire(grads, want, false))
        .map(Done::Grads)
}

/// The gradient of a tape's output; checked here, so that a wrong one fails its own call alone.
fn gradient(grad_output: &HostTensor, tape: &Tape) -> Result<Tensor, Failure> {
    let (expected, found) = (tape.output_shape(), grad_output.shape());
    if found != expected {
        return Err(invalid(format!("the gradient has shape {found:?}, but the output had {expected:?}")));
    }
    share_from_host(grad_output).map_err(|error| failed(&error))
}

fn back(stack: &BlockStack, tapes: Vec<(Tape, Tensor)>, want: GradWant) -> Result<Vec<sepal_blocks::Grads>, Failure> {
    let input = match want.input {
        codec::InputGrad::All => InputGrad::All,
        codec::InputGrad::Prefix | codec::InputGrad::None => InputGrad::Prefix,
    };
    stack.backward(tapes, WantGrads { input, injected: want.tunables }).map_err(|error| refused(&error))
}

fn grads_on_wire(grads: sepal_blocks::Grads, want: GradWant, is_shared: bool) -> Result<Grads, Failure> {
    let input = match want.input {
        codec::InputGrad::None => None,
        // The prefix is a small part of all positions.
        input => Some(host(&grads.input, want.input_dtype(), is_shared || input == codec::InputGrad::Prefix)?),
    };
    let injected = [(DEEP_PROMPTS, grads.deep_prompts), (PREFIX_KEYS_VALUES, grads.keys_values)];
    let named = |(name, grad): (&str, Option<Tensor>)| {
        let tensor = host(&grad?, want.tunables_dtype(), is_shared);
        Some(tensor.map(|tensor| NamedHostTensor { name: name.to_owned(), tensor }))
    };
    let tunables = injected.into_iter().filter_map(named).collect::<Result<_, _>>()?;
    Ok(Grads { input, tunables, not_finite: grads.not_finite })
}

/// A tensor's numbers as they cross the wire: of an output or a gradient, which nobody writes into any more. A part of a
/// tensor that others share is copied: an answer that waits for a slow reader would hold all of it.
fn host(tensor: &Tensor, dtype: DType, is_part: bool) -> Result<HostTensor, Failure> {
    let host = if is_part { to_host(tensor, dtype) } else { share_to_host(tensor, dtype) };
    host.map_err(|error| failed(&error))
}

pub(crate) fn invalid(message: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::InvalidRequest, message)
}

fn refused(error: &ForwardError) -> Failure {
    match error {
        ForwardError::Torch { .. } => failed(error),
        _ => invalid(in_one_line(error)),
    }
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(FailureCode::ComputeFailed, in_one_line(error))
}
