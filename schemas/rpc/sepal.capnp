@0xa99fb3c935b9f549;
# Sepal's protocol between a client that trains and the servers that hold frozen blocks.
#
# Batches are ragged: no padding crosses the wire. Every row starts with the same soft prompts. Under a causal mask
# their hidden states do not depend on the rest of the row, so they are sent once per batch.
# Messages are sent in frames with a checksum, and the data of large tensors beside them (crates/wire/src/frame.rs).
# Every result may have a `failure` in place of its other fields.

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
  part @3 :UInt64;  # name of the part with the data, which is sent beside this message; 0: the data is in the field above
}

struct NamedTensor {
  name @0 :Text;
  tensor @1 :Tensor;
  firstBlock @2 :UInt32;  # first block of the model that the tensor, which is stacked by block, belongs to
}

struct Span {
  # Blocks start..end.
  start @0 :UInt32;
  end @1 :UInt32;
}

struct RaggedBatch {
  # hidden [prefixLen + n_tokens, hidden]: the shared prefix, then the rows end to end. The prefix is left out if the
  # server's prefix cache holds its keys and values.
  # Row r is positions offsets[r]..offsets[r + 1] behind the prefix; offsets [rows + 1].
  prefixLen @0 :UInt32;
  offsets @1 :List(UInt32);
  hidden @2 :Tensor;
  prefixKept @3 :Bool;
}

enum Want {
  all @0;         # [prefixLen + n_tokens, hidden]
  lastOfRows @1;  # [rows, hidden]
  tokens @2;      # [n_tokens, hidden]
  meanOfRows @3;  # [rows, hidden]
}

enum InputGrad {
  all @0;     # [prefixLen + n_tokens, hidden], for the previous hop
  prefix @1;  # [prefixLen, hidden], for the client: embeddings are frozen
  none @2;
}

struct GradWant {
  input @0 :InputGrad;
  tunables @1 :Bool;
  dtype @2 :DType;  # of gradients of hidden states; for q8, gradients of prefix and tunables are bf16
}

struct Grads {
  input @0 :Tensor;                  # absent for InputGrad.none
  tunables @1 :List(NamedTensor);    # summed over the rows
  notFinite @2 :UInt32;              # 1 + the last block of the model with non-finite gradients; 0: none
}

enum Retry {
  here @0;       # retry on the same server after a short pause
  elsewhere @1;  # retry on another server
  never @2;      # the request is wrong
}

enum FailureCode {
  invalidRequest @0;  # shape, dtype, name, limits
  notServed @1;       # blocks outside this server's span
  tapeExpired @2;     # the tape was evicted: send the inputs again
  overloaded @3;      # the queue is full
  shuttingDown @4;
  computeFailed @5;   # out of memory, or a bug
  unreadable @6;      # damaged in transit: send it again
  notRelayed @7;      # the result could not be forwarded: send it through the client
  noMemory @8;        # a call or tensors that never fit the server's memory for one client
  notPermitted @9;    # the caller has no right to this
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
  clientBytes @4 :UInt64;       # tunables and prefixes of one client; 0: unstated
  sharedBytes @5 :UInt64;       # tunables and prefixes of all clients together; 0: unstated
  maxRowTokens @6 :UInt32;      # prefix and tokens of one row, by the model or the server; 0: unstated
  callBytes @7 :UInt64;         # estimated memory of one computation; 0: unstated
}

struct Load {
  queue @0 :UInt32;      # calls that wait or run
  tapes @1 :UInt32;
  tapeBytes @2 :UInt64;
  completed @3 :UInt64;  # computations since the start; shows that a busy server makes progress
  rate @4 :Float64;      # measured seconds per token and block of a forward pass; 0 before the first
}

struct Timing {
  # Durations of a call on the server, so that a client can separate computing, queueing and transfer.
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
  span @6 :Span;         # blocks of this server
  computeDtype @7 :DType;
  weights @8 :Text;      # description of the checkpoint for people
  limits @9 :Limits;
  load @10 :Load;
  tapeTokenBytes @11 :UInt32;  # estimated bytes of a tape per token and block
  draining @12 :Bool;          # the server finishes its calls and accepts no new ones
  oldestProtocol @13 :UInt32;  # oldest protocol of a client that the server accepts; 0: its own
  tunables @14 :List(Text);    # names that the blocks take; empty: deep_prompts and prefix_keys_values
  name @15 :Text;              # name for people; empty: none
  key @16 :Data;               # public key (Ed25519, 32 bytes) that signs receipts; empty: none
  receipts @17 :UInt64;        # receipts that were signed since the start
}

struct Receipt {
  # Statement of a server about one call, signed with its key. crates/swarm/src/receipt.rs has the signed bytes.
  input @0 :Data;      # SHA-256 of the input of the call
  output @1 :Data;     # SHA-256 of its result
  signature @2 :Data;  # Ed25519
}

struct Relay {
  # Source of a call's input and target of its result in a chain of servers. A mailbox key is 16 bytes that only
  # the client and the two servers know.
  from @0 :Data;         # mailbox key of the input, which another server sends; empty: it is in the call
  nextAddress @1 :Text;  # address, as the client reaches it, of the server that receives the result; empty: the caller
  nextKey @2 :Data;      # mailbox key at that server
}

interface BlockServer {
  # The bootstrap object.
  describe @0 () -> (info :ServerInfo);
  # The client states the protocols that it speaks; 0: up to 5.
  open @1 (span :Span, protocol :UInt32, oldestProtocol :UInt32) -> (session :Session, failure :Failure);
  # Called by another server: delivers a tensor to the mailbox of this key.
  deliver @2 (key :Data, tensor :Tensor) -> (failure :Failure);
}

interface Session {
  # A subspan of the server's span, for one client.
  # alone: exclusive, never computed together with calls of other clients, so that results do not depend on them.
  tune @0 (tunables :List(NamedTensor), alone :Bool) -> (tuned :Tuned, failure :Failure);
}

interface Tuned {
  # A session with the injected tensors of one optimizer step, for any number of batches.
  # Tunables are stacked by block, those of a part of the session's blocks from firstBlock: deep_prompts [blocks,
  # prefixLen, hidden], prefix_keys_values [blocks, prefixLen, 2 * size of all key heads], lora_A:LAYER [blocks, rank,
  # inputs], lora_B:LAYER [blocks, outputs, rank], scale_output:LAYER [blocks, outputs], scale_input:LAYER [blocks,
  # inputs]. A layer has its name and its order of inputs and outputs in the checkpoint.
  # A forward pass without a tape stores the prefix's keys and values here, for batches without the prefix.
  # The output is absent if it is forwarded to another server. The hidden states of the batch are absent if another
  # server sends them. sign: the result has a receipt, if the server has a key. notFinite: 1 + the first block of the model with non-finite hidden states; 0: none.
  forward @0 (batch :RaggedBatch, want :Want, keepTape :Bool, dtype :DType, relay :Relay, sign :Bool) -> (output :Tensor, tape :Tape, failure :Failure, timing :Timing, notFinite :UInt32, receipt :Receipt);
  # Stateless: runs the forward pass again, then the backward pass.
  backward @1 (batch :RaggedBatch, want :Want, gradOutput :Tensor, grad :GradWant, sign :Bool) -> (grads :Grads, failure :Failure, timing :Timing, receipt :Receipt);
}

interface Tape {
  # The activations of one forward pass on the server. A tape serves one backward pass; dropping it frees the memory.
  # The gradient of the input is absent from the result if it is forwarded to another server.
  backward @0 (gradOutput :Tensor, grad :GradWant, relay :Relay, sign :Bool) -> (grads :Grads, failure :Failure, timing :Timing, receipt :Receipt);
}
