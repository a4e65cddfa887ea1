//! Node of the libtorch graph for a forward pass on servers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sepal_autograd::BoxError;
use sepal_core::{DType, HostTensor, HostTunable, Ragged};
use sepal_nn::host::{share_from_host, share_to_host};
use sepal_wire::codec::InputGrad;
use tch::Tensor;
use tokio::sync::{mpsc, oneshot};

use crate::command::{CallId, Command, MicroBatchGrads, WantedGrads};
use crate::error::{GRADIENTS, RemoteError};

/// Typed error of the last backward pass, of which libtorch passes on the text alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastError(Arc<Mutex<Option<RemoteError>>>);

impl LastError {
    pub(crate) fn take(&self) -> Option<RemoteError> {
        self.lock().take()
    }

    fn set(&self, error: Option<&RemoteError>) {
        *self.lock() = error.cloned();
    }

    fn lock(&self) -> MutexGuard<'_, Option<RemoteError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Backward pass of one forward pass. Dropping it frees the tapes.
pub(crate) struct BackwardNode {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) last_error: LastError,
    pub(crate) call: CallId,
    pub(crate) groups: Vec<Vec<usize>>,
    /// Index of each group's outputs among those of the whole batch.
    pub(crate) positions: Vec<Vec<i64>>,
    pub(crate) dtype: DType,
    pub(crate) want: WantedGrads,
    /// `None` if there is no prefix.
    pub(crate) prefix_len: Option<usize>,
    pub(crate) rows: Ragged,
    pub(crate) tunables: Vec<TunableShape>,
}

/// Tunable whose gradient is summed.
pub(crate) struct TunableShape {
    pub(crate) name: String,
    pub(crate) first_block: usize,
    pub(crate) shape: Vec<usize>,
}

impl BackwardNode {
    /// Returns the gradients of the prefix, the tokens and the tunables.
    pub(crate) fn run(&self, grad_output: &Tensor) -> Result<Vec<Option<Tensor>>, BoxError> {
        self.gradients(grad_output).inspect_err(|error| self.last_error.set(error.downcast_ref()))
    }

    fn gradients(&self, grad_output: &Tensor) -> Result<Vec<Option<Tensor>>, BoxError> {
        let slice = |positions: &Vec<i64>| {
            let grad = grad_output.f_index_select(0, &Tensor::from_slice(positions))?;
            share_to_host(&grad, self.dtype).map_err(BoxError::from)
        };
        let grads = self.positions.iter().map(slice).collect::<Result<Vec<HostTensor>, BoxError>>()?;
        if !grads.iter().all(HostTensor::is_finite) {
            return Err(RemoteError::NonFiniteInput { what: GRADIENTS, dtype: self.dtype }.into());
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::Backward { call: self.call, grads, want: self.want, reply };
        self.commands.send(command).map_err(|_| RemoteError::Stopped)?;
        let micro_batches = answer.blocking_recv().map_err(|_| RemoteError::Stopped)??;
        let mut result = Vec::new();
        if let Some(prefix_len) = self.prefix_len {
            result.push(sum_prefix(&micro_batches, prefix_len)?);
        }
        let has_tokens = self.want.input == InputGrad::All;
        result.push(has_tokens.then(|| self.join_tokens(&micro_batches)).transpose()?);
        for tunable in &self.tunables {
            result.push(if self.want.tunables { Some(tunable.sum(&micro_batches)?) } else { None });
        }
        Ok(result)
    }

    /// Returns the gradient of the tokens, `[n_tokens, hidden]`, in the order of the batch.
    fn join_tokens(&self, micro_batches: &[MicroBatchGrads]) -> Result<Tensor, BoxError> {
        let mut rows: Vec<Option<Tensor>> = (0..self.rows.len()).map(|_| None).collect();
        for (group, grads) in self.groups.iter().zip(micro_batches) {
            let Some(input) = &grads.input else { continue };
            let input = share_from_host(input)?;
            let mut start = self.prefix_len.unwrap_or(0);
            for &row in group {
                let len = self.rows.row_len(row);
                rows[row] = Some(input.f_narrow(0, start as i64, len as i64)?);
                start += len;
            }
        }
        let rows: Vec<Tensor> = rows.into_iter().flatten().collect();
        Ok(Tensor::f_cat(&rows, 0)?)
    }
}

impl Drop for BackwardNode {
    fn drop(&mut self) {
        // The tapes are gone as well if the thread is.
        let _ = self.commands.send(Command::Forget { call: self.call });
    }
}

/// Returns the gradient of the prefix, summed over the micro-batches in their order.
fn sum_prefix(micro_batches: &[MicroBatchGrads], prefix_len: usize) -> Result<Option<Tensor>, BoxError> {
    let mut total: Option<Tensor> = None;
    for part in micro_batches.iter().filter_map(|grads| grads.input.as_ref()) {
        let part = share_from_host(part)?.f_narrow(0, 0, prefix_len as i64)?;
        total = Some(match total {
            // A copy, because libtorch accumulates gradients in place.
            None => part.f_detach_copy()?,
            Some(total) => {
                check_same_size(&total, &part)?;
                total.f_add(&part)?
            }
        });
    }
    Ok(total)
}

/// Refuses summands of different sizes, which libtorch would broadcast.
fn check_same_size(sum: &Tensor, part: &Tensor) -> Result<(), BoxError> {
    let (expected, found) = (sum.size(), part.size());
    if expected == found {
        return Ok(());
    }
    let expected = format!("{expected:?}");
    Err(RemoteError::Shape { what: "a gradient", expected, found }.into())
}

impl TunableShape {
    pub(crate) fn new(tunable: &HostTunable) -> Self {
        let HostTunable { name, first_block, tensor } = tunable;
        Self { name: name.clone(), first_block: *first_block, shape: tensor.shape().to_vec() }
    }

    /// Returns the gradient, `[blocks, ..]`, summed over the micro-batches in their order.
    fn sum(&self, micro_batches: &[MicroBatchGrads]) -> Result<Tensor, BoxError> {
        let size: Vec<i64> = self.shape.iter().map(|&dim| dim as i64).collect();
        let total = Tensor::f_zeros(size, (tch::Kind::Float, tch::Device::Cpu))?;
        let parts = micro_batches.iter().flat_map(|grads| &grads.tunables);
        for part in parts.filter(|part| part.name == self.name) {
            let n_blocks = part.tensor.shape().first().copied().unwrap_or(0);
            let start = part.first_block.checked_sub(self.first_block).ok_or("a gradient of other blocks")?;
            let mut sum = total.f_narrow(0, start as i64, n_blocks as i64)?;
            let part = share_from_host(&part.tensor)?;
            check_same_size(&sum, &part)?;
            let _ = sum.f_add_(&part)?;
        }
        Ok(total)
    }
}
