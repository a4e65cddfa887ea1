//! The node of the graph that a forward through servers leaves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sepal_autograd::BoxError;
use sepal_core::{DType, HostTensor, Ragged};
use sepal_nn::host::{share_from_host, share_to_host};
use sepal_wire::codec::InputGrad;
use tch::Tensor;
use tokio::sync::{mpsc, oneshot};

use crate::chain::{ChainGrads, ClientWant};
use crate::error::{GRADIENTS, RemoteError};
use crate::thread::{CallId, Command};

/// Why the last backward failed, for who runs it: libtorch passes on the text alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failed(Arc<Mutex<Option<RemoteError>>>);

impl Failed {
    pub(crate) fn take(&self) -> Option<RemoteError> {
        self.lock().take()
    }

    fn note(&self, error: Option<&RemoteError>) {
        *self.lock() = error.cloned();
    }

    fn lock(&self) -> MutexGuard<'_, Option<RemoteError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The backward of one forward; dropping it frees the tapes.
pub(crate) struct Backward {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) failed: Failed,
    pub(crate) call: CallId,
    pub(crate) groups: Vec<Vec<usize>>,
    pub(crate) dtype: DType,
    pub(crate) want: ClientWant,
    /// If there is a prefix.
    pub(crate) prefix_len: Option<usize>,
    pub(crate) rows: Ragged,
    pub(crate) tunables: Vec<(String, Vec<usize>)>,
}

impl Backward {
    /// The gradients of prefix, tokens and tunables.
    pub(crate) fn run(&self, grad_output: &Tensor) -> Result<Vec<Option<Tensor>>, BoxError> {
        self.gradients(grad_output).inspect_err(|error| self.failed.note(error.downcast_ref()))
    }

    fn gradients(&self, grad_output: &Tensor) -> Result<Vec<Option<Tensor>>, BoxError> {
        let part = |group: &Vec<usize>| {
            let order: Vec<i64> = group.iter().map(|&row| row as i64).collect();
            let grad = grad_output.f_index_select(0, &Tensor::from_slice(&order))?;
            share_to_host(&grad, self.dtype).map_err(BoxError::from)
        };
        let grads = self.groups.iter().map(part).collect::<Result<Vec<HostTensor>, BoxError>>()?;
        if !grads.iter().all(HostTensor::is_finite) {
            return Err(RemoteError::NonFiniteInput { what: GRADIENTS, dtype: self.dtype }.into());
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::Backward { call: self.call, grads, want: self.want, reply };
        self.commands.send(command).map_err(|_| RemoteError::Stopped)?;
        let chains = answer.blocking_recv().map_err(|_| RemoteError::Stopped)??;
        let mut result = Vec::new();
        if let Some(prefix_len) = self.prefix_len {
            result.push(sum(&chains, prefix_len)?);
        }
        let is_whole = self.want.input == InputGrad::All;
        result.push(is_whole.then(|| self.tokens(&chains)).transpose()?);
        for (name, shape) in &self.tunables {
            result.push(if self.want.tunables { Some(sum_tunable(&chains, name, shape)?) } else { None });
        }
        Ok(result)
    }

    /// The gradient of the tokens, `[n_tokens, hidden]`, in the batch's order.
    fn tokens(&self, chains: &[ChainGrads]) -> Result<Tensor, BoxError> {
        let mut rows: Vec<Option<Tensor>> = (0..self.rows.len()).map(|_| None).collect();
        for (group, chain) in self.groups.iter().zip(chains) {
            let Some(input) = &chain.input else { continue };
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

impl Drop for Backward {
    fn drop(&mut self) {
        // If the thread is gone, so are the tapes.
        let _ = self.commands.send(Command::Forget { call: self.call });
    }
}

/// The gradient of the prefix: the sum over the micro-batches, in their order.
fn sum(chains: &[ChainGrads], prefix_len: usize) -> Result<Option<Tensor>, BoxError> {
    let mut total: Option<Tensor> = None;
    for part in chains.iter().filter_map(|chain| chain.input.as_ref()) {
        let part = share_from_host(part)?.f_narrow(0, 0, prefix_len as i64)?;
        total = Some(match total {
            // A copy: it becomes a gradient, and libtorch adds up gradients in place.
            None => part.f_detach_copy()?,
            Some(total) => total.f_add(&part)?,
        });
    }
    Ok(total)
}

/// The gradient of a tunable `[n_blocks, ..]`: spans side by side, micro-batches summed in their order.
fn sum_tunable(chains: &[ChainGrads], name: &str, shape: &[usize]) -> Result<Tensor, BoxError> {
    let size: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
    let total = Tensor::f_zeros(size, (tch::Kind::Float, tch::Device::Cpu))?;
    for (span, tunables) in chains.iter().flat_map(|chain| &chain.tunables) {
        for named in tunables.iter().filter(|named| named.name == name) {
            let mut part = total.f_narrow(0, span.start() as i64, span.len() as i64)?;
            let _ = part.f_add_(&share_from_host(&named.tensor)?)?;
        }
    }
    Ok(total)
}
