//! The node of the graph that a forward through servers leaves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sepal_autograd::BoxError;
use sepal_core::{DType, HostTensor};
use sepal_nn::host::{from_host, share_from_host, share_to_host};
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
    pub(crate) has_prefix: bool,
    pub(crate) tunables: Vec<(String, Vec<usize>)>,
}

impl Backward {
    /// The gradients of prefix and tunables.
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
        if self.has_prefix {
            result.push(sum(chains.iter().filter_map(|chain| chain.prefix.as_ref()))?);
        }
        for (name, shape) in &self.tunables {
            result.push(if self.want.tunables { Some(sum_tunable(&chains, name, shape)?) } else { None });
        }
        Ok(result)
    }
}

impl Drop for Backward {
    fn drop(&mut self) {
        // If the thread is gone, so are the tapes.
        let _ = self.commands.send(Command::Forget { call: self.call });
    }
}

/// The sum over the micro-batches, in their order.
fn sum<'a>(parts: impl Iterator<Item = &'a HostTensor>) -> Result<Option<Tensor>, BoxError> {
    let mut total: Option<Tensor> = None;
    for part in parts {
        total = Some(match total {
            // A copy: it becomes a gradient, and libtorch adds up gradients in place.
            None => from_host(part)?,
            Some(total) => total.f_add(&share_from_host(part)?)?,
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
