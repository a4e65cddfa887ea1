//! Matrix products of a step, which every implementation has to compute.

use std::collections::BTreeMap;
use std::hint::black_box;

use sepal_autograd::linear::{RowCount, linear as product};
use sepal_core::ModelConfig;
use tch::{Device, Kind, Tensor};

use crate::model::linear_layers;
use crate::step::Workload;

pub(crate) enum Product {
    /// `x [n, inner]` times the weight `[inner, out]`, as in the blocks, without bias and sum.
    Linear(Tensor, Tensor),
    /// `x [batch, n, inner]` times `y [batch, inner, out]`.
    Batch(Tensor, Tensor),
}

pub(crate) fn ones<const N: usize>(size: [usize; N]) -> Tensor {
    Tensor::ones(size.map(|dim| dim as i64), (Kind::Float, Device::Cpu))
}

impl Product {
    fn linear(n: usize, inner: usize, out: usize) -> Self {
        Self::Linear(ones([n, inner]), ones([inner, out]))
    }

    /// Returns the product for the gradient of the input.
    fn linear_back(n: usize, inner: usize, out: usize) -> Self {
        Self::Linear(ones([n, out]), ones([inner, out]).tr())
    }

    fn batch(batch: usize, n: usize, inner: usize, out: usize) -> Self {
        Self::Batch(ones([batch, n, inner]), ones([batch, inner, out]))
    }

    pub(crate) fn run(&self) {
        drop(black_box(match self {
            Self::Linear(x, weight) => product(x, weight, None, None, RowCount::Repeated).expect("a product"),
            Self::Batch(x, y) => x.bmm(y),
        }));
    }
}

/// Products of one step of ragged rows, forward and backward.
pub(crate) struct Products {
    /// Products of each block but the last.
    block: Vec<Product>,
    last: Vec<Product>,
    n_blocks: usize,
}

impl Products {
    /// Counts, for each block, the linear layers on all positions (the output forward, the gradient of the input
    /// backward, as weights are frozen), and attention of the prefix on itself and of each row on prefix and row, with
    /// rows of one length together (scores and output forward, four gradients backward). In the last block, only keys
    /// and values are of all positions, and the remaining layers are of each row's last token.
    pub(crate) fn new(config: &ModelConfig, work: &Workload) -> Self {
        let groups = groups(work);
        let positions = work.positions();
        let n_rows = work.lengths.len();
        let mut block = linear(config, |_| positions);
        let mut last = linear(config, |layer| if layer == KEYS_AND_VALUES { positions } else { n_rows });
        for (&len, &rows) in &groups {
            block.extend(attention(config, rows, len, work.prefix_len + len));
            last.extend(attention(config, rows, 1, work.prefix_len + len));
        }
        block.extend(attention(config, 1, work.prefix_len, work.prefix_len));
        Self { block, last, n_blocks: config.n_blocks }
    }

    pub(crate) fn run(&self) {
        tch::no_grad(|| {
            for _ in 1..self.n_blocks {
                self.block.iter().for_each(Product::run);
            }
            self.last.iter().for_each(Product::run);
        });
    }
}

/// Index of keys and values in `linear_layers`.
const KEYS_AND_VALUES: usize = 1;

fn linear(config: &ModelConfig, positions: impl Fn(usize) -> usize) -> Vec<Product> {
    let layers = linear_layers(config).into_iter().enumerate();
    let both = |(layer, [inner, out]): (usize, [usize; 2])| {
        let n = positions(layer);
        [Product::linear(n, inner, out), Product::linear_back(n, inner, out)]
    };
    layers.flat_map(both).collect()
}

fn groups(work: &Workload) -> BTreeMap<usize, usize> {
    let mut groups = BTreeMap::new();
    work.lengths.iter().for_each(|&len| *groups.entry(len).or_default() += 1);
    groups
}

fn attention(config: &ModelConfig, rows: usize, queries: usize, keys: usize) -> Vec<Product> {
    let (batch, dim) = (rows * config.n_heads, config.head_dim);
    vec![
        // Scores, and the gradient of the attention weights.
        Product::batch(batch, queries, dim, keys),
        Product::batch(batch, queries, dim, keys),
        // The output, and the gradient of queries.
        Product::batch(batch, queries, keys, dim),
        Product::batch(batch, queries, keys, dim),
        // Gradients of keys and of values.
        Product::batch(batch, keys, queries, dim),
        Product::batch(batch, keys, queries, dim),
    ]
}
