//! `sepal swarm grant` and `revoke`: secrets and tickets of lesser rights, and their end.

use std::path::Path;

use sepal_discover::p2p::Ticket;
use sepal_swarm::{Rights, Secret};

use crate::args::{GrantArgs, RevokeArgs};
use crate::output::{Failure, print};

/// Writes the secret or ticket of lesser rights to a file.
pub(crate) fn grant(args: &GrantArgs) -> Result<(), Failure> {
    if args.rights == Rights::Server {
        return Err("derive the rights of a server: servers share one secret; copy their file".into());
    }
    if [&args.secret_file, &args.ticket].into_iter().flatten().any(|path| is_same_file(path, &args.out)) {
        return Err("derive a secret into the servers' own file, which it would replace: give another --out".into());
    }
    let epoch = match (&args.secret_file, &args.ticket) {
        (Some(path), _) => {
            let founders = Secret::read_founders(path)?;
            let secret = founders.derive(args.rights).ok_or("derive a secret from one that is not the servers'")?;
            secret.write(&args.out)?;
            secret.epoch()
        }
        (None, Some(path)) => {
            let ticket = Ticket::read_file(path)?.derive(args.rights).ok_or_else(|| not_the_servers(path))?;
            write_ticket(&ticket, &args.out)?;
            ticket.epoch()
        }
        (None, None) => return Err("derive a secret: give --secret-file or --ticket".into()),
    };
    print(&format!("{}: rights `{}`, epoch {epoch}", args.out.display(), args.rights))
}

/// Moves the secret or ticket of the servers to its next epoch.
pub(crate) fn revoke(args: &RevokeArgs) -> Result<(), Failure> {
    let (path, epoch, servers) = match (&args.secret_file, &args.ticket) {
        (Some(path), _) => {
            let next = Secret::read_founders(path)?.next_epoch().ok_or("begin another epoch: none is left")?;
            next.write(path)?;
            (path, next.epoch(), "copy the file to all servers")
        }
        (None, Some(path)) => {
            let next = Ticket::read_file(path)?.next_epoch().ok_or_else(|| not_the_servers(path))?;
            write_ticket(&next, path)?;
            (path, next.epoch(), "copy the file to all servers within ten minutes")
        }
        (None, None) => return Err("revoke a secret: give --secret-file or --ticket".into()),
    };
    print(&format!("{}: epoch {epoch}; {servers}, and derive new ones for clients", path.display()))
}

fn write_ticket(ticket: &Ticket, path: &Path) -> Result<(), Failure> {
    let failed = |error| format!("write the ticket into {}: {error}", path.display());
    Ok(ticket.write(path).map_err(failed)?)
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let found = |path: &Path| path.canonicalize().ok();
    found(one).is_some_and(|one| found(other) == Some(one))
}

fn not_the_servers(path: &Path) -> String {
    format!("change {}: this needs the ticket of the servers", path.display())
}
