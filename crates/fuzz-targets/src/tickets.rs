//! Tickets of swarms.

use data_encoding::BASE32_NOPAD;
use sepal_discover::p2p::Ticket;
use sepal_swarm::Secret;

/// Beginnings of the tickets of servers in the first epoch, and of all others.
const PREFIXES: [&str; 2] = ["sepal1", "sepal2"];

/// A ticket, as text and as the bytes in one of each kind with a valid checksum.
pub(crate) fn tickets(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        parse(text);
    }
    let checked = [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat();
    for prefix in PREFIXES {
        parse(&format!("{prefix}{}", BASE32_NOPAD.encode(&checked).to_ascii_lowercase()));
    }
}

fn parse(text: &str) {
    if let Ok(ticket) = text.parse::<Ticket>() {
        let next = ticket.next_epoch().map(|next| next.to_string());
        let _ = (ticket.to_string(), ticket.rights(), ticket.epoch(), next);
    }
}

/// Secrets without members, and texts that are no tickets.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let no_members = [&[7; 32][..], &[0]].concat();
    let texts = [b"sepal1".to_vec(), b"sepal1aaaaaaaa".to_vec(), vec![0xff; 40]];
    std::iter::once(no_members).chain(texts).chain(ticket_of_an_epoch()).collect()
}

/// Bytes of a ticket of the second epoch: the text of its secret after the length, two names, and no members.
fn ticket_of_an_epoch() -> Option<Vec<u8>> {
    let secret = Secret::from_founders_key([7; 32], 1).ok()?.to_text();
    // Seven bits of the length in each byte, the lowest first.
    let len = [u8::try_from(secret.len() & 0x7f).ok()? | 0x80, u8::try_from(secret.len() >> 7).ok()?];
    Some([&len[..], secret.as_bytes(), &[7; 32], &[7; 8], &[0]].concat())
}
