//! Largest differences between honest servers, over numbers of threads and kernels, beside the tolerances of checks.
//!
//! Servers are processes of this program, because kernels are chosen once for a process. For each format of weights, products
//! and wire, all servers make the same calls, and their results are compared with those of the first server. Nothing is timed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use sepal_blocks::{BlockStack, Placement};
use sepal_checkpoint::Checkpoint;
use sepal_core::{ComputeFormat, DType, Device, HostTensor, Ragged, Span, Want, WeightFormat};
use sepal_nn::{Tunable, to_host};
use sepal_remote::{Difference, ModelExpectation, RemoteOptions, RemoteSequential, Tolerance};
use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
use sepal_swarm::Endpoint;
use tch::{Kind, Tensor};

/// Largest instruction sets of kernels: libtorch's names and oneDNN's.
const KERNELS: [(&str, &str); 3] = [("default", "SSE41"), ("avx2", "AVX2"), ("avx512", "DEFAULT")];
const THREADS: [u32; 3] = [1, 2, 4];
const PREFIX_LEN: i64 = 8;
const STEPS: i64 = 16;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", model, weights, compute, threads] => serve(model, weights, compute, threads),
        [] => measure(&sepal_testkit::tiny::goldens().join("tiny-llama-gqa").display().to_string()),
        [model] => measure(model),
        _ => eprintln!("usage: just bench-verify [MODEL]"),
    }
}

/// Serves all blocks until standard input ends.
fn serve(model: &str, weights: &str, compute: &str, threads: &str) {
    let checkpoint = Checkpoint::open(model).expect("a model");
    let (weights, compute) =
        (weights.parse::<WeightFormat>().expect("weights"), compute.parse::<ComputeFormat>().expect("products"));
    let span = Span::new(0, checkpoint.config().n_blocks).expect("blocks");
    let stack =
        BlockStack::load_with(&checkpoint, span, Placement::new(Device::Cpu, weights, compute)).expect("blocks");
    let identity = ModelIdentity::from_checkpoint(&checkpoint).with_formats(weights, compute);
    let options = ServerOptions { threads: threads.parse().ok(), ..ServerOptions::default() };
    let addr = "127.0.0.1:0".parse().expect("an address");
    let server = BlockServer::listen(stack, identity, options, addr).expect("a server");
    println!("{}", server.endpoint());
    std::io::stdout().flush().expect("standard output");
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// Server process, which ends with its standard input.
struct Server {
    process: Child,
    endpoint: Endpoint,
}

impl Server {
    fn start(model: &str, weights: WeightFormat, compute: ComputeFormat, kernels: (&str, &str), threads: u32) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["serve", model, &weights.to_string(), &compute.to_string(), &threads.to_string()])
            .env("ATEN_CPU_CAPABILITY", kernels.0)
            .env("ONEDNN_MAX_CPU_ISA", kernels.1)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a server");
        let mut line = String::new();
        let output = process.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("its address");
        let endpoint = Endpoint::Addr(line.trim().parse().expect("an address"));
        Self { process, endpoint }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

fn measure(model: &str) {
    let checkpoint = Checkpoint::open(model).expect("a model");
    let n_servers = KERNELS.len() * THREADS.len();
    println!("{STEPS} steps with each of {n_servers} servers of {model}");
    println!("weights  products  wire   tensor   of        row      of        factor   of");
    for weights in [WeightFormat::F32, WeightFormat::Auto, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Nf4] {
        for compute in [ComputeFormat::F32, ComputeFormat::Bf16] {
            let server = |kernels, threads| Server::start(model, weights, compute, kernels, threads);
            let servers: Vec<Server> =
                KERNELS.iter().flat_map(|&kernels| THREADS.map(|threads| server(kernels, threads))).collect();
            for wire in [DType::F32, DType::Bf16, DType::Q8] {
                let digest = compute.digest(&weights.digest(checkpoint.digest()));
                let tolerance = Tolerance::new(&digest, wire);
                let largest = largest(&checkpoint, &digest, &servers, wire);
                println!(
                    "{:8} {:9} {:5}  {:.1e}  {:.1e}   {:.1e}  {:.1e}   {:.1e}  {:.1e}{}",
                    weights.to_string(),
                    compute.to_string(),
                    wire.name(),
                    largest.tensor,
                    tolerance.tensor,
                    largest.row,
                    tolerance.row,
                    largest.factor,
                    tolerance.factor,
                    if largest.is_within(tolerance) { "" } else { "  EXCEEDED" },
                );
            }
        }
    }
}

/// Returns the largest differences between the results of the servers and those of the first one.
fn largest(checkpoint: &Checkpoint, digest: &str, servers: &[Server], wire: DType) -> Difference {
    let results: Vec<Vec<HostTensor>> =
        servers.iter().map(|server| results(checkpoint, digest, server, wire)).collect();
    let mut largest = Difference::default();
    for other in &results[1..] {
        for (found, expected) in other.iter().zip(&results[0]) {
            let difference = Difference::of_tensors(found, expected, 0.0);
            largest = Difference {
                tensor: largest.tensor.max(difference.tensor),
                row: largest.row.max(difference.row),
                factor: largest.factor.max(difference.factor),
            };
        }
    }
    largest
}

/// Returns outputs and gradients of all steps.
fn results(checkpoint: &Checkpoint, digest: &str, server: &Server, wire: DType) -> Vec<HostTensor> {
    let (n_blocks, hidden) = (checkpoint.config().n_blocks, checkpoint.config().hidden);
    let expected = ModelExpectation { digest: digest.to_owned(), n_blocks, hidden, tunables: Vec::new() };
    let options = RemoteOptions { wire_dtype: Some(wire), deterministic: true, ..RemoteOptions::default() };
    let remote = RemoteSequential::connect(vec![server.endpoint.clone()], expected, options).expect("connected");
    let (n_blocks, hidden) = (n_blocks as i64, hidden as i64);
    let normal = |size: &[i64]| Tensor::randn(size, (Kind::Float, tch::Device::Cpu));
    let mut results = Vec::new();
    for step in 0..STEPS {
        tch::manual_seed(step);
        let prompts = normal(&[PREFIX_LEN, hidden]).set_requires_grad(true);
        let deep = (normal(&[n_blocks, PREFIX_LEN, hidden]) * 0.1).set_requires_grad(true);
        let rows = Ragged::from_lengths([3, 17, 40, 1, 9]).expect("rows");
        let tokens = normal(&[rows.n_tokens() as i64, hidden]).set_requires_grad(true);
        let tunables = vec![Tunable::new("deep_prompts", deep.shallow_clone())];
        let session = remote.tune(tunables).expect("a session");
        let output = session.forward(Some(&prompts), &tokens, &rows, Want::Tokens).expect("an output");
        // A gradient that does not depend on the output.
        let weights = normal(&output.size());
        remote.backward(&(&output * weights).sum(Kind::Float)).expect("gradients");
        let tensors = [output, prompts.grad(), deep.grad(), tokens.grad()];
        results.extend(tensors.iter().map(|tensor| to_host(tensor, DType::F32).expect("numbers")));
    }
    results
}
