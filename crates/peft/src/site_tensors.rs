//! Tensors of linear layers: stacked by block in an adapter, one for each layer in files of PEFT.

use std::collections::BTreeMap;

use sepal_checkpoint::linear_sites;
use sepal_core::{DType, HostTensor, LinearSite, ModelConfig, NamedHostTensor, SiteRole, TunableName};
use sepal_nn::{share_from_host, to_host};
use tch::{Device, Kind, Tensor};

use crate::adapter::{Adapter, AdapterError, AdapterTensor, TensorRole};
use crate::config::{AdapterConfig, LORA};
use crate::import_error::ImportError;
use crate::lora_config::Alphas;
use crate::lora_scaling::LoraScaling;
use crate::site_names::{SitePart, block_and_site, tensor_name};

/// Returns PEFT's tensors of an adapter's linear layers, sorted by name. The adapter must fit the model.
pub(crate) fn to_peft(adapter: &Adapter, config: &ModelConfig) -> Result<Vec<NamedHostTensor>, AdapterError> {
    let mut named = Vec::new();
    for (name, tensor) in adapter.tunables() {
        let (site, part, shape) = match (name, tensor.shape()) {
            (TunableName::LoraA(site), &[_, rank, inputs]) => (site, SitePart::LoraA, vec![rank, inputs]),
            (TunableName::LoraB(site), &[_, outputs, rank]) => (site, SitePart::LoraB, vec![outputs, rank]),
            (TunableName::ScaleOutput(site), &[_, outputs]) => (site, SitePart::Factors, vec![outputs, 1]),
            (TunableName::ScaleInput(site), &[_, inputs]) => (site, SitePart::Factors, vec![1, inputs]),
            _ => continue,
        };
        let n_blocks = tensor.shape()[0];
        for index in 0..n_blocks {
            let block_idx = config.n_blocks.saturating_sub(n_blocks) + index;
            let tensor = of_block(tensor, index, &shape).ok_or_else(|| AdapterError::Shape {
                name: name.to_string(),
                expected: format!("{shape:?} for each block"),
                found: tensor.shape().to_vec(),
            })?;
            named.push(NamedHostTensor { name: tensor_name(config.family, block_idx, site, part), tensor });
        }
    }
    named.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(named)
}

/// Returns the part of a stacked tensor for one block, in the shape `shape`.
fn of_block(stacked: &HostTensor, index: usize, shape: &[usize]) -> Option<HostTensor> {
    let row = stacked.rows(index..index + 1)?;
    HostTensor::new(row.dtype(), shape.to_vec(), row.data().clone()).ok()
}

/// Tensors of an adapter from a file of PEFT.
#[derive(Debug)]
pub(crate) struct SavedLayers {
    pub(crate) tensors: Vec<AdapterTensor>,
    /// Scaling of low-rank additions, if there are any.
    pub(crate) scaling: Option<LoraScaling>,
    /// True if layers with other ranks or alphas were converted to those of `scaling`.
    pub(crate) is_converted: bool,
}

/// Reads the tensors of linear layers that LORA or IA3 saved; `saved` is their configuration.
pub(crate) fn from_peft(
    named: Vec<NamedHostTensor>,
    saved: &AdapterConfig,
    model: &ModelConfig,
) -> Result<SavedLayers, ImportError> {
    let layers = Layers::collect(named, saved, model)?;
    if saved.method() == LORA { layers.low_rank(saved) } else { layers.factors() }
}

/// Tensors by layer of a block and part; each part by block.
struct Layers<'a> {
    method: &'a str,
    sites: Vec<LinearSite>,
    model: &'a ModelConfig,
    /// By the index of the site.
    parts: BTreeMap<(usize, SitePart), BTreeMap<usize, HostTensor>>,
}

impl<'a> Layers<'a> {
    fn collect(
        named: Vec<NamedHostTensor>,
        saved: &'a AdapterConfig,
        model: &'a ModelConfig,
    ) -> Result<Self, ImportError> {
        let sites = linear_sites(model);
        let mut parts: BTreeMap<(usize, SitePart), BTreeMap<usize, HostTensor>> = BTreeMap::new();
        for NamedHostTensor { name, tensor } in named {
            let found = SitePart::split(&name).and_then(|(layer, part)| {
                let (block_idx, site) = block_and_site(model, layer)?;
                let site_idx = sites.iter().position(|known| known.name == site)?;
                Some((site_idx, part, block_idx))
            });
            let (site_idx, part, block_idx) = found.ok_or_else(|| ImportError::Layer {
                name: name.clone(),
                layers: sites.iter().map(|site| site.name.clone()).collect(),
            })?;
            if (part == SitePart::Factors) == (saved.method() == LORA) {
                return Err(AdapterError::Unknown { name }.into());
            }
            parts.entry((site_idx, part)).or_default().insert(block_idx, tensor);
        }
        let layers = Self { method: saved.method(), sites, model, parts };
        layers.check_blocks()?;
        Ok(layers)
    }

    /// Error unless all parts are in the same last blocks of the model.
    fn check_blocks(&self) -> Result<(), ImportError> {
        let n_blocks = self.model.n_blocks;
        let first = self.parts.values().filter_map(|blocks| blocks.keys().next()).min().copied();
        let expected: Vec<usize> = (first.unwrap_or(n_blocks)..n_blocks).collect();
        for ((site_idx, _), blocks) in &self.parts {
            let found: Vec<usize> = blocks.keys().copied().collect();
            if found != expected {
                let (method, site) = (self.method.to_owned(), self.sites[*site_idx].name.clone());
                return Err(ImportError::Blocks { method, site, found, n_blocks });
            }
        }
        Ok(())
    }

    fn low_rank(&self, saved: &AdapterConfig) -> Result<SavedLayers, ImportError> {
        let alphas = Alphas::read(saved)?;
        let pairs = self.pairs()?;
        let ranks = pairs.iter().flat_map(|(_, blocks)| blocks.iter().map(|(_, a, _)| a.shape()[0]));
        let scaling = alphas.default_scaling(ranks.max().unwrap_or(0));
        let (mut tensors, mut is_converted) = (Vec::new(), false);
        for (site, blocks) in &pairs {
            let (mut stacked_a, mut stacked_b) = (Vec::new(), Vec::new());
            for (block_idx, a, b) in blocks {
                let layer = alphas.of_layer(self.model.family, *block_idx, &site.name, a.shape()[0]);
                is_converted |= layer != scaling;
                let (a, b) = padded(&share_from_host(a)?, &share_from_host(b)?, layer, scaling)?;
                stacked_a.push(a);
                stacked_b.push(b);
            }
            tensors.push(stack(TunableName::LoraA(site.name.clone()), &stacked_a)?);
            tensors.push(stack(TunableName::LoraB(site.name.clone()), &stacked_b)?);
        }
        Ok(SavedLayers { tensors, scaling: Some(scaling), is_converted })
    }

    /// Returns both factors of each site and block, of matching shapes.
    fn pairs(&self) -> Result<Vec<(&LinearSite, Pairs)>, ImportError> {
        let mut pairs = Vec::new();
        for (site_idx, site) in self.sites.iter().enumerate() {
            let (a, b) = (self.parts.get(&(site_idx, SitePart::LoraA)), self.parts.get(&(site_idx, SitePart::LoraB)));
            let Some(any) = a.or(b) else { continue };
            let mut blocks = Vec::new();
            for block_idx in any.keys() {
                let name = |part| tensor_name(self.model.family, *block_idx, &site.name, part);
                let find = |found: Option<&BTreeMap<usize, HostTensor>>, part| {
                    let missing = || AdapterError::Missing { name: name(part) };
                    found.and_then(|blocks| blocks.get(block_idx).cloned()).ok_or_else(missing)
                };
                let (a, b) = (find(a, SitePart::LoraA)?, find(b, SitePart::LoraB)?);
                let LinearSite { outputs, inputs, .. } = *site;
                let rank = a.shape().first().copied().unwrap_or(0);
                check(name(SitePart::LoraA), &a, &[rank.max(1), inputs])?;
                check(name(SitePart::LoraB), &b, &[outputs, rank])?;
                blocks.push((*block_idx, a, b));
            }
            pairs.push((site, blocks));
        }
        Ok(pairs)
    }

    fn factors(&self) -> Result<SavedLayers, ImportError> {
        let mut tensors = Vec::new();
        for ((site_idx, _), blocks) in &self.parts {
            let site = &self.sites[*site_idx];
            if blocks.len() != self.model.n_blocks {
                let (method, site) = (self.method.to_owned(), site.name.clone());
                let found = blocks.keys().copied().collect();
                return Err(ImportError::Blocks { method, site, found, n_blocks: self.model.n_blocks });
            }
            let is_last = site.role == SiteRole::MlpOutput;
            let (name, shape) = match is_last {
                true => (TunableName::ScaleInput(site.name.clone()), [1, site.inputs]),
                false => (TunableName::ScaleOutput(site.name.clone()), [site.outputs, 1]),
            };
            for (block_idx, tensor) in blocks {
                let stored = tensor_name(self.model.family, *block_idx, &site.name, SitePart::Factors);
                let other_end = if is_last { [site.outputs, 1] } else { [1, site.inputs] };
                if tensor.shape() == other_end {
                    return Err(ImportError::Scaled { name: stored, end: if is_last { "outputs" } else { "inputs" } });
                }
                check(stored, tensor, &shape)?;
            }
            let flat = blocks.values().map(|tensor| Ok(share_from_host(tensor)?.f_flatten(0, 1)?));
            tensors.push(stack(name, &flat.collect::<Result<Vec<_>, ImportError>>()?)?);
        }
        Ok(SavedLayers { tensors, scaling: None, is_converted: false })
    }
}

/// Block, first factor `[rank, inputs]` and second factor `[outputs, rank]`.
type Pairs = Vec<(usize, HostTensor, HostTensor)>;

fn check(name: String, tensor: &HostTensor, shape: &[usize]) -> Result<(), AdapterError> {
    match tensor.shape() {
        found if found == shape => Ok(()),
        found => Err(AdapterError::Shape { name, expected: format!("{shape:?}"), found: found.to_vec() }),
    }
}

/// Converts factors of one layer to the rank and the scaling of all: zeros add nothing, and the second factor takes the
/// quotient of the scalings. Equal ones are unchanged.
fn padded(a: &Tensor, b: &Tensor, layer: LoraScaling, all: LoraScaling) -> Result<(Tensor, Tensor), tch::TchError> {
    let missing = (all.rank - layer.rank) as i64;
    let zeros = |size: [i64; 2]| Tensor::f_zeros(size, (Kind::Float, Device::Cpu));
    let a = Tensor::f_cat(&[a, &zeros([missing, a.size()[1]])?], 0)?; // [rank, inputs]
    let b = Tensor::f_cat(&[b, &zeros([b.size()[0], missing])?], 1)?; // [outputs, rank]
    let b = if layer == all { b } else { b.f_mul_scalar(layer.factor() / all.factor())? };
    Ok((a, b))
}

fn stack(name: TunableName, blocks: &[Tensor]) -> Result<AdapterTensor, ImportError> {
    let tensor = to_host(&Tensor::f_stack(blocks, 0)?, DType::F32)?;
    Ok(AdapterTensor { role: TensorRole::Tunable(name), tensor })
}
