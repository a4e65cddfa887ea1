//! The matrix products of a step and nothing else: what no implementation can leave out.

use std::collections::BTreeMap;
use std::hint::black_box;

use sepal_core::ModelConfig;
use tch::{Device, Kind, Tensor};

use crate::model::linear_layers;
use crate::step::Workload;

/// A product of the step: `x [batch, n, inner]` with `y [batch, inner, out]`.
struct Product(Tensor, Tensor);

impl Product {
    fn new(batch: usize, n: usize, inner: usize, out: usize) -> Self {
        let ones = |size: [usize; 3]| Tensor::ones(size.map(|dim| dim as i64), (Kind::Float, Device::Cpu));
        Self(ones([batch, n, inner]), ones([batch, inner, out]))
    }

    fn run(&self) {
        drop(black_box(self.0.bmm(&self.1)));
    }
}

/// Of one step of ragged rows, forward and backward.
pub(crate) struct Products {
    /// Of each block but the last.
    block: Vec<Product>,
    last: Vec<Product>,
    n_blocks: usize,
}

impl Products {
    /// Counted are, for each block, the linear layers on all positions: the output forward, the gradient of the input
    /// backward (weights are frozen); and attention of the prefix on itself and of each row on prefix and row, all rows of
    /// one length together: scores and output forward, four gradients backward. Of the last block keys and values
    /// alone are of all positions, the rest is of each row's last token.
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

/// Where `linear_layers` has the layer of keys and values.
const KEYS_AND_VALUES: usize = 1;

fn linear(config: &ModelConfig, positions: impl Fn(usize) -> usize) -> Vec<Product> {
    let layers = linear_layers(config).into_iter().enumerate();
    let both = |(layer, [inner, out]): (usize, [usize; 2])| {
        let n = positions(layer);
        [Product::new(1, n, inner, out), Product::new(1, n, out, inner)]
    };
    layers.flat_map(both).collect()
}

/// Rows of each length.
fn groups(work: &Workload) -> BTreeMap<usize, usize> {
    let mut groups = BTreeMap::new();
    work.lengths.iter().for_each(|&len| *groups.entry(len).or_default() += 1);
    groups
}

/// Of `queries` on `keys` positions in each of the rows.
fn attention(config: &ModelConfig, rows: usize, queries: usize, keys: usize) -> Vec<Product> {
    let (batch, dim) = (rows * config.n_heads, config.head_dim);
    vec![
        // scores, and the gradient of what they weigh
        Product::new(batch, queries, dim, keys),
        Product::new(batch, queries, dim, keys),
        // the output, and the gradient of queries
        Product::new(batch, queries, keys, dim),
        Product::new(batch, queries, keys, dim),
        // gradients of keys and of values
        Product::new(batch, keys, queries, dim),
        Product::new(batch, keys, queries, dim),
    ]
}
