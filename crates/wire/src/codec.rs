//! Tensors, batches and gradients as messages. Every `read_*` function returns a [`DecodeError`] if its message is malformed.

use bytes::Bytes;
use capnp::struct_list;
use sepal_core::{DType, HostTensor, HostTunable, Ragged, RaggedError, ShapeError, Span, SpanError, Want};

use crate::parts::Parts;
use crate::rpc_error::RpcError;
use crate::sepal_capnp as wire;

/// Maximum dimensions of a tensor.
pub const MAX_RANK: u32 = 4;
/// Maximum tensors of a list of tunables.
pub const MAX_TUNABLES: u32 = 4096;
/// Maximum rows of a batch that are read; servers accept fewer.
pub const MAX_ROWS: u32 = 1 << 20;
/// Maximum bytes of a tunable's name.
const MAX_NAME_BYTES: usize = 1024;

/// Error of reading a malformed message.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum DecodeError {
    /// Invalid Cap'n Proto encoding.
    #[error("read a message")]
    Encoding(#[source] RpcError),
    /// Enum value of a later protocol.
    #[error("unknown value {0} in a message")]
    Unknown(u16),
    /// Mismatch of shape and number of bytes.
    #[error("read a tensor")]
    Shape(#[from] ShapeError),
    /// Tensor with too many dimensions.
    #[error("a tensor of {found} dimensions, at most {} are read", MAX_RANK)]
    Rank { found: u32 },
    /// List or text that is too long.
    #[error("{found} {items}, at most {limit} are read")]
    TooMany { items: &'static str, found: usize, limit: usize },
    /// Offsets that describe no batch.
    #[error("read a batch")]
    Rows(#[from] RaggedError),
    /// Empty span.
    #[error("read a span")]
    Span(#[from] SpanError),
    /// Text that is not UTF-8.
    #[error("read a text")]
    Text(#[from] std::str::Utf8Error),
    /// Wrong checksum.
    #[error("a tensor was damaged in transit")]
    Damaged,
    /// Reference to a part that did not arrive with the message.
    #[error("a tensor arrived without its data")]
    Missing,
    /// Mismatch of the number of hidden states and the length of prefix and rows, `prefix_len + n_tokens`.
    #[error("a batch of {expected} positions (prefix and tokens) has hidden states of shape {found:?}")]
    Positions { expected: usize, found: Vec<usize> },
    /// Mailbox key of the wrong length.
    #[error("a key of {found} bytes, expected 16")]
    Key { found: usize },
    /// Number in a description that no model and no server has.
    #[error("a server's {field} is {found}, expected 1 to {greatest}")]
    Stated { field: &'static str, found: u64, greatest: u64 },
    /// Span outside of the model.
    #[error("a server states blocks {span} of a model with {n_blocks}")]
    Outside { span: Span, n_blocks: usize },
}

impl From<capnp::NotInSchema> for DecodeError {
    fn from(error: capnp::NotInSchema) -> Self {
        DecodeError::Unknown(error.0)
    }
}

impl DecodeError {
    /// True if the message differs from the one that was sent, so that sending it again may succeed.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Encoding(_) | Self::Unknown(_) | Self::Text(_) | Self::Damaged)
    }
}

/// Ragged batch in wire form.
#[derive(Debug, Clone)]
pub struct WireBatch {
    /// Positions of the shared prefix.
    pub prefix_len: usize,
    /// True if the server's prefix cache holds the prefix, which is then not sent with the batch.
    pub prefix_cached: bool,
    /// Rows behind the prefix.
    pub rows: Ragged,
    /// `[positions, hidden]`.
    pub hidden: HostTensor,
}

/// Batch without its hidden states.
#[derive(Debug, Clone)]
pub struct WireRows {
    /// Positions of the shared prefix.
    pub prefix_len: usize,
    /// True if the server's prefix cache holds the prefix.
    pub prefix_cached: bool,
    /// Rows behind the prefix.
    pub rows: Ragged,
}

impl WireRows {
    /// Returns the batch with these hidden states.
    ///
    /// # Errors
    /// [`DecodeError::Positions`] if rows and hidden states do not agree.
    pub fn with_hidden(self, hidden: HostTensor) -> Result<WireBatch, DecodeError> {
        let Self { prefix_len, prefix_cached, rows } = self;
        WireBatch { prefix_len, prefix_cached, rows, hidden }.checked()
    }
}

impl WireBatch {
    /// Returns a batch that includes its prefix.
    ///
    /// # Errors
    /// [`DecodeError::Positions`] if rows and hidden states do not agree.
    pub fn new(prefix_len: usize, rows: Ragged, hidden: HostTensor) -> Result<Self, DecodeError> {
        Self { prefix_len, prefix_cached: false, rows, hidden }.checked()
    }

    fn checked(self) -> Result<Self, DecodeError> {
        let expected = self.positions();
        if self.hidden.shape().len() != 2 || self.hidden.shape()[0] != expected {
            return Err(DecodeError::Positions { expected, found: self.hidden.shape().to_vec() });
        }
        Ok(self)
    }

    /// Number of positions that the blocks compute: the prefix, unless it is cached, and the tokens.
    pub fn positions(&self) -> usize {
        self.prefix_slots() + self.rows.n_tokens()
    }

    /// Number of prefix positions that are sent with the batch.
    pub fn prefix_slots(&self) -> usize {
        if self.prefix_cached { 0 } else { self.prefix_len }
    }
}

/// Part of the input's gradient that a backward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputGrad {
    /// `[prefix_len + n_tokens, hidden]`.
    All,
    /// `[prefix_len, hidden]`.
    Prefix,
    /// No gradient of the input.
    None,
}

impl InputGrad {
    /// Name in the statements of receipts: `all`, `prefix` or `none`.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Prefix => "prefix",
            Self::None => "none",
        }
    }
}

/// Gradients that a backward pass returns.
#[derive(Debug, Clone, Copy)]
pub struct GradWant {
    /// Gradient of the input.
    pub input: InputGrad,
    /// True for the gradients of the tunables.
    pub tunables: bool,
    /// Format of hidden states and their gradients.
    pub dtype: DType,
}

impl GradWant {
    /// Format of the input's gradient. The prefix alone is a parameter and has the format of one.
    pub fn input_dtype(self) -> DType {
        if self.input == InputGrad::Prefix { self.tunables_dtype() } else { self.dtype }
    }

    /// Format of the tunables' gradients.
    pub fn tunables_dtype(self) -> DType {
        self.dtype.for_parameters()
    }
}

/// Gradients of a backward pass.
#[derive(Debug, Clone, Default)]
pub struct Grads {
    /// Gradient of the input, as requested by [`GradWant::input`].
    pub input: Option<HostTensor>,
    /// Gradients of the tunables, summed over the rows.
    pub tunables: Vec<HostTunable>,
    /// Last block of the model with non-finite gradients.
    pub not_finite: Option<usize>,
}

/// Defines both conversions of enums whose variants have the same names on the wire.
macro_rules! wire_enums {
    ($($visibility:vis $to_wire:ident, $from_wire:ident: $name:ident { $($variant:ident),+ })+) => {$(
        #[doc = concat!("Converts a [`", stringify!($name), "`] to its wire form.")]
        $visibility fn $to_wire(value: $name) -> wire::$name {
            match value {
                $($name::$variant => wire::$name::$variant,)+
            }
        }

        #[doc = concat!("Converts the wire form of a [`", stringify!($name), "`].")]
        $visibility fn $from_wire(value: wire::$name) -> $name {
            match value {
                $(wire::$name::$variant => $name::$variant,)+
            }
        }
    )+};
}
pub(crate) use wire_enums;

wire_enums! {
    pub dtype_to_wire, dtype_from_wire: DType { F32, F16, Bf16, Q8 }
    pub want_to_wire, want_from_wire: Want { All, LastOfRows, Tokens, MeanOfRows }
    input_grad_to_wire, input_grad_from_wire: InputGrad { All, Prefix, None }
}

/// Writes a tensor. Its data goes beside the message without a copy, unless it is small.
pub fn write_tensor(mut builder: wire::tensor::Builder<'_>, tensor: &HostTensor, parts: &Parts) {
    builder.set_dtype(dtype_to_wire(tensor.dtype()));
    let mut shape = builder.reborrow().init_shape(size(tensor.shape().len()));
    for (i, &dim) in tensor.shape().iter().enumerate() {
        shape.set(size(i), size(dim));
    }
    match parts.attach(tensor.data()) {
        Some(id) => builder.set_part(id),
        None => builder.set_data(tensor.data()),
    }
}

/// Reads a tensor of a message that arrived with `parts`. Its data is not copied, unless it is small, and nothing is copied
/// before its shape is checked.
pub fn read_tensor(reader: wire::tensor::Reader<'_>, parts: &Parts) -> Result<HostTensor, DecodeError> {
    let dtype = dtype_from_wire(reader.get_dtype()?);
    let dims = reader.get_shape()?;
    if dims.len() > MAX_RANK {
        return Err(DecodeError::Rank { found: dims.len() });
    }
    let shape: Vec<usize> = dims.iter().map(|dim| dim as usize).collect();
    let data = match reader.get_part() {
        0 => {
            let data = reader.get_data()?;
            HostTensor::check_bytes(dtype, &shape, data.len())?;
            Bytes::copy_from_slice(data)
        }
        id => parts.received(id)?,
    };
    Ok(HostTensor::new(dtype, shape, data)?)
}

/// Writes tunables into a list of the same length.
pub fn write_tunables(
    mut list: struct_list::Builder<'_, wire::named_tensor::Owned>,
    tunables: &[HostTunable],
    parts: &Parts,
) {
    for (i, named) in tunables.iter().enumerate() {
        let mut item = list.reborrow().get(size(i));
        item.set_name(&named.name);
        item.set_first_block(size(named.first_block));
        write_tensor(item.init_tensor(), &named.tensor, parts);
    }
}

/// Reads tunables.
pub fn read_tunables(
    list: struct_list::Reader<'_, wire::named_tensor::Owned>,
    parts: &Parts,
) -> Result<Vec<HostTunable>, DecodeError> {
    check_count("tunables", list.len(), MAX_TUNABLES)?;
    list.iter()
        .map(|item| {
            let name = item.get_name()?;
            if name.len() > MAX_NAME_BYTES {
                let (found, limit) = (name.len(), MAX_NAME_BYTES);
                return Err(DecodeError::TooMany { items: "bytes of a name", found, limit });
            }
            let name = name.to_str()?.to_owned();
            let first_block = item.get_first_block() as usize;
            Ok(HostTunable { name, first_block, tensor: read_tensor(item.get_tensor()?, parts)? })
        })
        .collect()
}

/// Writes a batch.
pub fn write_batch(mut builder: wire::ragged_batch::Builder<'_>, batch: &WireBatch, parts: &Parts) {
    write_rows(builder.reborrow(), batch);
    write_tensor(builder.init_hidden(), &batch.hidden, parts);
}

/// Writes a batch without its hidden states, which another server sends.
pub fn write_rows(mut builder: wire::ragged_batch::Builder<'_>, batch: &WireBatch) {
    let WireBatch { prefix_len, prefix_cached, rows, .. } = batch;
    builder.set_prefix_len(size(*prefix_len));
    builder.set_prefix_kept(*prefix_cached);
    let offsets = rows.offsets();
    let mut list = builder.reborrow().init_offsets(size(offsets.len()));
    for (i, &offset) in offsets.iter().enumerate() {
        list.set(size(i), offset);
    }
}

/// Reads a batch.
pub fn read_batch(reader: wire::ragged_batch::Reader<'_>, parts: &Parts) -> Result<WireBatch, DecodeError> {
    read_rows(reader)?.with_hidden(read_tensor(reader.get_hidden()?, parts)?)
}

/// Reads prefix length and rows of a batch.
pub fn read_rows(reader: wire::ragged_batch::Reader<'_>) -> Result<WireRows, DecodeError> {
    let offsets = reader.get_offsets()?;
    check_count("rows", offsets.len().saturating_sub(1), MAX_ROWS)?;
    let offsets: Vec<u32> = offsets.iter().collect();
    let (prefix_len, prefix_cached) = (reader.get_prefix_len() as usize, reader.get_prefix_kept());
    Ok(WireRows { prefix_len, prefix_cached, rows: Ragged::from_offsets(offsets)? })
}

/// Writes a request for gradients.
pub fn write_grad_want(mut builder: wire::grad_want::Builder<'_>, want: GradWant) {
    builder.set_input(input_grad_to_wire(want.input));
    builder.set_tunables(want.tunables);
    builder.set_dtype(dtype_to_wire(want.dtype));
}

/// Reads a request for gradients.
pub fn read_grad_want(reader: wire::grad_want::Reader<'_>) -> Result<GradWant, DecodeError> {
    let (input, dtype) = (input_grad_from_wire(reader.get_input()?), dtype_from_wire(reader.get_dtype()?));
    Ok(GradWant { input, tunables: reader.get_tunables(), dtype })
}

/// Writes gradients.
pub fn write_grads(mut builder: wire::grads::Builder<'_>, grads: &Grads, parts: &Parts) {
    if let Some(input) = &grads.input {
        write_tensor(builder.reborrow().init_input(), input, parts);
    }
    builder.set_not_finite(block_to_wire(grads.not_finite));
    write_tunables(builder.init_tunables(size(grads.tunables.len())), &grads.tunables, parts);
}

/// Reads gradients.
pub fn read_grads(reader: wire::grads::Reader<'_>, parts: &Parts) -> Result<Grads, DecodeError> {
    let input = if reader.has_input() { Some(read_tensor(reader.get_input()?, parts)?) } else { None };
    let not_finite = block_from_wire(reader.get_not_finite());
    Ok(Grads { input, tunables: read_tunables(reader.get_tunables()?, parts)?, not_finite })
}

/// Converts an optional block index: none is 0 on the wire, and blocks count from 1 there.
pub fn block_to_wire(block_idx: Option<usize>) -> u32 {
    block_idx.map_or(0, |block_idx| size(block_idx + 1))
}

/// Inverse of [`block_to_wire`].
pub fn block_from_wire(block: u32) -> Option<usize> {
    block.checked_sub(1).map(|block_idx| block_idx as usize)
}

/// Writes a span.
pub fn write_span(mut builder: wire::span::Builder<'_>, span: Span) {
    builder.set_start(size(span.start()));
    builder.set_end(size(span.end()));
}

/// Reads a span.
pub fn read_span(reader: wire::span::Reader<'_>) -> Result<Span, DecodeError> {
    Ok(Span::new(reader.get_start() as usize, reader.get_end() as usize)?)
}

fn check_count(items: &'static str, found: u32, limit: u32) -> Result<(), DecodeError> {
    let [found, limit] = [found, limit].map(|count| count as usize);
    if found > limit { Err(DecodeError::TooMany { items, found, limit }) } else { Ok(()) }
}

/// Converts a size to the 32 bits of the wire; the limits on messages keep all sizes far below.
pub(crate) fn size(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use capnp::message::{Builder, HeapAllocator};
    use proptest::prelude::*;

    use super::*;

    fn tensor(dtype: DType, shape: Vec<usize>) -> HostTensor {
        let n: usize = shape.iter().product();
        let data: Vec<u8> = (0..dtype.n_bytes(n).expect("few")).map(|i| (i % 251) as u8).collect();
        HostTensor::new(dtype, shape, Bytes::from(data)).expect("fits")
    }

    /// Moves the parts of the message to the receiving side.
    fn transfer(message: &Builder<HeapAllocator>, parts: &Parts) {
        for (id, data) in parts.store.take_referenced(&message.get_segments_for_output()) {
            assert!(parts.store.receive(id, Some(data), Vec::new()));
        }
    }

    proptest! {
        #[test]
        fn batch_round_trip_is_exact(
            lengths in prop::collection::vec(1_usize..9, 1..9),
            prefix_len in 0_usize..5,
            hidden in 1_usize..70,
            dtype in prop::sample::select(DType::ALL.to_vec()),
        ) {
            let rows = Ragged::from_lengths(lengths).expect("rows");
            let hidden = tensor(dtype, vec![prefix_len + rows.n_tokens(), hidden]);
            let batch = WireBatch { prefix_len, prefix_cached: false, rows, hidden };
            let mut message = Builder::new_default();
            let parts = Parts::default();
            write_batch(message.init_root(), &batch, &parts);
            transfer(&message, &parts);
            let back = read_batch(message.get_root_as_reader().expect("a root"), &parts).expect("a batch");
            prop_assert_eq!(back.prefix_len, batch.prefix_len);
            prop_assert_eq!(back.rows, batch.rows);
            prop_assert_eq!(back.hidden, batch.hidden);
        }
    }

    #[test]
    fn gradients_round_trip_is_exact() {
        let named =
            HostTunable { name: "deep_prompts".into(), first_block: 4, tensor: tensor(DType::F32, vec![3, 2, 4]) };
        for input in [None, Some(tensor(DType::F16, vec![2, 4]))] {
            let grads = Grads { input, tunables: vec![named.clone()], not_finite: Some(7) };
            let (mut message, parts) = (Builder::new_default(), Parts::default());
            write_grads(message.init_root(), &grads, &parts);
            let back = read_grads(message.get_root_as_reader().expect("a root"), &parts).expect("gradients");
            assert_eq!(back.input, grads.input);
            assert_eq!(back.tunables, grads.tunables);
        }
    }

    #[test]
    fn malformed_messages_are_refused() {
        let parts = Parts::default();
        let mut message = Builder::new_default();
        let mut builder = message.init_root::<wire::ragged_batch::Builder<'_>>();
        builder.set_prefix_len(3);
        let mut offsets = builder.reborrow().init_offsets(2);
        offsets.set(1, 4);
        write_tensor(builder.init_hidden(), &tensor(DType::F32, vec![6, 2]), &parts);
        let found = read_batch(message.get_root_as_reader().expect("a root"), &parts);
        assert!(matches!(found, Err(DecodeError::Positions { expected: 7, .. })), "{found:?}");

        let mut message = Builder::new_default();
        let mut builder = message.init_root::<wire::tensor::Builder<'_>>();
        builder.reborrow().init_shape(1).set(0, 5);
        builder.set_data(&[0; 8]);
        let found = read_tensor(message.get_root_as_reader().expect("a root"), &parts);
        assert!(matches!(found, Err(DecodeError::Shape(_))), "{found:?}");
        let mut builder = message.get_root::<wire::tensor::Builder<'_>>().expect("a root");
        builder.set_part(7);
        let found = read_tensor(message.get_root_as_reader().expect("a root"), &parts);
        assert!(matches!(found, Err(DecodeError::Missing)), "{found:?}");
    }

    #[test]
    fn tensors_of_many_dimensions_are_refused_before_their_shape_is_read() {
        let parts = Parts::default();
        for (dims, expected) in [(vec![1; 4], "ok"), (vec![1; 5], "rank"), (vec![1; 500_000], "rank")] {
            let mut message = Builder::new_default();
            let mut builder = message.init_root::<wire::tensor::Builder<'_>>();
            let mut shape = builder.reborrow().init_shape(size(dims.len()));
            dims.iter().enumerate().for_each(|(i, &dim)| shape.set(size(i), dim));
            builder.set_data(&[0; 4]);
            let found = match read_tensor(message.get_root_as_reader().expect("a root"), &parts) {
                Ok(_) => "ok",
                Err(DecodeError::Rank { .. }) => "rank",
                Err(error) => panic!("{error}"),
            };
            assert_eq!(found, expected, "{} dimensions", dims.len());
        }
    }

    #[test]
    fn long_lists_and_names_are_refused() {
        let parts = Parts::default();
        let read = |count: u32, name: &str| {
            let mut message = Builder::new_default();
            let mut list = message.init_root::<wire::grads::Builder<'_>>().init_tunables(count);
            (0..count).for_each(|i| list.reborrow().get(i).set_name(name));
            read_grads(message.get_root_as_reader().expect("a root"), &parts).expect_err("refused").to_string()
        };
        assert_eq!(read(MAX_TUNABLES + 1, ""), "4097 tunables, at most 4096 are read");
        assert_eq!(read(1, &"n".repeat(1025)), "1025 bytes of a name, at most 1024 are read");
    }
}
