//! Attention of ragged batches by each method against a reference in fp64.

use sepal_core::{Ragged, Want};
use tch::{Device, Kind, Tensor};

use super::alibi::Alibi;
use super::grouped;
use super::heads::{AttentionRange, Heads};
use super::layout::Layout;
use super::masks::MaskConfig;
use super::methods::{Limits, Method};
use super::packed_batch::PackedBatch;
use crate::layers::rope::Rotaries;

const HEADS: Heads = Heads {
    kv: 2,
    repeat: 1,
    dim: 8,
    scale: None,
    cap: None,
    range: AttentionRange::Full,
    is_rotated: true,
    has_adjacent_pairs: false,
};

/// Nothing but the shortest rows has a mask, and temporary tensors have few numbers.
const SMALL: Limits = Limits { masked_positions: 8, mask_numel: 1 << 21, masked_prefix: 4, temporary_numel: 1500 };

/// Bins of several rows and rows of more than one block of queries.
const LENGTHS: [usize; 8] = [5, 1, 70, 3, 12, 1, 66, 70];

struct Case {
    heads: Heads,
    config: MaskConfig,
    prefix_len: usize,
    sinks: Option<Tensor>,
    kind: Kind,
    /// Relative to the largest number.
    tolerance: f64,
}

impl Case {
    fn new(repeat: usize, prefix_len: usize, limits: Limits) -> Self {
        let device = Device::Cpu;
        let config = MaskConfig { repeat, alibi: None, window: None, is_capped: false, device, limits };
        let heads = Heads { repeat: repeat as i64, ..HEADS };
        Self { heads, config, prefix_len, sinks: None, kind: Kind::Float, tolerance: 1e-5 }
    }

    fn with_window(mut self, window: usize) -> Self {
        self.config.window = Some(window);
        self.heads.range = AttentionRange::Windowed;
        self
    }

    fn with_cap(mut self, cap: f64) -> Self {
        self.config.is_capped = true;
        self.heads.cap = Some(cap);
        self
    }

    fn with_alibi(mut self, alibi: Alibi) -> Self {
        self.config.alibi = Some(alibi);
        self
    }

    fn with_sinks(mut self) -> Self {
        self.sinks = Some(random(&[self.heads.n_query()], 9));
        self
    }

    fn with_kind(self, kind: Kind, tolerance: f64) -> Self {
        Self { kind, tolerance, ..self }
    }

    fn label(&self) -> String {
        let MaskConfig { repeat, window, limits, alibi, .. } = &self.config;
        let (prefix_len, cap) = (self.prefix_len, self.heads.cap);
        format!(
            "repeat {repeat}, prefix {prefix_len}, window {window:?}, cap {cap:?}, {alibi:?}, {:?}, {limits:?}",
            self.kind
        )
    }

    fn layout(&self, rows: &Ragged, want: Want) -> Layout {
        Layout::new(self.prefix_len, false, rows, want, &self.config).expect("a layout")
    }

    /// Addends to the scores of queries at `first..` on the first keys, `[kv or 1, queries, keys]`.
    fn bias(&self, first: usize, n_keys: usize) -> Tensor {
        let (window, alibi) = (self.config.window.unwrap_or(usize::MAX), self.config.alibi.as_ref());
        let n_heads = alibi.map_or(1, Alibi::n_heads);
        let mut numbers = Vec::new();
        for head in 0..n_heads {
            for query in first..n_keys {
                numbers.extend((0..n_keys).map(|key| match alibi {
                    _ if key > query || query - key >= window => f64::NEG_INFINITY,
                    Some(alibi) => f64::from(alibi.bias(head, query, key)),
                    None => 0.0,
                }));
            }
        }
        Tensor::from_slice(&numbers).view([n_heads as i64, (n_keys - first) as i64, n_keys as i64])
    }

    /// Attention of queries `[n, q_size]` at the positions from `first` on all keys `[first + n, 2 kv_size]`.
    fn attend(&self, first: usize, q: &Tensor, kv: &Tensor) -> Tensor {
        let Heads { kv: n_heads, repeat, dim, .. } = self.heads;
        let (n_queries, n_keys) = (q.size()[0], kv.size()[0]);
        let q = q.view([n_queries, repeat, n_heads, dim]).permute([1, 2, 0, 3]); // [repeat, kv, queries, dim]
        let kv = kv.view([n_keys, 2, n_heads, dim]);
        let [keys, values] = [0, 1].map(|i| kv.select(1, i).transpose(0, 1)); // [kv, keys, dim]
        let scores = q.matmul(&keys.transpose(-2, -1)) * self.heads.scale();
        let scores = match self.heads.cap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        };
        let scores = scores + self.bias(first, n_keys as usize);
        let scores = match &self.sinks {
            Some(sinks) => {
                let sinks = sinks.to_kind(Kind::Double).view([repeat, n_heads, 1, 1]);
                Tensor::cat(&[scores, sinks.expand([repeat, n_heads, n_queries, 1], false)], -1)
            }
            None => scores,
        };
        let weights = scores.softmax(-1, Kind::Double).narrow(-1, 0, n_keys);
        weights.matmul(&values).permute([2, 0, 1, 3]).reshape([n_queries, self.heads.q_size()])
    }

    /// Attention of all positions, in the caller's order.
    fn reference(&self, q: &Tensor, kv: &Tensor, rows: &Ragged) -> Tensor {
        let prefix_len = self.prefix_len as i64;
        let prefix_kv = kv.narrow(0, 0, prefix_len);
        let mut outputs = Vec::new();
        if prefix_len > 0 {
            outputs.push(self.attend(0, &q.narrow(0, 0, prefix_len), &prefix_kv));
        }
        for row in 0..rows.len() {
            let (start, len) = (prefix_len + rows.range(row).start as i64, rows.row_len(row) as i64);
            let row_kv = Tensor::cat(&[prefix_kv.shallow_clone(), kv.narrow(0, start, len)], 0);
            outputs.push(self.attend(self.prefix_len, &q.narrow(0, start, len), &row_kv));
        }
        Tensor::cat(&outputs, 0)
    }
}

fn random(shape: &[i64], seed: u64) -> Tensor {
    sepal_nn::init::normal(shape, 1.0, &mut sepal_nn::init::rng(seed, "attention")).expect("numbers")
}

fn assert_close(found: &Tensor, expected: &Tensor, case: &Case, label: &str) {
    assert_eq!(found.size(), expected.size(), "{label}: {}", case.label());
    let off = f64::try_from((found.to_kind(Kind::Double) - expected).abs().max()).expect("a number");
    let largest = f64::try_from(expected.abs().max()).expect("a number");
    assert!(off <= case.tolerance * largest, "{label}: off by {off} of {largest}, {}", case.label());
}

/// Inputs of one batch in the caller's order, and the reference results for a weighted sum of the outputs.
struct Expected {
    rows: Ragged,
    q: Tensor,
    kv: Tensor,
    /// Gradient of the outputs.
    grad: Tensor,
    output: Tensor,
    grad_q: Tensor,
    grad_kv: Tensor,
}

impl Expected {
    /// `last` selects positions whose outputs have weights; by default all have.
    fn new(case: &Case, lengths: &[usize], last: Option<&Tensor>) -> Self {
        let rows = Ragged::from_lengths(lengths.iter().copied()).expect("rows");
        let n = (case.prefix_len + rows.n_tokens()) as i64;
        // Numbers that the kind of the case has.
        let numbers = |width: i64, seed: u64| random(&[n, width], seed).to_kind(case.kind);
        let (q, kv) = (numbers(case.heads.q_size(), 1), numbers(2 * case.heads.kv_size(), 2));
        let grad = numbers(case.heads.q_size(), 3);
        let grad = match last {
            Some(last) => grad.zeros_like().index_copy(0, last, &grad.index_select(0, last)),
            None => grad,
        };
        let leaf = |tensor: &Tensor| tensor.to_kind(Kind::Double).copy().set_requires_grad(true);
        let (leaf_q, leaf_kv) = (leaf(&q), leaf(&kv));
        let output = case.reference(&leaf_q, &leaf_kv, &rows);
        (&output * grad.to_kind(Kind::Double)).sum(Kind::Double).backward();
        Self { rows, q, kv, grad, output: output.detach(), grad_q: leaf_q.grad(), grad_kv: leaf_kv.grad() }
    }
}

/// Compares outputs and gradients of all positions with the reference. Returns the methods of the groups.
fn check(case: &Case, lengths: &[usize]) -> Vec<&'static str> {
    let expected = Expected::new(case, lengths, None);
    let layout = case.layout(&expected.rows, Want::All);
    let packed = PackedBatch::new(vec![&layout], &Rotaries::default()).expect("a packed batch");
    let slots = |tensor: &Tensor| layout.to_slots(tensor).expect("slots");
    let (q, kv, grad) = (slots(&expected.q), slots(&expected.kv), slots(&expected.grad));
    let found = grouped::forward(&q, &kv, case.heads, case.sinks.as_ref(), &packed, &[None]).expect("a forward pass");
    let in_order = |tensor: &Tensor| layout.to_caller_order(tensor).expect("positions");
    assert_eq!(found.output.kind(), case.kind, "{}", case.label());
    assert_close(&in_order(&found.output), &expected.output, case, "output");
    let (mut grad_q, grad_kv) = (q.empty_like(), kv.empty_like());
    let saved = &found.saved[0];
    grouped::backward(saved, &grad, case.heads, &layout, &mut grad_q, &grad_kv).expect("a backward pass");
    assert_close(&in_order(&grad_q), &expected.grad_q, case, "gradient of queries");
    assert_close(&in_order(&grad_kv), &expected.grad_kv, case, "gradient of keys and values");
    layout.groups.iter().map(|group| name(group.methods.get(case.heads.range))).collect()
}

/// As [`check`], for the last tokens of rows.
fn check_pooled(case: &Case, lengths: &[usize]) -> Vec<&'static str> {
    let ends = lengths.iter().scan(case.prefix_len, |end, len| {
        *end += len;
        Some(*end as i64 - 1)
    });
    let last = Tensor::from_slice(&ends.collect::<Vec<i64>>());
    let expected = Expected::new(case, lengths, Some(&last));
    let layout = case.layout(&expected.rows, Want::LastOfRows);
    let packed = PackedBatch::new(vec![&layout], &Rotaries::default()).expect("a packed batch");
    let select = |tensor: &Tensor| tensor.index_select(0, &last);
    let (q, grad, kv) = (select(&expected.q), select(&expected.grad), layout.to_slots(&expected.kv).expect("slots"));
    let found =
        grouped::forward_pooled(&q, &kv, case.heads, case.sinks.as_ref(), &packed, &[None]).expect("a forward pass");
    assert_close(&found.output, &select(&expected.output), case, "output of last tokens");
    let (mut grad_q, grad_kv) = (q.zeros_like(), kv.empty_like());
    let saved = &found.saved[0];
    grouped::backward_pooled(saved, &grad, case.heads, &layout, &mut grad_q, &grad_kv).expect("a backward pass");
    assert_close(&grad_q, &select(&expected.grad_q), case, "gradient of last queries");
    let grad_kv = layout.to_caller_order(&grad_kv).expect("positions");
    assert_close(&grad_kv, &expected.grad_kv, case, "gradient of keys and values, from last tokens");
    layout.pooled_groups().map(|(_, group)| name(group.methods.get(case.heads.range))).collect()
}

fn name(method: &Method) -> &'static str {
    match method {
        Method::Unmasked => "unmasked",
        Method::Masked(_) => "masked",
        Method::Split(_) => "split",
        Method::Causal => "causal",
        Method::Blocks => "blocks",
    }
}

/// Groups: the prefix, the bin of the short rows, and rows of 66 and of 70 tokens.
#[test]
fn plain_attention_equals_the_reference() {
    for repeat in [1, 4] {
        for prefix_len in [0, 1] {
            let groups = usize::from(prefix_len > 0);
            let found = check(&Case::new(repeat, prefix_len, Limits::CPU), &LENGTHS);
            assert_eq!(found, vec!["masked"; 3 + groups]);
            let found = check(&Case::new(repeat, prefix_len, SMALL), &LENGTHS);
            assert_eq!(found[groups..], ["masked", "causal", "causal"]);
            let pooled = check_pooled(&Case::new(repeat, prefix_len, SMALL), &LENGTHS);
            assert_eq!(pooled, ["masked", "unmasked", "unmasked"]);
        }
        let found = check(&Case::new(repeat, 5, SMALL), &LENGTHS);
        assert_eq!(found, ["masked", "split", "causal", "causal"]);
        let found = check(&Case::new(repeat, 300, Limits::CPU), &LENGTHS);
        assert_eq!(found, ["masked", "split", "masked", "masked"]);
        let found = check(&Case::new(repeat, 300, SMALL), &LENGTHS);
        assert_eq!(found, ["causal", "split", "causal", "causal"]);
        let pooled = check_pooled(&Case::new(repeat, 300, SMALL), &LENGTHS);
        assert_eq!(pooled, ["split", "unmasked", "unmasked"]);
    }
}

/// A row of more keys than the kernel computes at once, by the method that it has without smaller limits.
#[test]
fn long_row_equals_the_reference() {
    for prefix_len in [0, 16] {
        let groups = usize::from(prefix_len > 0);
        assert_eq!(check(&Case::new(2, prefix_len, Limits::CPU), &[600, 3])[groups..], ["masked", "causal"]);
        let windowed = Case::new(2, prefix_len, Limits::CPU).with_window(100);
        assert_eq!(check(&windowed, &[600, 3])[groups..], ["masked", "blocks"]);
    }
}

#[test]
fn windows_equal_the_reference() {
    for repeat in [1, 4] {
        for prefix_len in [0, 1, 5, 300] {
            // Windows that end in the prefix, in the row, and beyond all of it.
            for window in [3, 40, 320, 1000] {
                let groups = usize::from(prefix_len > 0);
                let case = |limits| Case::new(repeat, prefix_len, limits).with_window(window);
                check(&case(Limits::CPU), &LENGTHS);
                check_pooled(&case(Limits::CPU), &LENGTHS);
                let rows = if window < prefix_len + 66 { "blocks" } else { "causal" };
                assert_eq!(check(&case(SMALL), &LENGTHS)[groups + 1], rows, "{prefix_len}, {window}");
                check_pooled(&case(SMALL), &LENGTHS);
            }
        }
    }
}

#[test]
fn caps_equal_the_reference() {
    for (repeat, prefix_len) in [(1, 0), (4, 1), (2, 5), (2, 300)] {
        for limits in [Limits::CPU, SMALL] {
            let case = || Case::new(repeat, prefix_len, limits).with_cap(1.5);
            check(&case(), &LENGTHS);
            check_pooled(&case(), &LENGTHS);
            check(&case().with_window(40), &LENGTHS);
        }
        let found = check(&Case::new(repeat, prefix_len, SMALL).with_cap(1.5), &LENGTHS);
        assert_eq!(found.last(), Some(&"blocks"));
    }
}

#[test]
fn alibi_equals_the_reference() {
    for prefix_len in [0, 1, 5, 300] {
        for limits in [Limits::CPU, SMALL] {
            for alibi in [Alibi::new(2), Alibi::rounded(2, 8)] {
                let case = Case::new(1, prefix_len, limits).with_alibi(alibi);
                check(&case, &LENGTHS);
                check_pooled(&case, &LENGTHS);
                let case = case.with_window(40);
                check(&case, &LENGTHS);
                check_pooled(&case, &LENGTHS);
            }
        }
        let found = check(&Case::new(1, prefix_len, SMALL).with_alibi(Alibi::new(2)), &LENGTHS);
        assert_eq!(found.last(), Some(&"blocks"));
    }
}

#[test]
fn sinks_equal_the_reference_by_each_method() {
    for (repeat, prefix_len) in [(1, 0), (4, 5), (4, 300)] {
        for limits in [Limits::CPU, SMALL] {
            let case = || Case::new(repeat, prefix_len, limits).with_sinks();
            check(&case(), &LENGTHS);
            check_pooled(&case(), &LENGTHS);
            check(&case().with_window(40), &LENGTHS);
            check_pooled(&case().with_window(40), &LENGTHS);
            check(&case().with_cap(1.5), &LENGTHS);
        }
    }
}

/// The numbers are those of the kinds; their products and sums are rounded.
#[test]
fn half_precision_is_close_to_the_reference() {
    for (kind, tolerance) in [(Kind::BFloat16, 2e-2), (Kind::Half, 3e-3)] {
        for prefix_len in [0, 5, 300] {
            for limits in [Limits::CPU, SMALL] {
                let case = || Case::new(2, prefix_len, limits).with_kind(kind, tolerance);
                check(&case(), &LENGTHS);
                check_pooled(&case(), &LENGTHS);
                check(&case().with_window(40), &LENGTHS);
                check(&case().with_cap(1.5), &LENGTHS);
                check_pooled(&case().with_cap(1.5).with_sinks(), &LENGTHS);
            }
        }
    }
}
