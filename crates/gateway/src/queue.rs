//! Queue that forms batches from the rows of requests in turn.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use tokio::sync::oneshot;

use crate::classifier::{Answer, InvalidRow, Row};
use crate::shares::Shares;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    Unavailable,
    Failed,
    /// Rows that the classifier does not take, by their index in the request.
    InvalidRows(Vec<InvalidRow>),
    /// The queue holds too many rows.
    Full,
}

pub(crate) type JobResult = Result<Vec<Answer>, Refusal>;

pub(crate) type JobId = u64;

/// Rows of a request, taken and answered in their order.
#[derive(Debug)]
struct Job {
    waiting: VecDeque<Row>,
    n_rows: usize,
    answers: Vec<Answer>,
    reply: oneshot::Sender<JobResult>,
    /// Address of the client.
    address: Option<IpAddr>,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    jobs: BTreeMap<JobId, Job>,
    /// Requests with waiting rows, in the order of their turns.
    turns: VecDeque<JobId>,
    next_id: JobId,
}

impl Queue {
    /// Adds a request from `address` and returns the receiver of its result. Dropping the receiver cancels the request.
    pub(crate) fn push(&mut self, rows: Vec<Row>, address: Option<IpAddr>) -> oneshot::Receiver<JobResult> {
        // Cancelled requests would count as waiting until their turn.
        self.jobs.retain(|_, job| !job.reply.is_closed());
        let (reply, receiver) = oneshot::channel();
        let n_rows = rows.len();
        let (waiting, answers) = (rows.into(), Vec::with_capacity(n_rows));
        self.jobs.insert(self.next_id, Job { waiting, n_rows, answers, reply, address });
        self.turns.push_back(self.next_id);
        self.next_id += 1;
        receiver
    }

    /// Takes the next batch, one row of each request in turn up to the limits.
    pub(crate) fn take(&mut self, max_rows: usize, max_bytes: usize) -> Vec<(JobId, Row)> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < max_rows.max(1)
            && let Some(id) = self.turns.pop_front()
        {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if job.reply.is_closed() {
                self.jobs.remove(&id);
                continue;
            }
            let Some(row) = job.waiting.pop_front() else { continue };
            if !batch.is_empty() && bytes + row.n_bytes() > max_bytes {
                job.waiting.push_front(row);
                self.turns.push_front(id);
                break;
            }
            bytes += row.n_bytes();
            batch.push((id, row));
            if !job.waiting.is_empty() {
                self.turns.push_back(id);
            }
        }
        batch
    }

    pub(crate) fn answer(&mut self, id: JobId, answer: Answer) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.answers.push(answer);
        if job.answers.len() == job.n_rows
            && let Some(job) = self.jobs.remove(&id)
        {
            // Fails if the request was cancelled.
            let _ = job.reply.send(Ok(job.answers));
        }
    }

    /// Returns the number of answered rows of a request, and its rows that are in no batch yet, which no later batch takes;
    /// none if the request was cancelled.
    pub(crate) fn take_waiting_rows(&mut self, id: JobId) -> Option<(usize, Vec<Row>)> {
        let job = self.jobs.get_mut(&id).filter(|job| !job.reply.is_closed())?;
        Some((job.answers.len(), std::mem::take(&mut job.waiting).into()))
    }

    pub(crate) fn refuse(&mut self, id: JobId, refusal: Refusal) {
        if let Some(job) = self.jobs.remove(&id) {
            // Fails if the request was cancelled.
            let _ = job.reply.send(Err(refusal));
        }
    }

    pub(crate) fn refuse_all(&mut self, refusal: Refusal) {
        self.turns.clear();
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        ids.into_iter().for_each(|id| self.refuse(id, refusal.clone()));
    }

    /// Number of requests so far.
    pub(crate) fn n_requests(&self) -> u64 {
        self.next_id
    }

    /// Number of requests that have no result yet.
    pub(crate) fn n_unanswered(&self) -> usize {
        self.jobs.len()
    }

    /// Number of rows that are in no batch yet.
    pub(crate) fn waiting_rows(&self) -> usize {
        self.jobs.values().map(|job| job.waiting.len()).sum()
    }

    /// Rows that are in no batch yet, by address.
    pub(crate) fn waiting_by_address(&self) -> Shares {
        let mut shares = Shares::default();
        let waiting = self.jobs.values().filter(|job| !job.waiting.is_empty());
        waiting.for_each(|job| shares.add(job.address, job.waiting.len()));
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &str) -> Vec<Row> {
        texts.split(' ').map(|text| Row { text: text.into(), pair: None }).collect()
    }

    fn texts(batch: &[(JobId, Row)]) -> String {
        batch.iter().map(|(_, row)| row.text.as_str()).collect::<Vec<_>>().join(" ")
    }

    fn answer(queue: &mut Queue, batch: Vec<(JobId, Row)>) {
        batch.into_iter().for_each(|(id, row)| queue.answer(id, Answer::Value(row.text.len() as f32)));
    }

    #[test]
    fn requests_take_turns() {
        let mut queue = Queue::default();
        let mut large = queue.push(rows("a1 a2 a3 a4 a5 a6"), None);
        let first = queue.take(2, 100);
        assert_eq!(texts(&first), "a1 a2");
        answer(&mut queue, first);
        let mut small = queue.push(rows("b1"), None);
        let mut other = queue.push(rows("c1 c2"), None);
        let second = queue.take(3, 100);
        assert_eq!(texts(&second), "a3 b1 c1");
        answer(&mut queue, second);
        assert!(small.try_recv().expect("done before the large request").is_ok());
        let third = queue.take(2, 100);
        assert_eq!(texts(&third), "a4 c2");
        answer(&mut queue, third);
        assert!(other.try_recv().expect("done").is_ok());
        assert_eq!(queue.waiting_rows(), 2);
        let last = queue.take(9, 100);
        assert_eq!(texts(&last), "a5 a6");
        answer(&mut queue, last);
        assert_eq!(large.try_recv().expect("done").expect("answers").len(), 6);
        assert!(queue.jobs.is_empty() && queue.turns.is_empty());
    }

    #[test]
    fn request_left_out_of_batch_is_first_in_next() {
        let mut queue = Queue::default();
        let _receivers: Vec<_> = ["a1 a2", "b1 b2", "c1 c2"].map(|texts| queue.push(rows(texts), None)).into();
        assert_eq!(texts(&queue.take(2, 100)), "a1 b1");
        assert_eq!(texts(&queue.take(2, 100)), "c1 a2");
        assert_eq!(texts(&queue.take(2, 100)), "b2 c2");
        assert!(queue.take(2, 100).is_empty());
    }

    #[test]
    fn batch_is_limited_by_bytes_and_long_row_forms_its_own() {
        let mut queue = Queue::default();
        let _receivers: Vec<_> = ["aaaa bb", "cccccccc"].map(|texts| queue.push(rows(texts), None)).into();
        assert_eq!(texts(&queue.take(9, 5)), "aaaa");
        assert_eq!(texts(&queue.take(9, 5)), "cccccccc");
        assert_eq!(texts(&queue.take(9, 5)), "bb");
    }

    #[test]
    fn cancelled_request_is_skipped() {
        let mut queue = Queue::default();
        drop(queue.push(rows("a1 a2"), None));
        let mut other = queue.push(rows("b1"), None);
        let batch = queue.take(9, 100);
        assert_eq!(texts(&batch), "b1");
        answer(&mut queue, batch);
        assert_eq!(other.try_recv().expect("done"), Ok(vec![Answer::Value(2.0)]));
        assert!(queue.jobs.is_empty());
    }

    #[test]
    fn waiting_rows_of_a_request_are_taken_once() {
        let mut queue = Queue::default();
        let receiver = queue.push(rows("a1 a2 a3 a4"), None);
        let first = queue.take(1, 100);
        let id = first[0].0;
        answer(&mut queue, first);
        assert_eq!(texts(&queue.take(1, 100)), "a2");
        assert_eq!(queue.take_waiting_rows(id), Some((1, rows("a3 a4"))));
        assert!(queue.take(9, 100).is_empty(), "no later batch takes them");
        assert_eq!(queue.take_waiting_rows(id), Some((1, Vec::new())));
        drop(receiver);
        assert_eq!(queue.take_waiting_rows(id), None, "it was cancelled");
    }

    #[test]
    fn refused_request_drops_remaining_rows() {
        let mut queue = Queue::default();
        let (mut first, mut second) = (queue.push(rows("a1 a2"), None), queue.push(rows("b1"), None));
        let batch = queue.take(1, 100);
        queue.refuse(batch[0].0, Refusal::Failed);
        queue.answer(batch[0].0, Answer::Value(0.0));
        assert_eq!(first.try_recv().expect("refused"), Err(Refusal::Failed));
        assert_eq!(texts(&queue.take(9, 100)), "b1");
        queue.refuse_all(Refusal::Unavailable);
        assert_eq!(second.try_recv().expect("refused"), Err(Refusal::Unavailable));
        assert!(queue.jobs.is_empty());
    }
}
