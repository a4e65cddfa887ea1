use tch::{TchError, Tensor};

use super::{Injection, LayerInput, Site, SiteBackward, SiteGrads};
use crate::segment::Segment;

/// Adapters of one block, for each of the batches that are computed together.
#[derive(Debug)]
pub(crate) struct BlockAdapters<'a>(Vec<&'a [Injection]>);

/// Tensors that adapters save of one batch, in the order of its injections.
pub(crate) type SavedAdapters = Vec<Option<Tensor>>;

impl<'a> BlockAdapters<'a> {
    pub(crate) fn new(batches: impl Iterator<Item = &'a [Injection]>) -> Self {
        Self(batches.collect())
    }

    fn has(&self, site: Site) -> bool {
        self.at(site).next().is_some()
    }

    /// Indices of batches and injections at a site, with the injections.
    fn at(&self, site: Site) -> impl Iterator<Item = (usize, usize, &'a Injection)> {
        let batches = self.0.iter().enumerate();
        let all = batches.flat_map(|(batch, injections)| {
            injections.iter().enumerate().map(move |(index, injection)| (batch, index, injection))
        });
        all.filter(move |(_, _, injection)| injection.site == site)
    }

    /// True if all adapters at a site only add to the output.
    fn are_additive(&self, site: Site) -> bool {
        self.at(site).all(|(_, _, injection)| injection.adapter.is_additive())
    }
}

/// Forward pass of a block's adapters.
#[derive(Debug)]
pub(crate) struct Forward<'a> {
    adapters: BlockAdapters<'a>,
    saved: Vec<SavedAdapters>,
}

impl<'a> Forward<'a> {
    pub(crate) fn new(adapters: BlockAdapters<'a>) -> Self {
        let saved = adapters.0.iter().map(|injections| injections.iter().map(|_| None).collect()).collect();
        Self { adapters, saved }
    }

    /// Applies the adapters of a site to the batches' segments of `output`, in place.
    pub(crate) fn apply(
        &mut self,
        site: Site,
        segments: &[Segment],
        input: Option<&Tensor>,
        output: &Tensor,
    ) -> Result<(), TchError> {
        for (batch, index, injection) in self.adapters.at(site) {
            let segment = segments[batch];
            if segment.len > 0 {
                let input = input.map(|input| segment.narrow(input)).transpose()?;
                self.saved[batch][index] = injection.adapter.forward(input.as_ref(), &segment.narrow(output)?)?;
            }
        }
        Ok(())
    }

    /// True if all adapters at a site only add to the output, so that it may include the residual already.
    pub(crate) fn are_additive(&self, site: Site) -> bool {
        self.adapters.are_additive(site)
    }

    /// Saved tensors of each batch.
    pub(crate) fn into_saved(self) -> Vec<SavedAdapters> {
        self.saved
    }
}

/// Backward pass of a block's adapters.
#[derive(Debug)]
pub(crate) struct AdapterBackward<'a> {
    adapters: BlockAdapters<'a>,
    saved: Vec<&'a SavedAdapters>,
    wants_tensors: bool,
    /// Gradients of each batch by the index of their tunable.
    grads: Vec<Vec<(usize, Tensor)>>,
}

/// Gradients of a site's adapters from which the gradient of the layer's input follows.
#[derive(Debug)]
pub(crate) struct InnerGrads<'a>(Vec<(usize, &'a Injection, Tensor)>);

impl<'a> AdapterBackward<'a> {
    pub(crate) fn new(adapters: BlockAdapters<'a>, saved: Vec<&'a SavedAdapters>, wants_tensors: bool) -> Self {
        let grads = adapters.0.iter().map(|_| Vec::new()).collect();
        Self { adapters, saved, wants_tensors, grads }
    }

    /// Runs the adapters of a site backward on the batches' segments of `grad`, in place. `input` returns the layer's
    /// input for a batch.
    pub(crate) fn run(
        &mut self,
        site: Site,
        segments: &[Segment],
        grad: &Tensor,
        input: impl Fn(usize) -> Result<Option<LayerInput>, TchError>,
    ) -> Result<InnerGrads<'a>, TchError> {
        let mut inner_grads = Vec::new();
        // The last adapter of the forward pass comes first.
        let in_order: Vec<_> = self.adapters.at(site).collect();
        for (batch, index, injection) in in_order.into_iter().rev() {
            let segment = segments[batch];
            if segment.len == 0 {
                continue;
            }
            let input = input(batch)?;
            let pass = SiteBackward {
                input: input.as_ref(),
                grad: &segment.narrow(grad)?,
                saved: self.saved[batch][index].as_ref(),
                wants_tensors: self.wants_tensors,
            };
            let SiteGrads { tensors, inner } = injection.adapter.backward(pass)?;
            self.grads[batch].extend(tensors);
            inner_grads.extend(inner.map(|inner| (batch, injection, inner)));
        }
        Ok(InnerGrads(inner_grads))
    }

    /// Returns the gradient of a layer's output for adapters that change it in place: a copy if any does.
    pub(crate) fn writable(&self, site: Site, grad: &Tensor) -> Result<Tensor, TchError> {
        if self.adapters.are_additive(site) { Ok(grad.shallow_clone()) } else { grad.f_detach_copy() }
    }

    pub(crate) fn has(&self, site: Site) -> bool {
        self.adapters.has(site)
    }

    /// Applies the adapters of a site to `output`, that of one batch, as the forward pass did.
    pub(crate) fn repeat(&self, site: Site, batch: usize, output: &Tensor) -> Result<(), TchError> {
        for (_, _, injection) in self.adapters.at(site).filter(|(of, ..)| *of == batch) {
            injection.adapter.forward(None, output)?;
        }
        Ok(())
    }

    /// Gradients of each batch by the index of their tunable.
    pub(crate) fn into_grads(self) -> Vec<Vec<(usize, Tensor)>> {
        self.grads
    }
}

impl InnerGrads<'_> {
    /// Adds the gradient of the layer's input to the batches' segments of `grad_input`. A segment may be shorter than the
    /// batch: then it is its first rows.
    pub(crate) fn add_to(&self, grad_input: &Tensor, segments: &[Segment]) -> Result<(), TchError> {
        for (batch, injection, inner) in &self.0 {
            let segment = segments[*batch];
            let inner = inner.f_narrow(0, 0, segment.len)?;
            injection.adapter.add_input_grad(&inner, &segment.narrow(grad_input)?)?;
        }
        Ok(())
    }
}
