use sepal_core::{ModelConfig, Span, TunableName};
use sepal_nn::Tunable;
use tch::{Device, TchError, Tensor};

use super::lora::{FirstFactor, Lora};
use super::prefix::{DeepPrompts, PrefixKeysValues};
use super::scale::{ScaleInput, ScaleOutput};
use super::stacked::Stacked;
use super::tunables::{Described, TunableError, describe};
use super::{Adapter, Injection, Site};
use crate::exec::block::Block;
use crate::stack::ForwardError;

/// Tunables of a span, converted to adapters of its blocks. Made once for an optimizer step, by
/// [`BlockStack::inject`](crate::BlockStack::inject), and used by any number of batches.
#[derive(Debug, Default)]
pub struct Injected {
    span: Option<Span>,
    /// One entry for each block of the span.
    blocks: Vec<Vec<Injection>>,
    /// By the index of the tunable.
    tunables: Vec<Stacked>,
    prefix_len: Option<usize>,
}

impl Injected {
    /// Converts `tunables` for `blocks`, those of `span`. Tunables of other blocks have no effect.
    pub(crate) fn new(
        config: &ModelConfig,
        span: Span,
        blocks: &[Block],
        tunables: &[Tunable],
        device: Device,
    ) -> Result<Self, ForwardError> {
        let shapes: Vec<Vec<usize>> = tunables.iter().map(|tunable| shape(&tunable.tensor)).collect();
        let described = describe(config, named_shapes(tunables, &shapes))?;
        if let Some(other) = tunables.iter().find(|tunable| tunable.tensor.kind() != tch::Kind::Float) {
            let (found, kind) = (other.tensor.size(), other.tensor.kind());
            return Err(ForwardError::Shape { name: "a tunable", expected: shape(&other.tensor), found, kind });
        }
        let tensors = tunables.iter().map(|tunable| tunable.tensor.detach().f_to_device(device));
        let torch_error = |source| ForwardError::Torch { span, source };
        let tensors: Vec<Tensor> = tensors.collect::<Result<_, _>>().map_err(torch_error)?;
        let builder = Builder { described: &described, tensors: &tensors };
        let in_span = span.blocks().zip(blocks);
        let convert = || in_span.map(|(block_idx, block)| builder.block(block_idx, block)).collect::<Result<_, _>>();
        Ok(Self {
            span: Some(span),
            blocks: tch::no_grad(convert).map_err(torch_error)?,
            tunables: described.iter().zip(&tensors).map(|(tunable, tensor)| stacked(tunable, span, tensor)).collect(),
            prefix_len: described.iter().find_map(Described::prefix_len),
        })
    }

    /// Span of the blocks; `None` if nothing is injected anywhere.
    pub fn span(&self) -> Option<Span> {
        self.span
    }

    /// Length that a prefix must have if the blocks compute one.
    pub fn prefix_len(&self) -> Option<usize> {
        self.prefix_len
    }

    /// Returns an injection with the same memory.
    #[must_use]
    pub fn share(&self) -> Self {
        let blocks = self.blocks.iter().map(|block| block.iter().map(Injection::share).collect()).collect();
        Self { blocks, tunables: self.tunables.clone(), ..*self }
    }

    /// Injections of the block `i` of the span.
    pub(crate) fn block(&self, i: usize) -> &[Injection] {
        self.blocks.get(i).map_or(&[], Vec::as_slice)
    }

    /// Index in the span of the first block with an injection.
    pub(crate) fn first(&self) -> Option<usize> {
        self.blocks.iter().position(|block| !block.is_empty())
    }

    /// Returns the gradient of each tunable, stacked by block, from the gradients of each block of the span.
    pub(crate) fn stack_grads(
        &self,
        grads: Vec<Vec<(usize, Tensor)>>,
        device: Device,
    ) -> Result<Vec<Tunable>, TchError> {
        let mut by_tunable: Vec<Vec<(usize, Tensor)>> = self.tunables.iter().map(|_| Vec::new()).collect();
        for (block, grads) in grads.into_iter().enumerate() {
            for (tunable, grad) in grads {
                by_tunable[tunable].push((block, grad));
            }
        }
        self.tunables.iter().zip(by_tunable).map(|(stacked, grads)| stacked.stack(grads, device)).collect()
    }
}

/// Checks names, blocks and shapes of tunables.
pub(crate) fn check(config: &ModelConfig, tunables: &[Tunable]) -> Result<(), TunableError> {
    let shapes: Vec<Vec<usize>> = tunables.iter().map(|tunable| shape(&tunable.tensor)).collect();
    describe(config, named_shapes(tunables, &shapes)).map(drop)
}

fn named_shapes<'a>(
    tunables: &'a [Tunable],
    shapes: &'a [Vec<usize>],
) -> impl Iterator<Item = (&'a str, usize, &'a [usize])> {
    let named = tunables.iter().zip(shapes);
    named.map(|(tunable, shape)| (tunable.name.as_str(), tunable.first_block, shape.as_slice()))
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect()
}

fn stacked(tunable: &Described<'_>, span: Span, tensor: &Tensor) -> Stacked {
    let first_block = tunable.blocks.start;
    let offset = first_block as i64 - span.start() as i64;
    Stacked { name: tunable.name.to_string(), first_block, offset, shape: tensor.size() }
}

/// Converts tunables to the adapters of blocks.
struct Builder<'a> {
    described: &'a [Described<'a>],
    tensors: &'a [Tensor],
}

impl Builder<'_> {
    fn block(&self, block_idx: usize, block: &Block) -> Result<Vec<Injection>, TchError> {
        let mut injections = Vec::new();
        for (index, tunable) in self.described.iter().enumerate() {
            if tunable.blocks.contains(&block_idx) {
                let part = self.part(index, block_idx)?;
                self.add(index, part, block_idx, block, &mut injections)?;
            }
        }
        Ok(injections)
    }

    /// The part of a tunable for a block.
    fn part(&self, index: usize, block_idx: usize) -> Result<Tensor, TchError> {
        let start = self.described[index].blocks.start;
        self.tensors[index].f_select(0, block_idx as i64 - start as i64)
    }

    fn add(
        &self,
        index: usize,
        tensor: Tensor,
        block_idx: usize,
        block: &Block,
        injections: &mut Vec<Injection>,
    ) -> Result<(), TchError> {
        let mut push = |site, adapter: Box<dyn Adapter>| injections.push(Injection { site, adapter });
        match &self.described[index].name {
            TunableName::DeepPrompts => {
                push(Site::Prefix, Box::new(DeepPrompts { tunable: index, prompts: tensor }));
            }
            TunableName::PrefixKeysValues => {
                let adapter = PrefixKeysValues { tunable: index, keys_values: tensor };
                push(Site::PrefixKeysValues, Box::new(adapter));
            }
            TunableName::LoraA(site) => {
                let second = TunableName::LoraB(site.clone());
                let Some(b_index) = self.described.iter().position(|tunable| tunable.name == second) else {
                    return Ok(());
                };
                let b = self.part(b_index, block_idx)?;
                // The parts of a fused layer have one input, so that the first factor is converted once.
                let mut factor: Option<FirstFactor> = None;
                for (place, layer, part) in block.parts_of(site) {
                    let factor = match &factor {
                        Some(factor) => factor.share(),
                        None => factor.insert(FirstFactor::new(&tensor, layer.input())?).share(),
                    };
                    push(place, Box::new(Lora::new([index, b_index], factor, &b, part)?));
                }
            }
            // Part of the first factor's adapter.
            TunableName::LoraB(_) => {}
            TunableName::ScaleOutput(site) => {
                for (place, _, part) in block.parts_of(site) {
                    push(place, Box::new(ScaleOutput::new(index, &tensor, part)?));
                }
            }
            TunableName::ScaleInput(_) => {
                push(Site::MlpActive, Box::new(ScaleInput { tunable: index, factors: tensor }));
            }
        }
        Ok(())
    }
}
