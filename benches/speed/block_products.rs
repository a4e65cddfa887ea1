//! Matrix products of a step of Llama-3-8B's shape, with the fp32 weights of one block in memory. `just bench-8b` runs this
//! measurement in turns with steps of a server.

use sepal_core::ModelConfig;
use serde_json::json;
use tch::Tensor;

use crate::model::llama3_8b;
use crate::products::{Product, ones};
use crate::turns::Turns;

/// First argument of the process.
pub(crate) const BLOCK_PRODUCTS: &str = "--block-products";
const USAGE: &str = "--block-products takes the number of prompts, and TOKENSxROWS for each call";
const ROUNDS: usize = 3;
/// Indices of the layers that the first block's backward pass computes for the prefix only: queries, and keys and values.
const QUERIES: usize = 0;
const KEYS_AND_VALUES: usize = 1;

/// One forward and backward pass of a server: a prefix and rows of text.
#[derive(Clone, Copy)]
struct Call {
    prefix_len: usize,
    n_tokens: usize,
    n_rows: usize,
}

/// Prints the seconds of each call's products as JSON, from arguments as `16 147x6 71x2`: prompts, then tokens and rows.
pub(crate) fn print(args: &[String]) -> Result<(), String> {
    let calls = calls(args).ok_or(USAGE)?;
    let config = llama3_8b();
    let weights = weights(&config);
    let seconds = |call: &Call| tch::no_grad(|| seconds(&weights, *call, config.n_blocks));
    println!("{}", json!({ "seconds": calls.iter().map(seconds).collect::<Vec<f64>>() }));
    Ok(())
}

fn calls(args: &[String]) -> Option<Vec<Call>> {
    // `--bench` is an argument of cargo.
    let mut args = args.iter().filter(|arg| *arg != "--bench");
    let prefix_len = args.next()?.parse().ok()?;
    let call = |arg: &String| {
        let (n_tokens, n_rows) = arg.split_once('x')?;
        Some(Call { prefix_len, n_tokens: n_tokens.parse().ok()?, n_rows: n_rows.parse().ok()? })
    };
    args.map(call).collect::<Option<Vec<_>>>().filter(|calls| !calls.is_empty())
}

/// Weights `[in, out]` of a block's linear layers in the order of the forward pass. Keys and values are one layer, gate and
/// up another, as in the blocks.
fn weights(config: &ModelConfig) -> Vec<Tensor> {
    let &ModelConfig { hidden, ffn, .. } = config;
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    [[hidden, q], [hidden, 2 * kv], [q, hidden], [hidden, 2 * ffn], [ffn, hidden]].into_iter().map(ones).collect()
}

/// Returns the time of the call's products in all blocks, from those of the first block, of one between and of the last,
/// measured in turns.
fn seconds(weights: &[Tensor], call: Call, n_blocks: usize) -> f64 {
    let Call { prefix_len, n_tokens, n_rows } = call;
    let positions = prefix_len + n_tokens;
    let all = |_: usize| positions;
    // The first block returns the gradient of the prompts only, the last one the last token of each row.
    let prefix = |layer: usize| if [QUERIES, KEYS_AND_VALUES].contains(&layer) { prefix_len } else { positions };
    let pooled = |layer: usize| if layer == KEYS_AND_VALUES { positions } else { n_rows };
    let blocks = [products(weights, all, prefix), products(weights, all, all), products(weights, pooled, pooled)];
    let run = |block: &[Product]| block.iter().for_each(Product::run);
    let [first, between, last] =
        Turns::all(ROUNDS).medians([&|| run(&blocks[0]), &|| run(&blocks[1]), &|| run(&blocks[2])]);
    first + between * (n_blocks - 2) as f64 + last
}

/// Returns the products of one block: outputs of its layers, then gradients of their inputs, each for a number of rows by the
/// index of the layer.
fn products(weights: &[Tensor], forward: impl Fn(usize) -> usize, backward: impl Fn(usize) -> usize) -> Vec<Product> {
    let product = |n: usize, weight: Tensor| Product::Linear(ones([n, weight.size()[0] as usize]), weight);
    let layers = || weights.iter().enumerate();
    let outputs = layers().map(|(layer, weight)| product(forward(layer), weight.shallow_clone()));
    let gradients = layers().rev().map(|(layer, weight)| product(backward(layer), weight.tr()));
    outputs.chain(gradients).collect()
}
