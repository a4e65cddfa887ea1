//! Computation of jobs on the compute thread.

use std::sync::{Arc, Mutex};

use sepal_blocks::{BatchGrads, Cancel, ForwardError, GradOptions, InputGrad, SaveMode, check_tunables};
use sepal_core::{DType, HostTensor, HostTunable, ModelConfig, Span, Want, in_one_line};
use sepal_nn::Tunable;
use sepal_nn::host::{share_from_host, share_to_host, to_host};
use sepal_wire::codec::{self, GradWant, Grads, WireBatch};
use sepal_wire::{Failure, FailureCode};
use tch::Tensor;

use crate::ledger::{ClientQuota, Kind, Reservation};
use crate::lock::lock;
use crate::stacks::{DeviceStacks, StackBatch, StackInjections, StackOutput, StackPrefix, StackPrefixCache, StackTape};
use crate::tapes::{NewTape, TapeId, TapeStore};

/// Positions that a job is charged for at least. A call of one position takes as long as 66 positions of a large call do, with a
/// tiny model on one core.
const MIN_COST_POSITIONS: usize = 64;

/// Trainable tensors of a client for one step, with names and shapes that fit the blocks.
#[derive(Debug)]
pub(crate) struct Tunables {
    tunables: Vec<HostTunable>,
    /// Adapters of the blocks, made by the first call.
    injected: Mutex<Option<StackInjections>>,
    /// Prefix cache with its bytes in the ledger, filled by a forward pass without a tape.
    prefix: Mutex<Option<(StackPrefixCache, Reservation)>>,
    quota: ClientQuota,
    /// Shared with the tapes, which hold the adapters even after the step has ended.
    reserved: Arc<Reservation>,
}

impl Tunables {
    /// Checks tunables and reserves their bytes: as received, in fp32, and converted to adapters.
    pub(crate) fn check(
        tunables: Vec<HostTunable>,
        span: Span,
        config: &ModelConfig,
        quota: &ClientQuota,
    ) -> Result<Self, Failure> {
        let shapes = tunables.iter().map(|tunable| (&*tunable.name, tunable.first_block, tunable.tensor.shape()));
        check_tunables(config, shapes).map_err(|error| invalid(in_one_line(&error)))?;
        let outside = |tunable: &&HostTunable| {
            tunable.first_block < span.start() || tunable.first_block + tunable.tensor.shape()[0] > span.end()
        };
        if let Some(HostTunable { name, first_block, tensor }) = tunables.iter().find(outside) {
            let end = first_block + tensor.shape()[0];
            return Err(invalid(format!("`{name}` is for blocks {first_block}:{end}, but the session has {span}")));
        }
        let bytes = tunables.iter().map(|tunable| memory(&tunable.tensor)).sum();
        let reserved = Arc::new(quota.reserve(Kind::Tunables, bytes)?);
        let (injected, prefix) = Default::default();
        Ok(Self { tunables, injected, prefix, quota: quota.clone(), reserved })
    }

    /// Adapters of the blocks of `span`.
    fn injected(&self, stacks: &DeviceStacks, span: Span) -> Result<StackInjections, Failure> {
        let mut injected = lock(&self.injected);
        if let Some(injected) = &*injected {
            return Ok(injected.share());
        }
        let tunable = |HostTunable { name, first_block, tensor }: &HostTunable| {
            let tensor = share_from_host(tensor).map_err(|error| compute_failed(&error))?;
            Ok(Tunable { name: name.clone(), first_block: *first_block, tensor })
        };
        let tunables = self.tunables.iter().map(tunable).collect::<Result<Vec<_>, Failure>>()?;
        let new = stacks.inject(span, &tunables).map_err(|error| forward_failed(&error))?;
        Ok(injected.insert(new).share())
    }

    fn cached_prefix(&self) -> Option<StackPrefixCache> {
        lock(&self.prefix).as_ref().map(|(prefix, _)| prefix.share())
    }

    /// Keeps the keys and values of a prefix, in the place of earlier ones.
    fn keep_prefix(&self, prefix: StackPrefixCache) -> Result<(), Failure> {
        let mut kept = lock(&self.prefix);
        *kept = None;
        let reserved = self.quota.reserve_beside(&self.reserved, Kind::Prefixes, prefix.bytes() as u64)?;
        *kept = Some((prefix, reserved));
        Ok(())
    }
}

/// Memory of a tunable and of its adapters, in bytes. Numbers in fp32 are shared with the received data.
fn memory(tensor: &HostTensor) -> u64 {
    let numel: usize = tensor.shape().iter().product();
    let copies = if tensor.dtype() == DType::F32 { 1 } else { 2 };
    (tensor.data().len() + copies * numel * size_of::<f32>()) as u64
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
    /// Estimated memory of the backward pass; 0 if it is not limited.
    pub(crate) peak_bytes: u64,
}

/// Result of a job; `not_finite` is the first block with non-finite hidden states.
#[derive(Debug)]
pub(crate) enum JobOutput {
    Forward { hidden: HostTensor, tape: Option<NewTape>, not_finite: Option<usize> },
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
        self.positions() * self.block_passes()
    }

    /// Share of the machine that the job is charged for, in positions times blocks times passes. A small job counts as a larger
    /// one, since a block reads all of its weights for a single position too.
    pub(crate) fn cost(&self) -> usize {
        self.positions().max(MIN_COST_POSITIONS) * self.block_passes()
    }

    /// Blocks times passes.
    fn block_passes(&self) -> usize {
        match self {
            Job::Forward(forward) => forward.span.len(),
            Job::Backward(backward) => backward.extent.span.len(),
            Job::Stateless(stateless) => 2 * stateless.forward.span.len(),
        }
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

/// Runs a batch of jobs and returns the result of each, in order. All of them fail if `cancel` is set meanwhile.
pub(crate) fn run(stacks: &DeviceStacks, jobs: Vec<Job>, cancel: Cancel<'_>) -> Vec<Result<JobOutput, Failure>> {
    let (mut forwards, mut backwards, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for job in jobs {
        match job {
            Job::Forward(forward) => forwards.push(forward),
            Job::Backward(backward) => backwards.push(backward),
            Job::Stateless(stateless) => results.push(run_stateless(stacks, stateless, cancel)),
        }
    }
    results.extend(run_forwards(stacks, &forwards, cancel));
    results.extend(run_backwards(stacks, backwards, cancel));
    results
}

struct ForwardInputs {
    hidden: Tensor,
    injected: StackInjections,
    prefix: Option<StackPrefixCache>,
}

impl ForwardInputs {
    /// Shares the memory of the received tensors, which blocks never modify.
    fn new(stacks: &DeviceStacks, job: &ForwardJob) -> Result<Self, Failure> {
        let prefix_len = job.batch.prefix_len;
        let prefix = job.tunables.cached_prefix().filter(|_| job.batch.prefix_cached);
        if job.batch.prefix_cached && prefix.as_ref().is_none_or(|cached| cached.prefix_len() != prefix_len) {
            return Err(invalid("a batch without its prefix, which is not cached"));
        }
        let injected = job.tunables.injected(stacks, job.span)?;
        let hidden = share_from_host(&job.batch.hidden).map_err(|error| compute_failed(&error))?;
        let inputs = Self { hidden, injected, prefix };
        // Checked here, so that an error fails this call only and not the batch.
        stacks.check_batch(job.span, &inputs.batch(job)).map_err(|error| forward_failed(&error))?;
        Ok(inputs)
    }

    fn batch<'a>(&'a self, job: &'a ForwardJob) -> StackBatch<'a> {
        let WireBatch { prefix_len, rows, .. } = &job.batch;
        let prefix = self.prefix.as_ref().map_or(StackPrefix::Computed(*prefix_len), StackPrefix::Cached);
        StackBatch { hidden: &self.hidden, prefix, rows, injected: &self.injected }
    }
}

fn run_forwards(stacks: &DeviceStacks, jobs: &[ForwardJob], cancel: Cancel<'_>) -> Vec<Result<JobOutput, Failure>> {
    let Some(first) = jobs.first() else { return Vec::new() };
    let inputs: Vec<Result<ForwardInputs, Failure>> = jobs.iter().map(|job| ForwardInputs::new(stacks, job)).collect();
    let keep = if first.keep_tape { SaveMode::Tape } else { SaveMode::PrefixCache };
    let batches: Vec<StackBatch<'_>> =
        jobs.iter().zip(&inputs).filter_map(|(job, input)| Some(input.as_ref().ok()?.batch(job))).collect();
    let outputs = stacks.forward_until(first.span, &batches, first.want, keep, cancel);
    let mut outputs = outputs.map(Vec::into_iter).map_err(|error| forward_failed(&error));
    let is_shared = jobs.len() > 1;
    let results = jobs.iter().zip(&inputs).map(|(job, input)| {
        input.as_ref().map_err(|failure| failure.clone())?;
        let outputs = outputs.as_mut().map_err(|failure| failure.clone())?;
        let StackOutput { hidden, tape, prefix_cache: prefix, non_finite_block: not_finite } =
            outputs.next().ok_or_else(|| invalid("no output"))?;
        if let Some(prefix) = prefix {
            job.tunables.keep_prefix(prefix)?;
        }
        let tape = tape.map(|tape| NewTape {
            bytes: tape.bytes() as u64,
            tape: Some(Box::new(tape)),
            tunables: Arc::clone(&job.tunables.reserved),
        });
        Ok(JobOutput::Forward { hidden: to_wire(&hidden, job.dtype, is_shared)?, tape, not_finite })
    });
    results.collect()
}

fn run_backwards(stacks: &DeviceStacks, jobs: Vec<BackwardJob>, cancel: Cancel<'_>) -> Vec<Result<JobOutput, Failure>> {
    let (mut wants, mut tapes) = (Vec::new(), Vec::new());
    for job in jobs {
        let BackwardJob { id, grad_output, grad_want, .. } = job;
        let tape = lock(&job.tapes).take(id).and_then(|stored| stored.tape);
        let expired = || Failure::new(FailureCode::TapeExpired, "the tape was evicted");
        let input =
            tape.ok_or_else(expired).and_then(|tape| output_gradient(&grad_output, &tape).map(|grad| (tape, grad)));
        wants.push(input.map(|input| {
            tapes.push((*input.0, input.1));
            grad_want
        }));
    }
    let Some(&want) = wants.iter().flatten().next() else {
        return wants.into_iter().map(|want| want.map(|_| JobOutput::Grads(Grads::default()))).collect();
    };
    let is_shared = tapes.len() > 1;
    let mut grads = backward(stacks, tapes, want, cancel).map(Vec::into_iter);
    let results = wants.into_iter().map(|want| {
        let (want, grads) = (want?, grads.as_mut().map_err(|failure| failure.clone())?);
        grads_to_wire(grads.next().ok_or_else(|| invalid("no gradient"))?, want, is_shared).map(JobOutput::Grads)
    });
    results.collect()
}

fn run_stateless(stacks: &DeviceStacks, job: StatelessJob, cancel: Cancel<'_>) -> Result<JobOutput, Failure> {
    let StatelessJob { forward, grad_output, grad_want } = job;
    let stored = match run_forwards(stacks, &[forward], cancel).pop() {
        Some(Err(failure)) => return Err(failure),
        Some(Ok(JobOutput::Forward { tape, .. })) => tape,
        _ => None,
    };
    let tape = stored.and_then(|stored| stored.tape);
    let tape = tape.ok_or_else(|| Failure::new(FailureCode::ComputeFailed, "the forward pass left no tape"))?;
    let grad_output = output_gradient(&grad_output, &tape)?;
    let grads = backward(stacks, vec![(*tape, grad_output)], grad_want, cancel)?.pop();
    let grads = grads.ok_or_else(|| invalid("no gradient"))?;
    grads_to_wire(grads, grad_want, false).map(JobOutput::Grads)
}

/// Converts the gradient of a tape's output. A wrong shape is found here, so that it fails its own call only.
fn output_gradient(grad_output: &HostTensor, tape: &StackTape) -> Result<Tensor, Failure> {
    let (expected, found) = (tape.output_shape(), grad_output.shape());
    if found != expected {
        return Err(invalid(format!("the gradient has shape {found:?}, but the output had {expected:?}")));
    }
    share_from_host(grad_output).map_err(|error| compute_failed(&error))
}

fn backward(
    stacks: &DeviceStacks,
    tapes: Vec<(StackTape, Tensor)>,
    want: GradWant,
    cancel: Cancel<'_>,
) -> Result<Vec<BatchGrads>, Failure> {
    let input = match want.input {
        codec::InputGrad::All => InputGrad::All,
        codec::InputGrad::Prefix | codec::InputGrad::None => InputGrad::Prefix,
    };
    let options = GradOptions { input, injected: want.tunables };
    stacks.backward_until(tapes, options, cancel).map_err(|error| forward_failed(&error))
}

fn grads_to_wire(grads: BatchGrads, want: GradWant, is_shared: bool) -> Result<Grads, Failure> {
    let input = match want.input {
        codec::InputGrad::None => None,
        // The prefix is a small part of all positions, so it is copied.
        input => Some(to_wire(&grads.input, want.input_dtype(), is_shared || input == codec::InputGrad::Prefix)?),
    };
    let named = |Tunable { name, first_block, tensor }: Tunable| {
        let tensor = to_wire(&tensor, want.tunables_dtype(), is_shared)?;
        Ok(HostTunable { name, first_block, tensor })
    };
    let tunables = grads.injected.into_iter().map(named).collect::<Result<_, Failure>>()?;
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
        ForwardError::Torch { .. } | ForwardError::Cancelled { .. } => compute_failed(error),
        _ => invalid(in_one_line(error)),
    }
}

fn compute_failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(FailureCode::ComputeFailed, in_one_line(error))
}

#[cfg(test)]
mod tests {
    use sepal_wire::Limits;

    use super::*;
    use crate::client::ClientId;
    use crate::ledger::{Ledger, Quotas};

    #[test]
    fn small_jobs_are_charged_for_reading_the_weights() {
        let ledger = Ledger::new(Quotas::new(&Limits::default(), None));
        let reserved = Arc::new(ledger.client(ClientId::local(1)).reserve(Kind::Tunables, 0).expect("room"));
        let tapes = Arc::new(Mutex::new(TapeStore::new(0, ledger)));
        let id = lock(&tapes).insert(NewTape { tape: None, bytes: 0, tunables: reserved });
        let job = |positions| {
            let span = Span::new(0, 3).expect("a span");
            let extent = TapeExtent { span, want: Want::All, positions, peak_bytes: 0 };
            let grad_output = HostTensor::from_f32(vec![1], &[0.0]).expect("a tensor");
            let grad_want = GradWant { input: codec::InputGrad::None, tunables: false, dtype: DType::F32 };
            Job::Backward(BackwardJob { tapes: Arc::clone(&tapes), id, extent, grad_output, grad_want })
        };
        assert_eq!((job(1).cost(), job(64).cost(), job(1000).cost()), (192, 192, 3000));
        assert_eq!(job(1).token_blocks(), 3, "the pace counts positions");
    }
}
