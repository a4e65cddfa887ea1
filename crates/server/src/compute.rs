use sepal_blocks::BlockStack;
use sepal_core::{DType, HostTensor, NamedHostTensor, Span, Want, in_one_line};
use sepal_nn::host::{share_from_host, share_to_host};
use sepal_wire::codec::{GradWant, Grads, InputGrad, WireBatch};
use sepal_wire::{Failure, FailureCode};
use tch::{Kind, Tensor};

/// The one tunable that blocks know: added to the prefix before every block.
const DEEP_PROMPTS: &str = "deep_prompts";

/// What a client has the server inject, checked against its span.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tunables {
    /// `[span.len(), prefix_len, hidden]`.
    deep_prompts: Option<HostTensor>,
}

impl Tunables {
    pub(crate) fn check(tunables: Vec<NamedHostTensor>, span: Span, hidden: usize) -> Result<Self, Failure> {
        let mut checked = Self::default();
        for NamedHostTensor { name, tensor } in tunables {
            if name != DEEP_PROMPTS {
                return Err(invalid(format!("unknown tunable `{name}`; this server knows {DEEP_PROMPTS}")));
            }
            let &[n_blocks, _, size] = tensor.shape() else {
                return Err(invalid(format!(
                    "{DEEP_PROMPTS} has shape {:?}, expected [n_blocks, prefix_len, hidden]",
                    tensor.shape()
                )));
            };
            if n_blocks != span.len() || size != hidden {
                return Err(invalid(format!(
                    "{DEEP_PROMPTS} has shape {:?}, but blocks {span} need [{}, prefix_len, {hidden}]",
                    tensor.shape(),
                    span.len()
                )));
            }
            checked.deep_prompts = Some(tensor);
        }
        Ok(checked)
    }
}

/// The graph of one forward.
#[derive(Debug)]
pub(crate) struct Kept {
    /// `[prefix_len + n_tokens, hidden]`, a leaf.
    pub(crate) input: Tensor,
    /// `[span.len(), prefix_len, hidden]`, a leaf.
    pub(crate) deep_prompts: Option<Tensor>,
    /// What the forward gave.
    pub(crate) output: Tensor,
    pub(crate) prefix_len: usize,
    /// Memory held, estimated.
    pub(crate) bytes: u64,
}

/// Runs `span` forward; with `keep`, the graph is kept for backward.
pub(crate) fn forward(
    stack: &BlockStack,
    span: Span,
    tunables: &Tunables,
    batch: &WireBatch,
    want: Want,
    keep: bool,
) -> Result<(Tensor, Option<Kept>), Failure> {
    let leaf = |host: &HostTensor| -> Result<Tensor, Failure> {
        // Blocks write into neither, so the memory of what came is used as it is.
        let tensor = share_from_host(host).map_err(|error| failed(&error))?;
        Ok(tensor.set_requires_grad(keep))
    };
    let input = leaf(&batch.hidden)?;
    let deep_prompts = tunables.deep_prompts.as_ref().map(leaf).transpose()?;
    let run = || stack.forward_part(span, &input, batch.prefix_len, &batch.rows, deep_prompts.as_ref(), want);
    let output = if keep { run() } else { tch::no_grad(run) }.map_err(|error| match error {
        sepal_blocks::ForwardError::Torch { .. } => failed(&error),
        _ => invalid(in_one_line(&error)),
    })?;
    let kept = keep.then(|| Kept {
        bytes: stack.tape_bytes(span, batch.prefix_len, &batch.rows, want) as u64,
        prefix_len: batch.prefix_len,
        output: output.shallow_clone(),
        input,
        deep_prompts,
    });
    Ok((output.detach(), kept))
}

/// Runs a kept graph backward.
pub(crate) fn backward(kept: Kept, grad_output: &HostTensor, want: GradWant) -> Result<Grads, Failure> {
    let expected: Vec<usize> = kept.output.size().iter().map(|&dim| dim.unsigned_abs() as usize).collect();
    if grad_output.shape() != expected {
        return Err(invalid(format!(
            "the gradient has shape {:?}, but the output had {expected:?}",
            grad_output.shape()
        )));
    }
    let grad_output = share_from_host(grad_output).map_err(|error| failed(&error))?;
    let deep_prompts = kept.deep_prompts.as_ref().filter(|_| want.tunables);
    let mut leaves: Vec<&Tensor> = Vec::new();
    if want.input != InputGrad::None {
        leaves.push(&kept.input);
    }
    leaves.extend(deep_prompts);
    if leaves.is_empty() {
        return Ok(Grads { input: None, tunables: Vec::new() });
    }
    // The gradient of this sum by the output is `grad_output`.
    let target = kept.output.f_mul(&grad_output).and_then(|product| product.f_sum(Kind::Float));
    let mut grads = target
        .and_then(|target| Tensor::f_run_backward(&[target], &leaves, false, false))
        .map_err(|error| failed(&error))?
        .into_iter();
    let input = match want.input {
        InputGrad::None => None,
        InputGrad::All => grads.next(),
        InputGrad::Prefix => grads.next().map(|grad| grad.narrow(0, 0, kept.prefix_len as i64)),
    };
    let input = input.map(|grad| host(&grad, want.input_dtype())).transpose()?;
    let tunables = match grads.next() {
        Some(grad) => {
            vec![NamedHostTensor { name: DEEP_PROMPTS.to_owned(), tensor: host(&grad, want.tunables_dtype())? }]
        }
        None => Vec::new(),
    };
    Ok(Grads { input, tunables })
}

/// A tensor's numbers as they cross the wire: of an output or a gradient, which nobody writes into any more.
pub(crate) fn host(tensor: &Tensor, dtype: DType) -> Result<HostTensor, Failure> {
    share_to_host(tensor, dtype).map_err(|error| failed(&error))
}

pub(crate) fn invalid(message: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::InvalidRequest, message)
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(FailureCode::ComputeFailed, in_one_line(error))
}
