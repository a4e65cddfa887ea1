//! Queue that is fair between clients and first come, first served within each.

use std::collections::HashMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClientId(pub(crate) u64);

impl ClientId {
    /// The server itself; clients count from 1.
    pub(crate) const SERVER: Self = Self(0);
}

/// Place of a job in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// Queue with start-time fair queueing. A job's tag is its start time if all waiting clients had equal shares of the machine;
/// the lowest tag is next. An idle client accumulates no credit.
pub(crate) struct FairQueue<T> {
    entries: Vec<Entry<T>>,
    /// Tag of the job that was taken last.
    now: u64,
    /// End time of each client's last job.
    ends: HashMap<ClientId, u64>,
    next_sequence: u64,
}

struct Entry<T> {
    client: ClientId,
    tag: u64,
    sequence: u64,
    item: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), now: 0, ends: HashMap::new(), next_sequence: 0 }
    }
}

impl<T> FairQueue<T> {
    pub(crate) fn push(&mut self, client: ClientId, cost: usize, item: T) -> Ticket {
        let now = self.now;
        self.ends.retain(|_, end| *end > now);
        let tag = self.ends.get(&client).copied().unwrap_or(now).max(now);
        self.ends.insert(client, tag + cost as u64);
        let ticket = Ticket(self.next_sequence);
        self.entries.push(Entry { client, tag, sequence: self.next_sequence, item });
        self.next_sequence += 1;
        ticket
    }

    /// Removes a job that has not been taken yet.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let index = self.entries.iter().position(|entry| entry.sequence == ticket.0)?;
        Some(self.entries.remove(index).item)
    }

    /// Removes all jobs.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        self.entries.drain(..).map(|entry| entry.item).collect()
    }

    /// Takes the next batch: the next job, and the first job of each other client, in order, for which `can_join` returns true
    /// given the batch so far and the job.
    pub(crate) fn take(&mut self, can_join: impl Fn(&[T], &T) -> bool) -> Vec<T> {
        self.entries.sort_by_key(|entry| (entry.tag, entry.sequence));
        if self.entries.is_empty() {
            return Vec::new();
        }
        let first = self.entries.remove(0);
        self.now = self.now.max(first.tag);
        let (mut clients, mut batch) = (vec![first.client], vec![first.item]);
        let mut index = 0;
        while index < self.entries.len() {
            let candidate = &self.entries[index];
            // A client's jobs keep their order, so only the first one may join.
            let is_first = !clients.contains(&candidate.client);
            if is_first {
                clients.push(candidate.client);
            }
            if is_first && can_join(&batch, &candidate.item) {
                batch.push(self.entries.remove(index).item);
            } else {
                index += 1;
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_BATCHING: fn(&[u32], &u32) -> bool = |_, _| false;

    #[test]
    fn jobs_of_one_client_keep_their_order() {
        let mut queue = FairQueue::default();
        (0..5).for_each(|i| {
            queue.push(ClientId(1), 10, i);
        });
        let order: Vec<u32> = (0..5).flat_map(|_| queue.take(NO_BATCHING)).collect();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert!(queue.take(NO_BATCHING).is_empty());
    }

    #[test]
    fn many_jobs_of_one_client_do_not_delay_another() {
        let mut queue = FairQueue::default();
        (0..4).for_each(|i| {
            queue.push(ClientId(1), 10, i);
        });
        assert_eq!(queue.take(NO_BATCHING), [0]);
        queue.push(ClientId(2), 10, 10);
        queue.push(ClientId(2), 10, 11);
        let order: Vec<u32> = (0..5).flat_map(|_| queue.take(NO_BATCHING)).collect();
        assert_eq!(order, [10, 1, 11, 2, 3]);
    }

    #[test]
    fn small_jobs_run_more_often_than_large_ones() {
        let mut queue = FairQueue::default();
        (0..2).for_each(|i| {
            queue.push(ClientId(1), 30, i);
        });
        (10..16).for_each(|i| {
            queue.push(ClientId(2), 10, i);
        });
        let order: Vec<u32> = (0..6).flat_map(|_| queue.take(NO_BATCHING)).collect();
        assert_eq!(order, [0, 10, 11, 12, 1, 13]);
    }

    #[test]
    fn batch_takes_first_job_of_each_client() {
        let mut queue = FairQueue::default();
        for (client, item) in [(1, 1), (1, 3), (2, 5), (2, 7), (3, 2), (4, 9)] {
            queue.push(ClientId(client), 10, item);
        }
        let odd = |batch: &[u32], item: &u32| batch.len() < 3 && item % 2 == 1;
        assert_eq!(queue.take(odd), [1, 5, 9], "an even job and a client's second job stay");
        assert_eq!(queue.take(NO_BATCHING), [2]);
        assert_eq!(queue.take(odd), [3, 7]);
    }
    #[test]
    fn removed_job_is_not_taken() {
        let mut queue = FairQueue::default();
        let tickets: Vec<Ticket> = (0..3).map(|i| queue.push(ClientId(1), 10, i)).collect();
        assert_eq!(queue.remove(tickets[1]), Some(1));
        assert_eq!(queue.take(NO_BATCHING), [0]);
        assert_eq!((queue.remove(tickets[0]), queue.remove(tickets[1])), (None, None), "taken, and removed before");
        assert_eq!(queue.clear(), [2]);
        assert!(queue.take(NO_BATCHING).is_empty());
    }
}
