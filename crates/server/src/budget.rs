//! Bytes of the tunables and cached prefixes of clients, within limits for each client and for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use sepal_wire::{Failure, FailureCode, Limits};

use crate::lock::lock;
use crate::queue::ClientId;

/// Budget that all connections of a server share.
#[derive(Debug, Clone)]
pub(crate) struct ByteBudget {
    client_bytes: u64,
    shared_bytes: u64,
    usage: Arc<Mutex<Usage>>,
}

#[derive(Debug, Default)]
struct Usage {
    total: u64,
    clients: HashMap<ClientId, u64>,
}

/// Bytes that are reserved until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: ByteBudget,
    client: ClientId,
    bytes: u64,
}

impl ByteBudget {
    pub(crate) fn new(limits: &Limits) -> Self {
        let Limits { client_bytes, shared_bytes, .. } = *limits;
        Self { client_bytes, shared_bytes, usage: Arc::default() }
    }

    /// Reserves bytes for a client.
    ///
    /// # Errors
    /// A failure that sends the client elsewhere if the bytes can never fit, or back later if others must be freed first.
    pub(crate) fn reserve(&self, client: ClientId, bytes: u64) -> Result<Reservation, Failure> {
        let (client_limit, shared_limit) = (self.client_bytes, self.shared_bytes);
        self.check_fits(bytes)?;
        let mut usage = lock(&self.usage);
        let used = usage.clients.get(&client).copied().unwrap_or(0);
        if used + bytes > client_limit || usage.total + bytes > shared_limit {
            let message = format!(
                "tunables and prefixes of {bytes} bytes: this server keeps {used} of {client_limit} bytes of this client \
                 and {} of {shared_limit} of all",
                usage.total
            );
            return Err(Failure::new(FailureCode::Overloaded, message));
        }
        usage.total += bytes;
        usage.clients.insert(client, used + bytes);
        Ok(Reservation { budget: self.clone(), client, bytes })
    }

    /// Reserves bytes that are freed only after those of `other`, of the same client.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve), for both together.
    pub(crate) fn reserve_beside(&self, other: &Reservation, bytes: u64) -> Result<Reservation, Failure> {
        self.check_fits(other.bytes + bytes)?;
        self.reserve(other.client, bytes)
    }

    /// Refuses bytes that can never fit.
    fn check_fits(&self, bytes: u64) -> Result<(), Failure> {
        let limit = self.client_bytes.min(self.shared_bytes);
        if bytes <= limit {
            return Ok(());
        }
        let message = format!("tunables and prefixes of {bytes} bytes: this server keeps {limit} bytes of one client");
        Err(Failure::new(FailureCode::NoMemory, message))
    }

    /// Bytes that are reserved.
    pub(crate) fn used(&self) -> u64 {
        lock(&self.usage).total
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut usage = lock(&self.budget.usage);
        usage.total -= self.bytes;
        let left = usage.clients.get(&self.client).map_or(0, |used| used - self.bytes);
        match left {
            0 => drop(usage.clients.remove(&self.client)),
            left => drop(usage.clients.insert(self.client, left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_limits_each_client_and_all_of_them() {
        let budget = ByteBudget::new(&Limits { client_bytes: 60, shared_bytes: 100, ..Limits::default() });
        let code = |client, bytes| budget.reserve(ClientId(client), bytes).map(drop).map_err(|failure| failure.code);
        let first = budget.reserve(ClientId(1), 40).expect("room");
        assert_eq!(code(1, 30), Err(FailureCode::Overloaded), "70 of 60");
        assert_eq!(code(2, 61), Err(FailureCode::NoMemory), "never fits");
        let beside = |bytes| budget.reserve_beside(&first, bytes).map(drop).map_err(|failure| failure.code);
        assert_eq!((beside(20), beside(21)), (Ok(()), Err(FailureCode::NoMemory)), "never fits beside the first");
        let second = budget.reserve(ClientId(2), 60).expect("room");
        assert_eq!(code(3, 1), Err(FailureCode::Overloaded), "101 of 100");
        drop(first);
        assert_eq!(code(3, 40), Ok(()));
        drop(second);
        assert_eq!(budget.used(), 0);
    }
}
