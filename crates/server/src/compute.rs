//! Computation of jobs on the compute thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sepal_blocks::{
    Batch, BatchGrads, BatchOutput, BlockStack, ForwardError, GradOptions, InjectedTensors, InputGrad, Prefix,
    PrefixCache, SaveMode, Tape,
};
use sepal_core::{
    DEEP_PROMPTS, DType, HostTensor, ModelConfig, NamedHostTensor, PREFIX_KEYS_VALUES, Span, Want, in_one_line,
};
use sepal_nn::host::{share_from_host, share_to_host, to_host};
use sepal_wire::codec::{self, GradWant, Grads, WireBatch};
use sepal_wire::{Failure, FailureCode};
use tch::Tensor;

use crate::tapes::{StoredTape, TapeId, TapeStore, lock};

/// Tensors that a client injects, with shapes that fit the span.
#[derive(Default)]
pub(crate) struct Tunables {
    /// `[span.len(), prefix_len, hidden]`.
    deep_prompts: Option<HostTensor>,
    /// `[span.len(), prefix_len, 2 * kv_size]`.
    keys_values: Option<HostTensor>,
    /// Prefix cache, filled by a forward pass without a tape.
    prefix: Mutex<Option<PrefixCache>>,
}

impl Tunables {
    pub(crate) fn check(tunables: Vec<NamedHostTensor>, span: Span, config: &ModelConfig) -> Result<Self, Failure> {
        let mut checked = Self::default();
        for NamedHostTensor { name, tensor } in tunables {
            let (target, width, meaning) = match name.as_str() {
                DEEP_PROMPTS => (&mut checked.deep_prompts, config.hidden, "hidden"),
                PREFIX_KEYS_VALUES => (&mut checked.keys_values, 2 * config.kv_size(), "2 * kv_size"),
                _ => {
                    let known = format!("{DEEP_PROMPTS} and {PREFIX_KEYS_VALUES}");
                    return Err(invalid(format!("unknown tunable `{name}`; this server knows {known}")));
                }
            };
            let shape = tensor.shape();
            let &[n_blocks, _, size] = shape else {
                return Err(invalid(format!("{name} has shape {shape:?}, expected [n_blocks, prefix_len, {meaning}]")));
            };
            if n_blocks != span.len() || size != width {
                let needed = format!("[{}, prefix_len, {width}]", span.len());
                return Err(invalid(format!("{name} has shape {shape:?}, but blocks {span} need {needed}")));
            }
            *target = Some(tensor);
        }
        Ok(checked)
    }
}

pub(crate) enum Job {
    Forward(ForwardJob),
    Backward(BackwardJob),
    Stateless(StatelessJob),
}

pub(crate) struct ForwardJob {
    pub(crate) span: Span,
    pub(crate) tunables: Arc<Tunables>,
    pub(crate) batch: WireBatch,
    pub(crate) want: Want,
    pub(crate) keep_tape: bool,
    pub(crate) dtype: DType,
}

pub(crate) struct BackwardJob {
    pub(crate) tapes: Arc<Mutex<TapeStore>>,
    pub(crate) id: TapeId,
    pub(crate) extent: TapeExtent,
    pub(crate) grad_output: HostTensor,
    pub(crate) grad_want: GradWant,
}

/// Forward pass, followed by the backward pass from this gradient.
pub(crate) struct StatelessJob {
    pub(crate) forward: ForwardJob,
    pub(crate) grad_output: HostTensor,
    pub(crate) grad_want: GradWant,
}

/// Extent of a tape, known even after its eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TapeExtent {
    pub(crate) span: Span,
    pub(crate) want: Want,
    pub(crate) positions: usize,
}

/// Result of a job; `not_finite` is the first block with non-finite hidden states.
#[derive(Debug)]
pub(crate) enum JobOutput {
    Forward { hidden: HostTensor, tape: Option<StoredTape>, not_finite: Option<usize> },
    Grads(Grads),
}

impl JobOutput {
    pub(crate) fn into_grads(self) -> Result<Grads, Failure> {
        match self {
            Self::Grads(grads) => Ok(grads),
            Self::Forward { .. } => Err(invalid("a backward pass without gradients")),
        }
    }
}

impl Job {
    /// Number of positions, including those of a cached prefix, which attention reads.
    pub(crate) fn positions(&self) -> usize {
        match self {
            Job::Forward(ForwardJob { batch, .. })
            | Job::Stateless(StatelessJob { forward: ForwardJob { batch, .. }, .. }) => {
                batch.prefix_len + batch.rows.n_tokens()
            }
            Job::Backward(backward) => backward.extent.positions,
        }
    }

    /// Positions times blocks times passes.
    pub(crate) fn token_blocks(&self) -> usize {
        let (span, passes) = match self {
            Job::Forward(forward) => (forward.span, 1),
            Job::Backward(backward) => (backward.extent.span, 1),
            Job::Stateless(stateless) => (stateless.forward.span, 2),
        };
        passes * self.positions() * span.len()
    }

    pub(crate) fn can_batch_with(&self, other: &Job) -> bool {
        match (self, other) {
            (Job::Forward(a), Job::Forward(b)) => (a.span, a.want, a.keep_tape) == (b.span, b.want, b.keep_tape),
            (Job::Backward(a), Job::Backward(b)) => {
                (a.extent.span, a.extent.want, a.grad_want.input, a.grad_want.tunables)
                    == (b.extent.span, b.extent.want, b.grad_want.input, b.grad_want.tunables)
            }
            _ => false,
        }
    }
}

/// Runs a batch of jobs and returns the result of each, in order.
pub(crate) fn run(stack: &BlockStack, jobs: Vec<Job>) -> Vec<Result<JobOutput, Failure>> {
    let (mut forwards, mut backwards, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for job in jobs {
        match job {
            Job::Forward(forward) => forwards.push(forward),
            Job::Backward(backward) => backwards.push(backward),
            Job::Stateless(stateless) => results.push(run_stateless(stack, stateless)),
        }
    }
    results.extend(run_forwards(stack, &forwards));
    results.extend(run_backwards(stack, backwards));
    results
}

struct ForwardInputs<'a> {
    hidden: Tensor,
    deep_prompts: Option<Tensor>,
    keys_values: Option<Tensor>,
    prefix: MutexGuard<'a, Option<PrefixCache>>,
}

impl<'a> ForwardInputs<'a> {
    /// Shares the memory of the received tensors, which blocks never modify.
    fn new(job: &'a ForwardJob) -> Result<Self, Failure> {
        let tensor = |host: &HostTensor| share_from_host(host).map_err(|error| compute_failed(&error));
        let prefix_len = job.batch.prefix_len;
        let prefix = job.tunables.prefix.lock().unwrap_or_else(PoisonError::into_inner);
        if job.batch.prefix_cached && prefix.as_ref().is_none_or(|cached| cached.len() != prefix_len) {
            return Err(invalid("a batch without its prefix, which is not cached"));
        }
        // Checked here, so that an error fails this call only and not the batch.
        let prefix_tensor = |name: &str, tunable: &Option<HostTensor>| match tunable.as_ref().filter(|_| prefix_len > 0)
        {
            Some(found) if found.shape()[1] != prefix_len => {
                let found = found.shape();
                Err(invalid(format!("{name} have shape {found:?}, but the prefix has {prefix_len} positions")))
            }
            fitting => fitting.map(tensor).transpose(),
        };
        let deep_prompts = prefix_tensor(DEEP_PROMPTS, &job.tunables.deep_prompts)?;
        let keys_values = prefix_tensor(PREFIX_KEYS_VALUES, &job.tunables.keys_values)?;
        Ok(Self { hidden: tensor(&job.batch.hidden)?, deep_prompts, keys_values, prefix })
    }

    fn batch<'b>(&'b self, job: &'b ForwardJob) -> Batch<'b> {
        let WireBatch { prefix_len, prefix_cached, rows, .. } = &job.batch;
        let prefix = match &*self.prefix {
            Some(cached) if *prefix_cached => Prefix::Cached(cached),
            _ => Prefix::Computed(*prefix_len),
        };
        let injected =
            InjectedTensors { deep_prompts: self.deep_prompts.as_ref(), keys_values: self.keys_values.as_ref() };
        Batch { hidden: &self.hidden, prefix, rows, injected }
    }
}

fn run_forwards(stack: &BlockStack, jobs: &[ForwardJob]) -> Vec<Result<JobOutput, Failure>> {
    let Some(first) = jobs.first() else { return Vec::new() };
    let mut inputs: Vec<Result<ForwardInputs<'_>, Failure>> = jobs.iter().map(ForwardInputs::new).collect();
    let keep = if first.keep_tape { SaveMode::Tape } else { SaveMode::PrefixCache };
    let batches: Vec<Batch<'_>> =
        jobs.iter().zip(&inputs).filter_map(|(job, input)| Some(input.as_ref().ok()?.batch(job))).collect();
    let outputs = stack.forward_batches(first.span, &batches, first.want, keep);
    let mut outputs = outputs.map(Vec::into_iter).map_err(|error| forward_failed(&error));
    let is_shared = jobs.len() > 1;
    let results = jobs.iter().zip(&mut inputs).map(|(job, input)| {
        let input = input.as_mut().map_err(|failure| failure.clone())?;
        let outputs = outputs.as_mut().map_err(|failure| failure.clone())?;
        let BatchOutput { hidden, tape, prefix_cache: prefix, non_finite_block: not_finite } =
            outputs.next().ok_or_else(|| invalid("no output"))?;
        if let Some(prefix) = prefix {
            *input.prefix = Some(prefix);
        }
        let tape = tape.map(|tape| StoredTape { bytes: tape.bytes() as u64, tape: Some(tape) });
        Ok(JobOutput::Forward { hidden: to_wire(&hidden, job.dtype, is_shared)?, tape, not_finite })
    });
    results.collect()
}

fn run_backwards(stack: &BlockStack, jobs: Vec<BackwardJob>) -> Vec<Result<JobOutput, Failure>> {
    let (mut wants, mut tapes) = (Vec::new(), Vec::new());
    for job in jobs {
        let BackwardJob { id, grad_output, grad_want, .. } = job;
        let tape = lock(&job.tapes).take(id).and_then(|stored| stored.tape);
        let expired = || Failure::new(FailureCode::TapeExpired, "the tape was evicted");
        let input =
            tape.ok_or_else(expired).and_then(|tape| output_gradient(&grad_output, &tape).map(|grad| (tape, grad)));
        wants.push(input.map(|input| {
            tapes.push(input);
            grad_want
        }));
    }
    let Some(&want) = wants.iter().flatten().next() else {
        return wants.into_iter().map(|want| want.map(|_| JobOutput::Grads(Grads::default()))).collect();
    };
    let is_shared = tapes.len() > 1;
    let mut grads = backward(stack, tapes, want).map(Vec::into_iter);
    let results = wants.into_iter().map(|want| {
        let (want, grads) = (want?, grads.as_mut().map_err(|failure| failure.clone())?);
        grads_to_wire(grads.next().ok_or_else(|| invalid("no gradient"))?, want, is_shared).map(JobOutput::Grads)
    });
    results.collect()
}

fn run_stateless(stack: &BlockStack, job: StatelessJob) -> Result<JobOutput, Failure> {
    let StatelessJob { forward, grad_output, grad_want } = job;
    let stored = match run_forwards(stack, &[forward]).pop() {
        Some(Err(failure)) => return Err(failure),
        Some(Ok(JobOutput::Forward { tape, .. })) => tape,
        _ => None,
    };
    let tape = stored.and_then(|stored| stored.tape);
    let tape = tape.ok_or_else(|| Failure::new(FailureCode::ComputeFailed, "the forward pass left no tape"))?;
    let grad_output = output_gradient(&grad_output, &tape)?;
    let grads = backward(stack, vec![(tape, grad_output)], grad_want)?.pop().ok_or_else(|| invalid("no gradient"))?;
    grads_to_wire(grads, grad_want, false).map(JobOutput::Grads)
}

/// Converts the gradient of a tape's output. A wrong shape is found here, so that it fails its own call only.
fn output_gradient(grad_output: &HostTensor, tape: &Tape) -> Result<Tensor, Failure> {
    let (expected, found) = (tape.output_shape(), grad_output.shape());
    if found != expected {
        return Err(invalid(format!("the gradient has shape {found:?}, but the output had {expected:?}")));
    }
    share_from_host(grad_output).map_err(|error| compute_failed(&error))
}

fn backward(stack: &BlockStack, tapes: Vec<(Tape, Tensor)>, want: GradWant) -> Result<Vec<BatchGrads>, Failure> {
    let input = match want.input {
        codec::InputGrad::All => InputGrad::All,
        codec::InputGrad::Prefix | codec::InputGrad::None => InputGrad::Prefix,
    };
    let options = GradOptions { input, injected: want.tunables };
    stack.backward_batches(tapes, options).map_err(|error| forward_failed(&error))
}

fn grads_to_wire(grads: BatchGrads, want: GradWant, is_shared: bool) -> Result<Grads, Failure> {
    let input = match want.input {
        codec::InputGrad::None => None,
        // The prefix is a small part of all positions, so it is copied.
        input => Some(to_wire(&grads.input, want.input_dtype(), is_shared || input == codec::InputGrad::Prefix)?),
    };
    let injected = [(DEEP_PROMPTS, grads.deep_prompts), (PREFIX_KEYS_VALUES, grads.keys_values)];
    let named = |(name, grad): (&str, Option<Tensor>)| {
        let tensor = to_wire(&grad?, want.tunables_dtype(), is_shared);
        Some(tensor.map(|tensor| NamedHostTensor { name: name.to_owned(), tensor }))
    };
    let tunables = injected.into_iter().filter_map(named).collect::<Result<_, _>>()?;
    Ok(Grads { input, tunables, not_finite: grads.non_finite_block })
}

/// Converts an output or a gradient, which is never modified again. A part of a shared tensor is copied, because an answer
/// that waits for a slow reader would keep the whole tensor alive.
fn to_wire(tensor: &Tensor, dtype: DType, is_part: bool) -> Result<HostTensor, Failure> {
    let host = if is_part { to_host(tensor, dtype) } else { share_to_host(tensor, dtype) };
    host.map_err(|error| compute_failed(&error))
}

pub(crate) fn invalid(message: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::InvalidRequest, message)
}

fn forward_failed(error: &ForwardError) -> Failure {
    match error {
        ForwardError::Torch { .. } => compute_failed(error),
        _ => invalid(in_one_line(error)),
    }
}

fn compute_failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(FailureCode::ComputeFailed, in_one_line(error))
}
