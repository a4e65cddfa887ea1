//! Queue that is fair between clients and first come, first served within each.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use crate::client::{ClientGroup, ClientId};

/// Place of a job in the queue: its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

/// Queue with start-time fair queueing, between groups of clients and then between the clients of a group.
pub(crate) struct FairQueue<T> {
    /// Jobs by number, in the order of their arrival.
    entries: BTreeMap<u64, Entry<T>>,
    groups: FairShares<ClientGroup>,
    /// Shares of the clients of each group.
    clients: HashMap<ClientGroup, FairShares<ClientId>>,
    next_number: u64,
}

struct Entry<T> {
    client: ClientId,
    cost: u64,
    item: T,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        let (entries, groups, clients) = (BTreeMap::new(), FairShares::default(), HashMap::new());
        Self { entries, groups, clients, next_number: 0 }
    }
}

impl<T> FairQueue<T> {
    pub(crate) fn push(&mut self, client: ClientId, cost: usize, item: T) -> Ticket {
        let (group, number) = (client.group(), self.next_number);
        self.next_number += 1;
        self.groups.add_job(group);
        self.clients.entry(group).or_default().add_job(client);
        self.entries.insert(number, Entry { client, cost: cost as u64, item });
        Ticket(number)
    }

    /// Removes a job that has not been taken yet.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let Entry { client, item, .. } = self.entries.remove(&ticket.0)?;
        self.remove_job(client);
        Some(item)
    }

    /// Removes all jobs.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        (self.groups, self.clients) = Default::default();
        std::mem::take(&mut self.entries).into_values().map(|entry| entry.item).collect()
    }

    /// Takes the next batch: the next job, and the first job of each other client, in order, for which `can_join` returns true
    /// given the batch so far and the job.
    pub(crate) fn take(&mut self, can_join: impl Fn(&[T], &T) -> bool) -> Vec<T> {
        let (mut batch, mut clients): (Vec<T>, Vec<ClientId>) = (Vec::new(), Vec::new());
        for number in self.first_of_clients() {
            let Some(entry) = self.entries.get(&number) else { continue };
            if !batch.is_empty() && !can_join(&batch, &entry.item) {
                continue;
            }
            if let Some(Entry { client, cost, item }) = self.entries.remove(&number) {
                self.charge(client, cost, batch.is_empty());
                clients.push(client);
                batch.push(item);
            }
        }
        // All of the batch are charged as those that waited together.
        clients.into_iter().for_each(|client| self.remove_job(client));
        self.forget_idle();
        batch
    }

    /// Numbers of the first job of each client, in the order of their starts.
    fn first_of_clients(&self) -> Vec<u64> {
        let mut clients = HashSet::new();
        let firsts = self.entries.iter().filter(|(_, entry)| clients.insert(entry.client));
        let mut firsts: Vec<([u64; 2], u64)> =
            firsts.map(|(&number, entry)| (self.starts(entry.client), number)).collect();
        firsts.sort_unstable();
        firsts.into_iter().map(|(_, number)| number).collect()
    }

    /// Starts of a client's group, and of the client in it.
    fn starts(&self, client: ClientId) -> [u64; 2] {
        let group = client.group();
        [self.groups.start(group), self.clients.get(&group).map_or(0, |clients| clients.start(client))]
    }

    fn charge(&mut self, client: ClientId, cost: u64, is_next: bool) {
        let group = client.group();
        self.groups.charge(group, cost, is_next);
        if let Some(clients) = self.clients.get_mut(&group) {
            clients.charge(client, cost, is_next);
        }
    }

    fn remove_job(&mut self, client: ClientId) {
        let group = client.group();
        self.groups.remove_job(group);
        if let Some(clients) = self.clients.get_mut(&group) {
            clients.remove_job(client);
        }
    }

    fn forget_idle(&mut self) {
        self.groups.forget_idle();
        self.clients.retain(|_, clients| {
            clients.forget_idle();
            !clients.users.is_empty()
        });
    }
}

/// Shares of users that wait: of groups, or of the clients of one group. The start of a user is the time at which its next job
/// would begin if all that wait had equal shares; the lowest is next. An idle user accumulates no credit. Time advances with
/// each job by its part for each user that waits, so that users that are always new do not delay the next job of another for
/// ever.
struct FairShares<K> {
    users: HashMap<K, User>,
    /// Start of a user that is new.
    now: u64,
    /// Number of users with jobs in the queue.
    n_waiting: u64,
}

struct User {
    start: u64,
    n_jobs: usize,
}

impl<K> Default for FairShares<K> {
    fn default() -> Self {
        Self { users: HashMap::new(), now: 0, n_waiting: 0 }
    }
}

impl<K: Eq + Hash> FairShares<K> {
    fn add_job(&mut self, user: K) {
        let user = self.users.entry(user).or_insert(User { start: self.now, n_jobs: 0 });
        if user.n_jobs == 0 {
            user.start = user.start.max(self.now);
            self.n_waiting += 1;
        }
        user.n_jobs += 1;
    }

    fn remove_job(&mut self, user: K) {
        if let Some(user) = self.users.get_mut(&user) {
            user.n_jobs -= 1;
            self.n_waiting -= u64::from(user.n_jobs == 0);
        }
    }

    fn start(&self, user: K) -> u64 {
        self.users.get(&user).map_or(self.now, |user| user.start)
    }

    /// Counts the cost of a job that still waits.
    fn charge(&mut self, user: K, cost: u64, is_next: bool) {
        let Some(user) = self.users.get_mut(&user) else { return };
        if is_next {
            self.now = self.now.max(user.start);
        }
        self.now += cost.div_ceil(self.n_waiting.max(1));
        user.start += cost;
    }

    /// Forgets users that are idle and are treated as new ones.
    fn forget_idle(&mut self) {
        let now = self.now;
        self.users.retain(|_, user| user.n_jobs > 0 || user.start > now);
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
            queue.push(ClientId::local(1), 10, i);
        });
        let order: Vec<u32> = (0..5).flat_map(|_| queue.take(NO_BATCHING)).collect();
        assert_eq!(order, [0, 1, 2, 3, 4]);
        assert!(queue.take(NO_BATCHING).is_empty());
    }

    #[test]
    fn many_jobs_of_one_client_do_not_delay_another() {
        let mut queue = FairQueue::default();
        (0..4).for_each(|i| {
            queue.push(ClientId::local(1), 10, i);
        });
        assert_eq!(queue.take(NO_BATCHING), [0]);
        queue.push(ClientId::local(2), 10, 10);
        queue.push(ClientId::local(2), 10, 11);
        let order: Vec<u32> = (0..5).flat_map(|_| queue.take(NO_BATCHING)).collect();
        assert_eq!(order, [10, 1, 11, 2, 3]);
    }

    #[test]
    fn small_jobs_run_more_often_than_large_ones() {
        let mut queue = FairQueue::default();
        (0..2).for_each(|i| {
            queue.push(ClientId::local(1), 30, i);
        });
        (10..16).for_each(|i| {
            queue.push(ClientId::local(2), 10, i);
        });
        let order: Vec<u32> = (0..6).flat_map(|_| queue.take(NO_BATCHING)).collect();
        assert_eq!(order, [0, 10, 11, 12, 1, 13]);
    }

    #[test]
    fn batch_takes_first_job_of_each_client() {
        let mut queue = FairQueue::default();
        for (client, item) in [(1, 1), (1, 3), (2, 5), (2, 7), (3, 2), (4, 9)] {
            queue.push(ClientId::local(client), 10, item);
        }
        let odd = |batch: &[u32], item: &u32| batch.len() < 3 && item % 2 == 1;
        assert_eq!(queue.take(odd), [1, 5, 9], "an even job and a client's second job stay");
        assert_eq!(queue.take(NO_BATCHING), [2]);
        assert_eq!(queue.take(odd), [3, 7]);
    }

    #[test]
    fn removed_job_is_not_taken() {
        let mut queue = FairQueue::default();
        let tickets: Vec<Ticket> = (0..3).map(|i| queue.push(ClientId::local(1), 10, i)).collect();
        assert_eq!(queue.remove(tickets[1]), Some(1));
        assert_eq!(queue.take(NO_BATCHING), [0]);
        assert_eq!((queue.remove(tickets[0]), queue.remove(tickets[1])), (None, None), "taken, and removed before");
        assert_eq!(queue.clear(), [2]);
        assert!(queue.take(NO_BATCHING).is_empty());
    }

    #[test]
    fn many_connections_of_a_network_have_one_share() {
        let mut queue = FairQueue::default();
        (1..=6_u32).for_each(|client| {
            queue.push(ClientId::remote(client.into(), 1), 10, client);
        });
        assert_eq!(queue.take(NO_BATCHING), [1]);
        for item in [20, 21, 22] {
            queue.push(ClientId::remote(7, 2), 10, item);
        }
        // A connection that is new has no more than its network has.
        queue.push(ClientId::remote(8, 1), 10, 8);
        let order: Vec<u32> = (0..9).flat_map(|_| queue.take(NO_BATCHING)).collect();
        assert_eq!(order, [2, 20, 3, 21, 4, 22, 5, 6, 8]);
    }

    #[test]
    fn clients_that_are_new_for_each_job_do_not_starve_another() {
        let groups: [fn(u64) -> ClientId; 2] = [ClientId::local, |number| ClientId::remote(number, 1)];
        for client in groups {
            let mut queue = FairQueue::default();
            for item in [1, 2, 3] {
                queue.push(client(1), 10, item);
            }
            let mut order = Vec::new();
            for number in 10..22_u32 {
                queue.push(client(number.into()), 10, number);
                order.extend(queue.take(NO_BATCHING));
            }
            assert_eq!(order, [1, 10, 11, 12, 2, 13, 14, 3, 15, 16, 17, 18]);
        }
    }

    #[test]
    fn connections_of_a_network_take_turns() {
        let mut queue = FairQueue::default();
        for item in [1, 2, 3] {
            queue.push(ClientId::remote(1, 1), 10, item);
        }
        for item in [4, 5, 6] {
            queue.push(ClientId::remote(2, 1), 10, item);
        }
        let order: Vec<u32> = (0..6).flat_map(|_| queue.take(NO_BATCHING)).collect();
        assert_eq!(order, [1, 4, 2, 5, 3, 6]);
    }

    #[test]
    fn idle_clients_are_forgotten() {
        let mut queue = FairQueue::default();
        for number in 1..=20_u32 {
            queue.push(ClientId::remote(number.into(), 1), 10, number);
            queue.push(ClientId::local(number.into()), 10, number);
        }
        let removed = queue.push(ClientId::local(99), 10, 99);
        assert_eq!(queue.remove(removed), Some(99));
        while !queue.take(|_, _| true).is_empty() {}
        (0..20).for_each(|item| {
            queue.push(ClientId::local(100), 10, item);
            assert_eq!(queue.take(NO_BATCHING), [item]);
        });
        assert!(queue.groups.users.is_empty() && queue.clients.is_empty(), "{:?}", queue.groups.users.keys());
        assert_eq!(queue.groups.n_waiting, 0);
    }
}
