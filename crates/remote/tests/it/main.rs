//! Clients of servers that misbehave.

mod blame;
mod fake_server;
