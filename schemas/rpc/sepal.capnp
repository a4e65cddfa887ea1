@0xa99fb3c935b9f549;
# Sepal's protocol between a client that trains and the servers that hold frozen blocks.
#
# A batch is ragged: no padding crosses the wire. Every row starts with the same soft prompts, whose
# hidden states under a causal mask do not depend on what follows; they are sent once per batch.
# Messages go in frames, with a checksum, and the numbers of large tensors beside them (crates/wire/src/frame.rs).
# Every result may carry a `failure` in place of its other fields.

enum DType {
  f32 @0;
  f16 @1;
  bf16 @2;
  q8 @3;  # blocks of 64 numbers (the last may be shorter), each a binary32 scale and that many signed bytes
}

struct Tensor {
  # Row-major, little-endian.
  dtype @0 :DType;
  shape @1 :List(UInt32);
  data @2 :Data;
  part @3 :UInt64;  # the numbers came beside this message under this name, and data is empty; 0: they are in data
}

struct NamedTensor {
  name @0 :Text;
  tensor @1 :Tensor;
}

struct Span {
  # Blocks start..end.
  start @0 :UInt32;
  end @1 :UInt32;
}

struct RaggedBatch {
  # hidden [prefixLen + n_tokens, hidden]: the shared prefix, then the rows end to end; without the prefix if the
  # server has kept its keys and values.
  # Row r is positions offsets[r]..offsets[r + 1] behind the prefix; offsets [rows + 1].
  prefixLen @0 :UInt32;
  offsets @1 :List(UInt32);
  hidden @2 :Tensor;
  prefixKept @3 :Bool;
}

enum Want {
  all @0;         # [prefixLen + n_tokens, hidden]
  lastOfRows @1;  # [rows, hidden]
}

enum InputGrad {
  all @0;     # [prefixLen + n_tokens, hidden], what the hop before needs
  prefix @1;  # [prefixLen, hidden], what the client needs: embeddings are frozen
  none @2;
}

struct GradWant {
  input @0 :InputGrad;
  tunables @1 :Bool;
  dtype @2 :DType;  # of a gradient of hidden states; where that is q8, those of prefix and tunables are bf16
}

struct Grads {
  input @0 :Tensor;                  # absent for InputGrad.none
  tunables @1 :List(NamedTensor);    # summed over the rows
  notFinite @2 :UInt32;              # 1 + the last block of the model whose gradients were not finite; 0: all were
}

enum Retry {
  here @0;       # the same server may do it, a little later
  elsewhere @1;  # another server may do it
  never @2;      # the request is wrong
}

enum FailureCode {
  invalidRequest @0;  # shape, dtype, name, limits
  notServed @1;       # blocks outside this server's span
  tapeExpired @2;     # the tape gave way to others: send the inputs again
  overloaded @3;      # the queue is full
  shuttingDown @4;
  computeFailed @5;   # out of memory, or a bug
  unreadable @6;      # damaged on the way: send it again
  notRelayed @7;      # the result could not be handed on: the way through the client is open
}

struct Failure {
  retry @0 :Retry;
  code @1 :FailureCode;
  message @2 :Text;
}

struct Limits {
  maxRows @0 :UInt32;           # rows of one batch
  maxTokens @1 :UInt32;         # prefix and tokens of one batch
  maxMessageBytes @2 :UInt64;
  tapeBudgetBytes @3 :UInt64;   # all clients together
}

struct Load {
  queue @0 :UInt32;      # calls that wait or run
  tapes @1 :UInt32;
  tapeBytes @2 :UInt64;
  completed @3 :UInt64;  # computations finished since the start: a server that hangs counts no further
  rate @4 :Float64;      # measured seconds per token and block of a forward; 0 before the first
}

struct Timing {
  # What a call took on the server, so that a client can tell computing from waiting and from the way.
  queuedUs @0 :UInt64;
  computedUs @1 :UInt64;
}

struct ServerInfo {
  protocol @0 :UInt32;
  software @1 :Text;
  modelDigest @2 :Text;
  family @3 :Text;
  nBlocks @4 :UInt32;    # of the whole model
  hidden @5 :UInt32;
  span @6 :Span;         # what this server holds
  computeDtype @7 :DType;
  weights @8 :Text;      # the checkpoint in words, for people
  limits @9 :Limits;
  load @10 :Load;
  tapeTokenBytes @11 :UInt32;  # about what a kept graph holds for each token and block
  draining @12 :Bool;          # it is about to leave: it finishes what it has and takes nothing new
}

struct Relay {
  # A call's place in a chain of servers that hand tensors on to each other. A key is 16 bytes that only
  # the client and the two servers know.
  from @0 :Data;         # the input comes from another server, under this key; empty: it is in the call
  nextAddress @1 :Text;  # the result goes to this server, as the client reaches it; empty: to the caller
  nextKey @2 :Data;      # under this key
}

interface BlockServer {
  # The bootstrap object.
  describe @0 () -> (info :ServerInfo);
  open @1 (span :Span) -> (session :Session, failure :Failure);
  # From another server: a tensor for the call that waits, or will wait, under this key.
  deliver @2 (key :Data, tensor :Tensor) -> (failure :Failure);
}

interface Session {
  # A part of the server's span, for one client.
  # alone: never computed together with calls of other clients, so that the last bits do not depend on them.
  tune @0 (tunables :List(NamedTensor), alone :Bool) -> (tuned :Tuned, failure :Failure);
}

interface Tuned {
  # A session with the injected tensors of one optimizer step, for as many batches as there are.
  # Tunables are stacked by block: deep_prompts [n_blocks of the session, prefixLen, hidden].
  # A forward without a tape keeps the prefix's keys and values here, for batches that come without it.
  # Where the result is handed on, there is no output; where the input comes from another server, the batch
  # has no hidden states. notFinite: 1 + the first block of the model whose hidden states were not finite; 0: all were.
  forward @0 (batch :RaggedBatch, want :Want, keepTape :Bool, dtype :DType, relay :Relay) -> (output :Tensor, tape :Tape, failure :Failure, timing :Timing, notFinite :UInt32);
  # Without a tape: forward again, then backward.
  backward @1 (batch :RaggedBatch, want :Want, gradOutput :Tensor, grad :GradWant) -> (grads :Grads, failure :Failure, timing :Timing);
}

interface Tape {
  # The graph of one forward, kept on the server. It answers once; dropping it frees the memory.
  # Where the gradient of the input is handed on, it is not in the answer.
  backward @0 (gradOutput :Tensor, grad :GradWant, relay :Relay) -> (grads :Grads, failure :Failure, timing :Timing);
}
