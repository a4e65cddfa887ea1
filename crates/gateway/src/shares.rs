//! Shares of a limit that all clients have together, by their addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Use of a limit by address. An address that is unknown counts as one of its own.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    total: usize,
    by_address: HashMap<Option<IpAddr>, usize>,
}

impl Shares {
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// True if `n` more do not exceed `max`, or at least not an equal share of it for this address. So an address that has all
    /// of it does not keep out another.
    pub(crate) fn has_room(&self, address: Option<IpAddr>, n: usize, max: usize) -> bool {
        let own = self.by_address.get(&address).copied().unwrap_or(0);
        self.total + n <= max || own + n <= max / (self.by_address.len() + 1)
    }

    pub(crate) fn add(&mut self, address: Option<IpAddr>, n: usize) {
        self.total += n;
        *self.by_address.entry(address).or_default() += n;
    }

    pub(crate) fn remove(&mut self, address: Option<IpAddr>, n: usize) {
        self.total -= n;
        if let Some(own) = self.by_address.get_mut(&address) {
            *own -= n;
            if *own == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

/// Requests in progress, up to a maximum.
#[derive(Debug)]
pub(crate) struct Slots {
    max: usize,
    shares: Mutex<Shares>,
}

/// Request in progress, until this is dropped.
#[derive(Debug)]
pub(crate) struct Slot<'a> {
    slots: &'a Slots,
    address: Option<IpAddr>,
}

impl Slots {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, shares: Mutex::default() }
    }

    /// Begins a request; `None` if too many are in progress.
    pub(crate) fn try_acquire(&self, address: Option<IpAddr>) -> Option<Slot<'_>> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.has_room(address, 1, self.max).then(|| {
            shares.add(address, 1);
            Slot { slots: self, address }
        })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.slots.shares.lock().unwrap_or_else(PoisonError::into_inner).remove(self.address, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn address_with_all_slots_does_not_keep_out_another() {
        let slots = Slots::new(8);
        let acquire = |last| std::iter::from_fn(|| slots.try_acquire(address(last))).collect::<Vec<Slot<'_>>>();
        let first = acquire(1);
        assert_eq!(first.len(), 8, "alone, an address may have all");
        let second = acquire(2);
        assert_eq!((second.len(), acquire(1).len()), (2, 0));
        drop(first);
        assert_eq!(acquire(3).len(), 6);
        drop(second);
        let shares = slots.shares.lock().expect("a lock");
        assert_eq!((shares.total(), shares.by_address.len()), (0, 0));
    }
}
