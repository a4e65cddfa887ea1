//! A chain of four servers behind slow links, through the client and from server to server.

use std::path::Path;
use std::time::{Duration, Instant};

use sepal_checkpoint::Checkpoint;
use sepal_core::{DEEP_PROMPTS, Ragged, Want};
use sepal_nn::Tunable;
use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential, SwarmPath};
use sepal_swarm::Endpoint;
use tch::{Device, Kind, Tensor};

use crate::median;
use sepal_integration_tests::fixture::{Fixture, Server};
use sepal_integration_tests::proxy::{Link, Proxy};

const HIDDEN: i64 = 32;
const PROMPTS: i64 = 5;
const ROW: usize = 64;
const ROWS: usize = 128;
/// 100 Mbit/s and a round trip of 100 ms.
const LINK: Link = Link { delay: Duration::from_millis(50), bytes_per_second: 12_500_000 };

/// Seconds of a step, and the client's bytes.
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
}

/// Measures the median step of a chain of four through the client, of the same from server to server, and of one
/// server that has all blocks.
pub(crate) fn chain() -> [Measured; 3] {
    let fixture = Fixture::new("llama-gqa");
    let checkpoint = with_four_blocks(&fixture.path("model"));
    let serve = |blocks: &str| fixture.serve(blocks, "127.0.0.1:0");
    let chain: Vec<Server> = ["0:1", "1:2", "2:3", "3:4"].map(serve).into();
    let single = [serve("0:4")];
    let links = |servers: &[Server]| -> Vec<Proxy> { servers.iter().map(|s| Proxy::new(&s.addr, LINK)).collect() };
    let (chain_links, single_link) = (links(&chain), links(&single));
    let measure = |links: &[Proxy], path: SwarmPath| {
        let endpoint = |link: &Proxy| Endpoint::Addr(link.addr.parse().expect("an address"));
        let endpoints = links.iter().map(endpoint).collect();
        let (digest, n_blocks, hidden) = (checkpoint.digest().to_owned(), 4, HIDDEN as usize);
        let options = RemoteOptions { path, micro_batch_tokens: 1 << 20, ..RemoteOptions::default() };
        let expected = ModelExpectation { digest, n_blocks, hidden, tunables: Vec::new() };
        let remote = RemoteSequential::connect(endpoints, expected, options).expect("connected");
        median(12, || step(&remote));
        let (duration, bytes) = median(7, || step(&remote));
        Measured { seconds: duration.as_secs_f64(), bytes }
    };
    let (star, relay) = (measure(&chain_links, SwarmPath::Star), measure(&chain_links, SwarmPath::Relay));
    [star, relay, measure(&single_link, SwarmPath::Star)]
}

fn step(remote: &RemoteSequential) -> (Duration, u64) {
    let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
    let prompts = random(&[PROMPTS, HIDDEN]).set_requires_grad(true);
    let deep = random(&[4, PROMPTS, HIDDEN]).set_requires_grad(true);
    let (tokens, rows) = (random(&[(ROW * ROWS) as i64, HIDDEN]), Ragged::from_lengths([ROW; ROWS]).expect("rows"));
    let traffic = || remote.traffic().up() + remote.traffic().down();
    let (before, started) = (traffic(), Instant::now());
    let tuned = remote.tune(vec![Tunable::new(DEEP_PROMPTS, deep.shallow_clone())]).expect("tuned");
    let pooled = tuned.forward(Some(&prompts), &tokens, &rows, Want::LastOfRows).expect("a forward");
    pooled.sum(Kind::Float).backward();
    (started.elapsed(), traffic() - before)
}

/// Adds a fourth block to the tiny model, a copy of the third.
fn with_four_blocks(folder: &Path) -> Checkpoint {
    let config = folder.join("config.json");
    let text = std::fs::read_to_string(&config)
        .expect("a config")
        .replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    std::fs::write(&config, text).expect("a config");
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).expect("weights");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors = file.tensors();
    let copies: Vec<_> = tensors.iter().filter(|(name, _)| name.contains("layers.2.")).cloned().collect();
    tensors.extend(copies.into_iter().map(|(name, tensor)| (name.replace("layers.2.", "layers.3."), tensor)));
    safetensors::serialize_to_file(tensors, None, &weights).expect("weights");
    Checkpoint::open(folder).expect("a checkpoint")
}
