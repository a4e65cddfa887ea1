//! `sepal swarm`: the servers of a swarm.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{self, Write as _};
use std::time::Duration;

use sepal_core::{Span, visible, visible_json};
use sepal_discover::lan::Lan;
use sepal_discover::p2p::{Identity, Node, NodeOptions, Ticket};
use sepal_discover::{Discovery, wait_until_settled};
use sepal_survey::{SurveyedServer, survey};
use sepal_swarm::{Addr, ClientSecurity, Endpoint};
use serde_json::{Value, json};

use crate::args::{SwarmArgs, SwarmCommand};
use crate::grants::{grant, revoke};
use crate::output::{Failure, print, print_json, without_foreign_escapes};

const PAUSE: Duration = Duration::from_secs(1);

pub(crate) fn swarm(command: &SwarmCommand) -> Result<(), Failure> {
    match command {
        SwarmCommand::Status(args) => {
            let text = SwarmView::open(args)?.look()?;
            if args.json { print_json(&text) } else { print(&text) }
        }
        SwarmCommand::Watch(args) => watch(&SwarmView::open(args)?),
        SwarmCommand::Grant(args) => grant(args),
        SwarmCommand::Revoke(args) => revoke(args),
    }
}

fn watch(view: &SwarmView<'_>) -> Result<(), Failure> {
    loop {
        let text = view.look()?;
        // The escape sequence moves the cursor to the top left and clears the screen.
        let text = match view.args.json {
            true => visible_json(&text).into_owned(),
            false => format!("\x1b[H\x1b[J{}", without_foreign_escapes(&text)),
        };
        match writeln!(io::stdout(), "{text}") {
            // The reader has ended.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        std::thread::sleep(PAUSE);
    }
}

/// Servers to look at, listed or found.
struct SwarmView<'a> {
    args: &'a SwarmArgs,
    security: Option<ClientSecurity>,
    found: Option<Box<dyn Discovery>>,
}

impl<'a> SwarmView<'a> {
    fn open(args: &'a SwarmArgs) -> Result<Self, Failure> {
        let security = args.secret_file.as_deref().map(ClientSecurity::from_file).transpose()?;
        let found = discovery(args, security.clone())?;
        Ok(Self { args, security, found })
    }

    fn look(&self) -> Result<String, Failure> {
        let endpoint = |addr: &Addr| match &self.security {
            Some(security) => security.endpoint(addr.clone(), None),
            None => Endpoint::Addr(addr.clone()),
        };
        let endpoints: Vec<Endpoint> = match &self.found {
            Some(found) => found.members().into_iter().map(|member| member.endpoint).collect(),
            None => self.args.servers.iter().map(endpoint).collect(),
        };
        let servers = survey(&endpoints, Duration::from_millis(self.args.timeout_ms))?;
        let models = models(&servers);
        Ok(if self.args.json { to_json(&servers, &models).to_string() } else { table(&servers, &models) })
    }
}

/// Returns a settled discovery, or `None` if the servers are listed.
fn discovery(args: &SwarmArgs, security: Option<ClientSecurity>) -> Result<Option<Box<dyn Discovery>>, Failure> {
    const NEIGHBOUR: Duration = Duration::from_secs(10);
    let found: Box<dyn Discovery> = if let Some(text) = &args.ticket {
        let (ticket, identity) = (Some(Ticket::read(text)?), Identity::ephemeral());
        let node = Node::start(NodeOptions { identity, ticket, bind: args.bind, relays: Vec::new() })?;
        if let Some(file) = Ticket::file(text) {
            node.follow_ticket(file);
        }
        if !node.wait_for_neighbour(NEIGHBOUR) {
            return Err("look at the swarm: no member that the ticket names has answered; ask for a newer one".into());
        }
        Box::new(node)
    } else if args.lan {
        Box::new(Lan::start(args.interface.as_deref(), security)?)
    } else {
        return Ok(None);
    };
    wait_until_settled(&*found);
    Ok(Some(found))
}

struct ModelCoverage {
    n_blocks: usize,
    /// Spans of the servers that accept work.
    spans: Vec<Span>,
}

impl ModelCoverage {
    fn holes(&self) -> Vec<Span> {
        sepal_route::uncovered_spans(&self.spans, self.n_blocks)
    }

    /// Returns the least and the greatest number of servers of a block.
    fn depth(&self) -> (usize, usize) {
        let coverage = sepal_route::coverage(&self.spans, self.n_blocks);
        (coverage.iter().copied().min().unwrap_or(0), coverage.iter().copied().max().unwrap_or(0))
    }
}

fn models(servers: &[SurveyedServer]) -> BTreeMap<String, ModelCoverage> {
    let mut models = BTreeMap::new();
    for (info, _) in servers.iter().filter_map(|server| server.answer.as_ref().ok()) {
        let model = models
            .entry(info.model_digest.clone())
            .or_insert_with(|| ModelCoverage { n_blocks: info.n_blocks, spans: Vec::new() });
        if !info.draining {
            model.spans.push(info.span);
        }
    }
    models
}

fn table(servers: &[SurveyedServer], models: &BTreeMap<String, ModelCoverage>) -> String {
    let width = servers.iter().map(|server| label(server).len()).max().unwrap_or(0).max(6);
    let mut text = format!(
        "{:width$}  {:>9}  {:>12}  {:>5}  {:>16}  {:>8}  {:>10}  model\n",
        "server", "blocks", "tokens/s", "queue", "tapes", "receipts", "round trip"
    );
    for server @ SurveyedServer { answer, .. } in servers {
        let server = label(server);
        let _ = match answer {
            Ok((info, round_trip)) => {
                let load = info.load;
                // Forward through all blocks of the server.
                let speed = match load.rate {
                    0.0 => "-".to_owned(),
                    rate => format!("{:.0}", 1.0 / (rate * info.span.len() as f64)),
                };
                let mb = |bytes: u64| bytes >> 20;
                let tapes = format!("{}, {}/{} MB", load.tapes, mb(load.tape_bytes), mb(info.limits.tape_budget_bytes));
                let receipts = if info.key.is_some() { info.receipts.to_string() } else { "-".to_owned() };
                let state = if info.draining { " (leaving)" } else { "" };
                writeln!(
                    text,
                    "{server:width$}  {:>9}  {speed:>12}  {:>5}  {tapes:>16}  {receipts:>8}  {:>7.1} ms  {} {}{state}",
                    info.span.to_string(),
                    load.queue,
                    round_trip.as_secs_f64() * 1e3,
                    info.family,
                    short(&info.model_digest),
                )
            }
            Err(error) => writeln!(text, "{server:width$}  {}", visible(error)),
        };
    }
    for (digest, model) in models {
        let (least, most) = model.depth();
        let holes: Vec<String> = model.holes().iter().map(Span::to_string).collect();
        let coverage = match holes.as_slice() {
            [] if most == 1 => "every block on 1 server".to_owned(),
            [] if least == most => format!("every block on {most} servers"),
            [] => format!("every block on {least} to {most} servers"),
            holes => format!("nobody holds blocks {}", holes.join(", ")),
        };
        let _ = writeln!(text, "\nmodel {}: {} blocks, {coverage}", short(digest), model.n_blocks);
    }
    text.trim_end().to_owned()
}

/// Returns the endpoint of a server. The name for people comes before it, and then a long endpoint is shortened.
fn label(server: &SurveyedServer) -> String {
    const MAX_LEN: usize = 24;
    const PREFIX_LEN: usize = 12;
    let endpoint = server.endpoint.to_string();
    let Some(name) = server.answer.as_ref().ok().and_then(|(info, _)| info.name.as_ref()) else { return endpoint };
    match endpoint.get(..PREFIX_LEN) {
        Some(prefix) if endpoint.len() > MAX_LEN => format!("{name} ({prefix}...)"),
        _ => format!("{name} ({endpoint})"),
    }
}

/// Returns the first digits, and the formats of rounded weights and products.
fn short(digest: &str) -> String {
    let (hex, format) = digest.split_once('+').map_or((digest, None), |(hex, format)| (hex, Some(format)));
    let hex = hex.strip_prefix("sha256:").unwrap_or(hex);
    let hex = hex.get(..8).unwrap_or(hex);
    format.map_or_else(|| hex.to_owned(), |format| format!("{hex}+{format}"))
}

fn to_json(servers: &[SurveyedServer], models: &BTreeMap<String, ModelCoverage>) -> Value {
    let server = |SurveyedServer { endpoint, answer }: &SurveyedServer| match answer {
        Ok((info, round_trip)) => json!({
            "server": endpoint.to_string(),
            "name": info.name,
            "span": info.span,
            "model_digest": info.model_digest,
            "family": info.family,
            "weights": info.weights,
            "compute": info.compute_dtype,
            "software": info.software,
            "draining": info.draining,
            "queue": info.load.queue,
            "completed": info.load.completed,
            "seconds_per_token_block": info.load.rate,
            "key": info.key,
            "receipts": info.receipts,
            "tapes": info.load.tapes,
            "tape_bytes": info.load.tape_bytes,
            "tape_budget_bytes": info.limits.tape_budget_bytes,
            "round_trip_ms": round_trip.as_secs_f64() * 1e3,
        }),
        Err(error) => json!({ "server": endpoint.to_string(), "error": error }),
    };
    let model = |(digest, model): (&String, &ModelCoverage)| {
        json!({
            "digest": digest,
            "n_blocks": model.n_blocks,
            "servers_per_block": sepal_route::coverage(&model.spans, model.n_blocks),
            "holes": model.holes(),
        })
    };
    json!({
        "servers": servers.iter().map(server).collect::<Vec<_>>(),
        "models": models.iter().map(model).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spans: &[&str], expected: &[&str], depth: (usize, usize)) {
        let spans = spans.iter().map(|span| span.parse().expect("a span")).collect();
        let model = ModelCoverage { n_blocks: 10, spans };
        let holes: Vec<String> = model.holes().iter().map(Span::to_string).collect();
        assert_eq!((holes, model.depth()), (expected.iter().map(|&hole| hole.to_owned()).collect(), depth));
    }

    #[test]
    fn missing_blocks_are_reported_as_spans() {
        check(&[], &["0:10"], (0, 0));
        check(&["0:4", "2:10"], &[], (1, 2));
        check(&["1:3", "5:8"], &["0:1", "3:5", "8:10"], (0, 1));
    }
}
