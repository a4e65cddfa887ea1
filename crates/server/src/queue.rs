//! Who is next: fair between clients, first come first served for each of them.

use std::collections::HashMap;

/// A client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClientId(pub(crate) u64);

/// Jobs that wait, by start-time fair queueing: a job's tag is when it would start if all clients that wait had an
/// equal share of the machine, and the lowest tag is next. A client that was idle has saved up nothing.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    waiting: Vec<Entry<T>>,
    /// The tag of the job that was taken last.
    now: u64,
    /// When each client's last job would end.
    ends: HashMap<ClientId, u64>,
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    client: ClientId,
    tag: u64,
    number: u64,
    item: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { waiting: Vec::new(), now: 0, ends: HashMap::new(), next: 0 }
    }
}

impl<T> FairQueue<T> {
    /// Adds a job that costs so much.
    pub(crate) fn push(&mut self, client: ClientId, cost: usize, item: T) {
        let now = self.now;
        self.ends.retain(|_, end| *end > now);
        let tag = self.ends.get(&client).copied().unwrap_or(now).max(now);
        self.ends.insert(client, tag + cost as u64);
        self.waiting.push(Entry { client, tag, number: self.next, item });
        self.next += 1;
    }

    /// Takes the next job, and with it the first job of each other client, in their order, as far as `joins` lets it:
    /// it is given those taken so far and the candidate.
    pub(crate) fn take(&mut self, joins: impl Fn(&[T], &T) -> bool) -> Vec<T> {
        self.waiting.sort_by_key(|entry| (entry.tag, entry.number));
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let first = self.waiting.remove(0);
        self.now = self.now.max(first.tag);
        let (mut clients, mut taken) = (vec![first.client], vec![first.item]);
        let mut at = 0;
        while at < self.waiting.len() {
            let candidate = &self.waiting[at];
            let is_new = !clients.contains(&candidate.client);
            // A client's jobs keep their order, so only its first is asked.
            if is_new {
                clients.push(candidate.client);
            }
            if is_new && joins(&taken, &candidate.item) {
                taken.push(self.waiting.remove(at).item);
            } else {
                at += 1;
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: fn(&[u32], &u32) -> bool = |_, _| false;

    #[test]
    fn one_client_is_served_in_order() {
        let mut queue = FairQueue::default();
        (0..5).for_each(|i| queue.push(ClientId(1), 10, i));
        let order: Vec<u32> = (0..5).flat_map(|_| queue.take(ALONE)).collect();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert!(queue.take(ALONE).is_empty());
    }

    #[test]
    fn many_jobs_of_one_client_do_not_keep_another_waiting() {
        let mut queue = FairQueue::default();
        (0..4).for_each(|i| queue.push(ClientId(1), 10, i));
        assert_eq!(queue.take(ALONE), [0]);
        queue.push(ClientId(2), 10, 10);
        queue.push(ClientId(2), 10, 11);
        let order: Vec<u32> = (0..5).flat_map(|_| queue.take(ALONE)).collect();
        assert_eq!(order, [10, 1, 11, 2, 3]);
    }

    #[test]
    fn small_jobs_go_more_often_than_large_ones() {
        let mut queue = FairQueue::default();
        (0..2).for_each(|i| queue.push(ClientId(1), 30, i));
        (10..16).for_each(|i| queue.push(ClientId(2), 10, i));
        let order: Vec<u32> = (0..6).flat_map(|_| queue.take(ALONE)).collect();
        assert_eq!(order, [0, 10, 11, 12, 1, 13]);
    }

    #[test]
    fn the_first_of_each_client_may_join() {
        let mut queue = FairQueue::default();
        for (client, item) in [(1, 1), (1, 3), (2, 5), (2, 7), (3, 2), (4, 9)] {
            queue.push(ClientId(client), 10, item);
        }
        let odd = |taken: &[u32], item: &u32| taken.len() < 3 && item % 2 == 1;
        assert_eq!(queue.take(odd), [1, 5, 9], "an even one and the second of a client stay");
        assert_eq!(queue.take(ALONE), [2]);
        assert_eq!(queue.take(odd), [3, 7]);
    }
}
