//! Admission of calls: limits on their rows, on the memory of their computation and on their number.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use sepal_blocks::Passes;
use sepal_core::{HostTensor, Span};
use sepal_wire::codec::WireRows;
use sepal_wire::{Failure, FailureCode, Limits};

use crate::client::ClientGroup;
use crate::compute::{TapeExtent, invalid};
use crate::ledger::{ClientQuota, Kind, Reservation};
use crate::refusals::Reason;
use crate::stacks::StackCallMemory;
use crate::state::ClientConnection;

/// Memory of a call beside its input, in bytes.
const CALL_BYTES: u64 = 1 << 10;
/// Memory of a session, of the tunables of a step or of a tape beside their tensors, in bytes.
const ENTRY_BYTES: u64 = 1 << 10;

/// Limits on the calls of a server.
pub(crate) struct Admission {
    limits: Limits,
    memory: StackCallMemory,
    max_calls: u32,
    max_connection_calls: u32,
    /// Calls that wait for their input, in the queue, or for the next server, and those that are computed.
    calls: Rc<OpenCalls>,
}

/// Open calls of all connections.
#[derive(Debug, Default)]
struct OpenCalls {
    total: Cell<u32>,
    /// Calls of each group of clients that has any.
    groups: RefCell<HashMap<ClientGroup, u32>>,
}

impl OpenCalls {
    /// True if `max` calls are open, and the group has at least an equal share of them. So a few clients that have all calls
    /// open do not keep out another.
    fn is_full(&self, max: u32, group: ClientGroup) -> bool {
        let groups = self.groups.borrow();
        let share = max as usize / (groups.len() + 1);
        let own = groups.get(&group).copied().unwrap_or(0);
        self.total.get() >= max && own as usize >= share.max(1)
    }

    fn begin(&self, group: ClientGroup) {
        self.total.set(self.total.get() + 1);
        *self.groups.borrow_mut().entry(group).or_default() += 1;
    }

    fn end(&self, group: ClientGroup) {
        self.total.set(self.total.get() - 1);
        let mut groups = self.groups.borrow_mut();
        match groups.get(&group).map_or(0, |calls| calls - 1) {
            0 => drop(groups.remove(&group)),
            left => drop(groups.insert(group, left)),
        }
    }
}

/// Call that may be queued.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Bytes of the input.
    input: Reservation,
    /// Estimated memory of the computation, in bytes; 0 if it is not limited.
    pub(crate) peak_bytes: u64,
}

impl Admitted {
    /// Counts an input that arrived after the call.
    pub(crate) fn add_input(&mut self, input: &HostTensor) -> Result<(), Failure> {
        self.input.grow(input.data().len() as u64)
    }
}

/// Counts a call of a connection until this is dropped.
pub(crate) struct CallSlot {
    own: Rc<Cell<u32>>,
    all: Rc<OpenCalls>,
    group: ClientGroup,
}

impl Drop for CallSlot {
    fn drop(&mut self) {
        self.own.set(self.own.get() - 1);
        self.all.end(self.group);
    }
}

impl Admission {
    /// A connection may have a quarter of all calls if the memory is limited, else all.
    pub(crate) fn new(limits: Limits, memory: StackCallMemory, max_calls: u32, max_memory: Option<u64>) -> Self {
        let max_connection_calls = if max_memory.is_some() { max_calls.div_ceil(4) } else { max_calls };
        Self { limits, memory, max_calls, max_connection_calls, calls: Rc::default() }
    }

    fn slot(&self, quota: &ClientQuota, own: &Rc<Cell<u32>>) -> Result<CallSlot, Failure> {
        let group = quota.client().group();
        let refuse = |reason, message| Err(quota.refuse(reason, Failure::new(FailureCode::Overloaded, message)));
        let limit = self.max_connection_calls;
        if own.get() >= limit {
            return refuse(Reason::ConnectionCalls, format!("{limit} calls of this client wait already"));
        }
        if self.calls.is_full(self.max_calls, group) {
            return refuse(Reason::Calls, format!("{} calls wait already", self.max_calls));
        }
        own.set(own.get() + 1);
        self.calls.begin(group);
        Ok(CallSlot { own: Rc::clone(own), all: Rc::clone(&self.calls), group })
    }

    fn check_rows(&self, quota: &ClientQuota, batch: &WireRows) -> Result<(), Failure> {
        let (limits, rows) = (self.limits, &batch.rows);
        let tokens = batch.prefix_len + rows.n_tokens();
        let refuse = |reason, message: String| Err(quota.refuse(reason, invalid(message)));
        if rows.len() > limits.max_rows as usize {
            let message = format!("{} rows, but this server accepts {}", rows.len(), limits.max_rows);
            return refuse(Reason::Rows, message);
        }
        if tokens > limits.max_tokens as usize {
            return refuse(Reason::Tokens, format!("{tokens} tokens, but this server accepts {}", limits.max_tokens));
        }
        let longest = longest(batch);
        if limits.max_row_tokens > 0 && longest > limits.max_row_tokens as usize {
            let accepted = limits.max_row_tokens;
            let message = format!("a row of {longest} positions, prompts included, but the model takes {accepted}");
            return refuse(Reason::RowTokens, message);
        }
        Ok(())
    }

    /// Estimates the memory of a computation and checks it; 0 if it is not limited.
    fn peak_bytes(&self, quota: &ClientQuota, span: Span, batch: &WireRows, passes: Passes) -> Result<u64, Failure> {
        let limit = self.limits.call_bytes;
        if limit == 0 {
            return Ok(0);
        }
        let bytes = self.memory.bytes(span, batch.prefix_len, &batch.rows, passes);
        if bytes <= limit {
            return Ok(bytes);
        }
        let (tokens, longest) = (batch.prefix_len + batch.rows.n_tokens(), longest(batch));
        let message = format!(
            "{tokens} positions, {longest} in the longest row: blocks {span} compute them in up to {bytes} bytes, and this \
             server has {limit} bytes for one computation"
        );
        Err(quota.refuse(Reason::CallBytes, Failure::new(FailureCode::NoMemory, message)))
    }
}

/// Positions of the longest row with its prefix.
fn longest(batch: &WireRows) -> usize {
    batch.prefix_len + batch.rows.lengths().max().unwrap_or(0)
}

impl ClientConnection {
    /// Counts a call until the result is dropped.
    pub(crate) fn call_slot(&self) -> Result<CallSlot, Failure> {
        self.state.admission.slot(&self.quota, &self.calls)
    }

    /// Reserves the memory of a session, of the tunables of a step or of a tape beside their tensors.
    pub(crate) fn reserve_entry(&self) -> Result<Reservation, Failure> {
        self.quota.reserve(Kind::Sessions, ENTRY_BYTES)
    }

    /// Checks a batch, and reserves the bytes of its input, unless another server sends it.
    pub(crate) fn admit(
        &self,
        span: Span,
        batch: &WireRows,
        input: Option<&HostTensor>,
        passes: Passes,
    ) -> Result<Admitted, Failure> {
        let admission = &self.state.admission;
        admission.check_rows(&self.quota, batch)?;
        let peak_bytes = admission.peak_bytes(&self.quota, span, batch, passes)?;
        let offset_bytes = size_of_val(batch.rows.offsets()) as u64;
        let input = self.quota.reserve(Kind::Calls, CALL_BYTES + offset_bytes + bytes(input))?;
        Ok(Admitted { input, peak_bytes })
    }

    /// Estimated memory of the backward pass of a batch, in bytes; 0 if it is not limited.
    pub(crate) fn backward_bytes(&self, span: Span, batch: &WireRows) -> Result<u64, Failure> {
        self.state.admission.peak_bytes(&self.quota, span, batch, Passes::Backward)
    }

    /// Reserves the bytes of the gradient for the backward pass of a tape, unless another server sends it.
    pub(crate) fn admit_backward(&self, tape: &TapeExtent, grad: Option<&HostTensor>) -> Result<Admitted, Failure> {
        let input = self.quota.reserve(Kind::Calls, CALL_BYTES + bytes(grad))?;
        Ok(Admitted { input, peak_bytes: tape.peak_bytes })
    }
}

fn bytes(tensor: Option<&HostTensor>) -> u64 {
    tensor.map_or(0, |tensor| tensor.data().len() as u64)
}

#[cfg(test)]
mod tests {
    use sepal_core::Ragged;

    use super::*;
    use crate::client::ClientId;
    use crate::ledger::{Ledger, Quotas};

    fn limits() -> Limits {
        Limits { max_rows: 8, max_tokens: 100, max_row_tokens: 40, ..Limits::default() }
    }

    fn admission(max_calls: u32, max_memory: Option<u64>) -> (Admission, Ledger) {
        let ledger = Ledger::new(Quotas::new(&limits(), max_memory));
        (Admission::new(limits(), StackCallMemory::default(), max_calls, max_memory), ledger)
    }

    fn batch(prefix_len: usize, lengths: &[usize]) -> WireRows {
        let rows = Ragged::from_lengths(lengths.iter().copied()).expect("rows");
        WireRows { prefix_len, prefix_cached: false, rows }
    }

    #[test]
    fn batches_beyond_the_limits_are_refused_and_counted() {
        let (admission, ledger) = admission(10, None);
        let quota = ledger.client(ClientId::local(1));
        let check = |prefix_len, lengths: &[usize]| admission.check_rows(&quota, &batch(prefix_len, lengths));
        assert!(check(10, &[30, 30, 30]).is_ok());
        for (prefix_len, lengths, reason, text) in [
            (0, &[1; 9][..], Reason::Rows, "9 rows, but this server accepts 8"),
            (11, &[30; 3][..], Reason::Tokens, "101 tokens, but this server accepts 100"),
            (11, &[30][..], Reason::RowTokens, "a row of 41 positions, prompts included, but the model takes 40"),
        ] {
            let failure = check(prefix_len, lengths).expect_err(text);
            assert_eq!((failure.code, failure.message.as_str()), (FailureCode::InvalidRequest, text));
            assert_eq!(ledger.refusals().count(reason), 1);
        }
    }

    #[test]
    fn calls_of_one_connection_leave_room_for_another() {
        let (admission, ledger) = admission(8, Some(1 << 30));
        let (first, second) = (ledger.client(ClientId::local(1)), ledger.client(ClientId::local(2)));
        let [own, other] = [Rc::<Cell<u32>>::default(), Rc::default()];
        let slots: Vec<CallSlot> = (0..2).map(|_| admission.slot(&first, &own).expect("a quarter")).collect();
        let refused = admission.slot(&first, &own).map(drop).expect_err("a third call");
        assert_eq!(refused.code, FailureCode::Overloaded);
        assert!(admission.slot(&second, &other).is_ok());
        drop(slots);
        assert!(admission.slot(&first, &own).is_ok());
        assert_eq!((own.get(), other.get(), admission.calls.total.get()), (0, 0, 0));
        assert!(admission.calls.groups.borrow().is_empty());
        assert_eq!(ledger.refusals().count(Reason::ConnectionCalls), 1);
    }

    #[test]
    fn connections_that_have_all_calls_do_not_keep_out_another() {
        let (admission, ledger) = admission(8, Some(1 << 30));
        let fill = |client| {
            let (quota, own) = (ledger.client(client), Rc::<Cell<u32>>::default());
            std::iter::from_fn(|| admission.slot(&quota, &own).ok()).collect::<Vec<CallSlot>>()
        };
        let local: Vec<CallSlot> = (1..=4).flat_map(|number| fill(ClientId::local(number))).collect();
        assert_eq!(local.len(), 8, "a quarter of each");
        assert_eq!(fill(ClientId::local(5)).len(), 1, "a sixth");
        drop(local);
        let network: Vec<CallSlot> = (6..=9).flat_map(|number| fill(ClientId::remote(number, 1))).collect();
        assert_eq!((network.len(), fill(ClientId::remote(10, 1)).len()), (8, 0));
        assert_eq!(fill(ClientId::remote(11, 2)).len(), 2, "as many as without the network");
    }

    #[test]
    fn calls_of_all_connections_are_limited() {
        let (admission, ledger) = admission(3, None);
        let (quota, own) = (ledger.client(ClientId::local(1)), Rc::default());
        let _slots = [(); 3].map(|()| admission.slot(&quota, &own).expect("room"));
        let refused = admission.slot(&quota, &own).map(drop).expect_err("full");
        assert_eq!(refused.message, "3 calls of this client wait already");
    }
}
