//! Hostile clients and lying servers as processes.
//!
//! ```text
//! hostile attack NAME ADDR [NUMBER]...   attacks ADDR, prints the answers, and keeps its connections until stdin ends
//! hostile lie NAME LISTEN SERVER [N]     listens, and lies about the answers of SERVER after N true ones, until stdin ends
//! hostile names                          prints the names of attacks, with their numbers, and of lies
//! ```

use std::env;
use std::io::{self, Read};
use std::process::ExitCode;

use sepal_integration_tests::hostile::{self, Attack, Drip};
use sepal_integration_tests::liar::{Lie, LyingProxy};

/// Name of an attack, the names of its numbers with their defaults, and its start.
type Entry = (&'static str, &'static [(&'static str, usize)], fn(&str, &[usize]) -> Attack);

const ATTACKS: [Entry; 28] = [
    ("one-row", &[("tokens", 16_384)], |addr, n| hostile::one_row(addr, n[0])),
    ("abandoned-row", &[("times", 4), ("tokens", 16_384)], |addr, n| hostile::abandoned_row(addr, n[0], n[1])),
    ("uploads", &[("times", 40), ("megabytes", 64)], |addr, n| hostile::uploads(addr, n[0], n[1])),
    ("sessions", &[("times", 10_000)], |addr, n| hostile::tuned_sessions(addr, n[0])),
    ("deliveries", &[("times", 300), ("rank", 500_000)], |addr, n| hostile::deliveries(addr, n[0], n[1])),
    ("tapes", &[("times", 100), ("positions", 4096)], |addr, n| hostile::stored_tapes(addr, n[0], n[1])),
    ("dead-tapes", &[("times", 20), ("positions", 4096)], |addr, n| {
        hostile::tapes_of_dead_connections(addr, n[0], n[1])
    }),
    ("prefixes", &[("times", 20), ("positions", 4096)], |addr, n| hostile::cached_prefixes(addr, n[0], n[1])),
    ("waiting-forwards", &[("times", 20_000)], |addr, n| hostile::waiting_forwards(addr, n[0])),
    ("queued-calls", &[("times", 900), ("positions", 16_000)], |addr, n| hostile::queued_calls(addr, n[0], n[1])),
    ("crowded-calls", &[("connections", 6), ("times", 256)], |addr, n| hostile::crowded_calls(addr, n[0], n[1])),
    ("long-addresses", &[("times", 100), ("bytes", 4_000_000)], |addr, n| hostile::long_addresses(addr, n[0], n[1])),
    ("small-calls", &[("times", 100_000)], |addr, n| hostile::small_calls(addr, n[0])),
    ("slow-relays", &[("times", 200)], |addr, n| hostile::slow_relays(addr, n[0])),
    ("cancelled-calls", &[("times", 100), ("positions", 4096)], |addr, n| hostile::cancelled_calls(addr, n[0], n[1])),
    ("describe-flood", &[("times", 50_000)], |addr, n| hostile::describe_flood(addr, n[0])),
    ("broken-promises", &[("times", 2000)], |addr, n| hostile::broken_promises(addr, n[0])),
    ("relays", &[("ports", 200)], |addr, n| hostile::relays_to(addr, closed_ports(n[0]))),
    ("empty-rows", &[("times", 20), ("rows", 1_000_000)], |addr, n| hostile::empty_rows(addr, n[0], n[1])),
    ("unread-answers", &[("times", 100), ("positions", 16_000)], |addr, n| hostile::unread_answers(addr, n[0], n[1])),
    ("slow-reads", &[("times", 100), ("positions", 16_000)], |addr, n| hostile::slow_reads(addr, n[0], n[1])),
    ("silent", &[("connections", 1100)], |addr, n| hostile::silent_connections(addr, n[0])),
    ("half-frames", &[("connections", 20), ("megabytes", 32)], |addr, n| hostile::half_frames(addr, n[0], n[1])),
    ("dripping", &[("connections", 600), ("kind", 0)], |addr, n| {
        let kinds = [Drip::Frame, Drip::HttpHeaders, Drip::HttpBody];
        hostile::dripping_connections(addr, n[0], kinds[n[1].min(2)])
    }),
    ("mutated-frames", &[("frames", 10_000), ("seed", 1)], |addr, n| hostile::mutated_frames(addr, n[0], n[1] as u64)),
    ("unread-http", &[("connections", 100)], |addr, n| hostile::unread_http(addr, n[0], "/metrics")),
    ("many-requests", &[("clients", 200), ("times", 50)], |addr, n| hostile::many_requests(addr, n[0], n[1])),
    ("bad-http", &[("requests", 500), ("seed", 1)], |addr, n| hostile::bad_http(addr, n[0], n[1] as u64)),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("hostile: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<(), String> {
    match args {
        ["names"] => {
            for (name, numbers, _) in ATTACKS {
                let numbers: Vec<String> = numbers.iter().map(|(name, default)| format!("{name}={default}")).collect();
                println!("attack {name} {}", numbers.join(" "));
            }
            Lie::ALL.iter().for_each(|lie| println!("lie {lie}"));
            Ok(())
        }
        ["attack", name, addr, numbers @ ..] => {
            let (_, defaults, start) =
                ATTACKS.into_iter().find(|(known, ..)| known == name).ok_or_else(|| format!("no attack `{name}`"))?;
            let number = |(index, (_, default)): (usize, &(&str, usize))| match numbers.get(index) {
                Some(text) => text.parse::<usize>().map_err(|error| format!("`{text}`: {error}")),
                None => Ok(*default),
            };
            let numbers = defaults.iter().enumerate().map(number).collect::<Result<Vec<usize>, String>>()?;
            let attack = start(addr, &numbers);
            println!("{}", attack.answers());
            until_stdin_ends()
        }
        ["lie", name, listen, server, truths @ ..] => {
            let truths = truths
                .first()
                .map_or(Ok(0), |text| text.parse::<u64>().map_err(|error| format!("`{text}`: {error}")))?;
            let proxy = LyingProxy::listen(name.parse()?, listen, server, truths);
            println!("lying on {}", proxy.addr);
            until_stdin_ends()?;
            println!("{} lies in {} calls", proxy.lies(), proxy.calls());
            Ok(())
        }
        _ => Err("use `attack NAME ADDR [NUMBER]...`, `lie NAME LISTEN SERVER [N]` or `names`".to_owned()),
    }
}

/// Returns addresses of this machine at which usually no program listens.
fn closed_ports(n: usize) -> Vec<String> {
    (1100..1100 + n).map(|port| format!("127.0.0.3:{port}")).collect()
}

fn until_stdin_ends() -> Result<(), String> {
    io::stdin().read_to_end(&mut Vec::new()).map(drop).map_err(|error| error.to_string())
}
