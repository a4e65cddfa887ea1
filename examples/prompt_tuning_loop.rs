//! Prompt tuning by hand: soft prompts and a linear head, trained through remote blocks by an ordinary loop.
//!
//! `prompt_tuning_loop MODEL [HOST:PORT...]`: MODEL is a folder with a Hugging Face model. Without servers, the blocks run
//! on a server inside this process.

use std::error::Error;

use sepal_blocks::{BlockStack, Ends};
use sepal_checkpoint::Checkpoint;
use sepal_core::{Ragged, Span, Want};
use sepal_nn::Parameters;
use sepal_optim::{AdamW, AdamWConfig, Optimizer};
use sepal_remote::{ModelExpectation, RemoteOptions, RemoteSequential};
use sepal_server::{BlockServer, ModelIdentity, ServerOptions};
use sepal_swarm::Endpoint;
use tch::{Device, Kind, Tensor};

const ROWS: [(&str, i64); 4] =
    [("the film was warm and funny", 1), ("the plot is dull", 0), ("a clever scene", 1), ("very boring and flat", 0)];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let checkpoint = Checkpoint::open(args.next().ok_or("name the folder of a model")?)?;
    let (config, tokenizer, ends) = (checkpoint.config(), checkpoint.tokenizer()?, Ends::load(&checkpoint)?);
    let parse = |server: String| -> Result<Endpoint, Box<dyn Error>> { Ok(Endpoint::Addr(server.parse()?)) };
    let mut servers = args.map(parse).collect::<Result<Vec<Endpoint>, _>>()?;
    let local_server = if servers.is_empty() { Some(start_server(&checkpoint)?) } else { None };
    servers.extend(local_server.iter().map(|server| server.endpoint().clone()));
    let (digest, n_blocks, hidden) = (checkpoint.digest().to_owned(), config.n_blocks, config.hidden);
    let expected = ModelExpectation { digest, n_blocks, hidden, tunables: Vec::new() };
    let remote = RemoteSequential::connect(servers, expected, RemoteOptions::default())?;

    // Everything that trains: eight soft prompts and a linear head for two classes.
    let mut params = Parameters::new();
    let normal = |rows: i64| Tensor::randn([rows, config.hidden as i64], (Kind::Float, Device::Cpu)) * 0.02;
    let prompts = params.add("prompts", &normal(8))?; // [8, hidden]
    let score = params.add("score.weight", &normal(2))?; // [2, hidden]
    let mut optimizer = AdamW::new(AdamWConfig::default());

    // One ragged batch: rows lie end to end, without padding.
    let mut ids: Vec<i64> = Vec::new();
    let mut lengths = Vec::new();
    for (text, _) in ROWS {
        let tokens = tokenizer.encode_plain(text)?;
        lengths.push(tokens.len());
        ids.extend(tokens.into_iter().map(i64::from));
    }
    let rows = Ragged::from_lengths(lengths)?;
    let tokens = ends.embed(&Tensor::from_slice(&ids))?; // [n_tokens, hidden]
    let labels = Tensor::from_slice(&ROWS.map(|(_, label)| label)); // [rows]

    for step in 1..=30 {
        params.zero_grad();
        let session = remote.tune(Vec::new())?; // no tunables inside the blocks
        let pooled = session.forward(Some(&prompts), &tokens, &rows, Want::LastOfRows)?; // [rows, hidden]
        let logits = ends.final_norm(&pooled)?.f_linear(&score, None::<Tensor>)?; // [rows, 2]
        let loss = logits.cross_entropy_for_logits(&labels);
        remote.backward(&loss)?;
        optimizer.step(&params, 0.02)?;
        if step % 10 == 0 {
            println!("step {step}: loss {:.4}, {} bytes sent", f64::try_from(&loss)?, remote.traffic().up());
        }
    }
    Ok(())
}

fn start_server(checkpoint: &Checkpoint) -> Result<BlockServer, Box<dyn Error>> {
    let stack = BlockStack::load(checkpoint, Span::new(0, checkpoint.config().n_blocks)?)?;
    Ok(BlockServer::embedded(stack, ModelIdentity::from_checkpoint(checkpoint), ServerOptions::default())?)
}
