//! Tickets of swarms.

use data_encoding::BASE32_NOPAD;
use sepal_discover::p2p::Ticket;

const PREFIX: &str = "sepal1";

/// A ticket, as text and as the bytes in one with a valid checksum.
pub(crate) fn tickets(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        parse(text);
    }
    let checked = [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat();
    parse(&format!("{PREFIX}{}", BASE32_NOPAD.encode(&checked).to_ascii_lowercase()));
}

fn parse(text: &str) {
    if let Ok(ticket) = text.parse::<Ticket>() {
        let _ = ticket.to_string();
    }
}

/// A secret without members, and texts that are no tickets.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let no_members = [&[7; 32][..], &[0]].concat();
    vec![no_members, b"sepal1".to_vec(), b"sepal1aaaaaaaa".to_vec(), vec![0xff; 40]]
}
