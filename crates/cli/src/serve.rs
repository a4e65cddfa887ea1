//! `sepal serve`.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use sepal_assets::{Assets, Kind};
use sepal_blocks::BlockStack;
use sepal_checkpoint::Checkpoint;
use sepal_core::Span;
use sepal_server::{BlockServer, Limits, ModelIdentity, ServerOptions};

use crate::args::ServeArgs;
use crate::{Failure, print};

/// Serves until it is told to stop (Ctrl-C, SIGTERM), then finishes what clients have begun.
pub(crate) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    start_with_sleeping_threads();
    let asset = Assets::from_env().fetch_first(&args.model, Kind::Model, &mut |line| eprintln!("{line}"))?;
    let checkpoint = Checkpoint::open(&asset.path)?;
    let whole = Span::new(0, checkpoint.config().n_blocks)?;
    let span = args.blocks.unwrap_or(whole);
    if !whole.covers(span) {
        return Err(format!("serve blocks {span}: the model has blocks {whole}").into());
    }
    let stack = BlockStack::load(&checkpoint, span)?;
    let identity = ModelIdentity::of(&checkpoint);
    let limits = Limits {
        max_rows: args.max_rows,
        max_tokens: args.max_tokens,
        max_message_bytes: args.max_message_mb << 20,
        tape_budget_bytes: args.tape_budget_mb << 20,
    };
    let pace = args.pace_us.map(Duration::from_micros);
    let options = ServerOptions { limits, threads: args.threads, pace, ..ServerOptions::default() };
    let (stop, stopped) = mpsc::channel();
    let told = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        // Whoever says it twice does not want to wait.
        if told.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        // The receiver is there until the process ends.
        let _ = stop.send(());
    })?;
    let server = BlockServer::listen(stack, identity, options, args.listen.clone())?;
    print(&format!("serving blocks {span} of {} ({}) on {}", asset.source, checkpoint.describe(), server.endpoint()))?;
    // Errors only if the handler is gone, which it is not while the process lives.
    let _ = stopped.recv();
    eprintln!("leaving: nothing new is taken; what clients have begun here is finished within {} s", args.drain_s);
    server.drain(Duration::from_secs(args.drain_s));
    Ok(())
}

/// Starts the program anew with threads that sleep while they wait for each other, which is decided when libgomp is
/// loaded. Servers that share a machine spin against each other otherwise: three on two cores took five times as long
/// for a step as one, against one and a half times as long; one server alone loses two per cent.
fn start_with_sleeping_threads() {
    const POLICY: &str = "OMP_WAIT_POLICY";
    if std::env::var_os(POLICY).is_some() {
        return;
    }
    let again = |program| Command::new(program).args(std::env::args_os().skip(1)).env(POLICY, "passive").exec();
    // Only an error comes back, and then it goes on as it is.
    match std::env::current_exe().map(again) {
        Ok(error) | Err(error) => eprintln!("could not start anew with {POLICY}=passive: {error}"),
    }
}
