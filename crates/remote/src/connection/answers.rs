//! Checks of answers, one function for each kind. Nothing of an answer is used before its check.

use sepal_core::{DType, HostTensor, HostTunable, Span};
use sepal_swarm::Endpoint;
use sepal_wire::ServerInfo;
use sepal_wire::codec::{GradWant, Grads, InputGrad, WireBatch};

use crate::error::{CallError, DIGEST, PROTOCOL, RemoteError};
use crate::expectation::ModelExpectation;
use crate::step::Step;

/// Oldest protocol in which gradients of tunables name their first block.
const NAMED_BLOCKS: u32 = 6;
/// Maximum number of tunables in a description. Models have a few dozen kinds.
const MAX_TUNABLES: usize = 4096;
/// Maximum bytes of all texts in a description.
const MAX_TEXT_BYTES: usize = 256 << 10;

/// Checks that a server serves the expected model, takes the run's tunables and states possible limits.
pub(super) fn check_description(
    info: &ServerInfo,
    expected: &ModelExpectation,
    endpoint: &Endpoint,
) -> Result<(), CallError> {
    let (ours, theirs) = ([sepal_wire::OLDEST_SERVER, sepal_wire::PROTOCOL], [info.oldest_protocol, info.protocol]);
    let range = |[oldest, newest]: [u32; 2]| format!("{oldest} to {newest}");
    let comparisons = [
        ("the number of blocks", expected.n_blocks.to_string(), info.n_blocks.to_string()),
        ("the hidden size", expected.hidden.to_string(), info.hidden.to_string()),
        (DIGEST, expected.digest.clone(), info.model_digest.clone()),
    ];
    let difference = match sepal_wire::common_protocol(ours, theirs) {
        None => Some((PROTOCOL, range(ours), range(theirs))),
        Some(_) => comparisons.into_iter().find(|(_, expected, found)| expected != found),
    };
    if let Some((what, expected, found)) = difference {
        let server = endpoint.to_string();
        return Err(CallError::Unusable(RemoteError::WrongModel { server, what, expected, found }));
    }
    if let Some(tunable) = expected.tunables.iter().find(|name| !info.tunables.contains(name)) {
        let (server, tunable) = (endpoint.to_string(), tunable.clone());
        return Err(CallError::Unusable(RemoteError::Lacks { server, tunable }));
    }
    check_bounds(info, expected)
}

/// Refuses a description that no server of the model can have.
fn check_bounds(info: &ServerInfo, expected: &ModelExpectation) -> Result<(), CallError> {
    let texts = [&info.software, &info.family, &info.weights, &info.model_digest];
    let text_bytes: usize = texts.into_iter().chain(&info.tunables).map(String::len).sum();
    // A position and its gradient.
    let least_message = 2 * expected.hidden as u64;
    let limits = &info.limits;
    let wrong = [
        (info.span.end() > expected.n_blocks, "a last block of", info.span.end() as u64),
        (info.tunables.len() > MAX_TUNABLES, "this number of tunables:", info.tunables.len() as u64),
        (text_bytes > MAX_TEXT_BYTES, "texts of this number of bytes:", text_bytes as u64),
        (limits.max_rows == 0, "a maximum number of rows of", limits.max_rows.into()),
        (limits.max_tokens == 0, "a maximum number of tokens of", limits.max_tokens.into()),
        (limits.max_message_bytes < least_message, "a maximum message size in bytes of", limits.max_message_bytes),
    ];
    match wrong.into_iter().find(|(is_wrong, ..)| *is_wrong) {
        Some((_, what, found)) => Err(CallError::Description { what, found }),
        None => Ok(()),
    }
}

/// Shape and format of the tensor in an answer.
pub(super) struct ExpectedTensor {
    pub(super) shape: [usize; 2],
    pub(super) dtype: DType,
}

impl ExpectedTensor {
    pub(super) fn n_bytes(&self) -> usize {
        n_bytes(&self.shape, self.dtype)
    }

    /// Checks hidden states of a forward pass or a gradient of them.
    pub(super) fn check(&self, what: &'static str, tensor: &HostTensor) -> Result<(), CallError> {
        check_tensor(what, tensor, &self.shape, self.dtype)
    }
}

/// Checks the block that a server names as the origin of non-finite numbers.
pub(super) fn check_block(block_idx: Option<usize>, span: Span) -> Result<(), CallError> {
    match block_idx {
        Some(block_idx) if !span.contains(block_idx) => {
            let (found, expected) = (block_idx.to_string(), format!("one of {span}"));
            Err(CallError::Invalid { what: "non-finite numbers of block", found, expected })
        }
        _ => Ok(()),
    }
}

/// Gradients that a backward pass has to return.
pub(crate) struct ExpectedGrads {
    span: Span,
    input: Option<ExpectedTensor>,
    /// The tunables themselves, whose gradients have the same names, blocks and shapes.
    tunables: Vec<HostTunable>,
    want: GradWant,
}

impl ExpectedGrads {
    /// Returns the gradients of a batch in `span` that `want` selects.
    pub(crate) fn new(
        step: &Step,
        span: Span,
        batch: &WireBatch,
        hidden: usize,
        want: GradWant,
    ) -> Result<Self, CallError> {
        let positions = match want.input {
            InputGrad::All => Some(batch.positions()),
            InputGrad::Prefix => Some(batch.prefix_len),
            InputGrad::None => None,
        };
        let dtype = want.input_dtype();
        let input = positions.map(|positions| ExpectedTensor { shape: [positions, hidden], dtype });
        let tunables = if want.tunables { step.slice_tunables(span)? } else { Vec::new() };
        Ok(Self { span, input, tunables, want })
    }

    /// Bytes of all tensors.
    pub(super) fn n_bytes(&self) -> usize {
        let dtype = self.want.tunables_dtype();
        let tunables = self.tunables.iter().map(|tunable| n_bytes(tunable.tensor.shape(), dtype));
        tunables.chain(self.input.as_ref().map(ExpectedTensor::n_bytes)).fold(0, usize::saturating_add)
    }

    /// Checks gradients. A missing one would count as zero, and one of another shape would be added to all blocks or rows.
    pub(super) fn check(&self, mut grads: Grads, protocol: u32) -> Result<Grads, CallError> {
        match (&grads.input, &self.input) {
            (Some(grad), Some(expected)) => expected.check("a gradient of the input of", grad)?,
            (None, Some(_)) => return Err(CallError::Missing("the requested gradient of the input")),
            (Some(grad), None) => {
                let (found, expected) = (describe(grad.shape(), grad.dtype()), "none".to_owned());
                return Err(CallError::Invalid { what: "a gradient of the input of", found, expected });
            }
            (None, None) => {}
        }
        if grads.tunables.len() != self.tunables.len() {
            let (found, expected) = (grads.tunables.len().to_string(), self.tunables.len().to_string());
            return Err(CallError::Invalid { what: "this number of gradients of tunables:", found, expected });
        }
        for (tunable, grad) in self.tunables.iter().zip(&mut grads.tunables) {
            if protocol < NAMED_BLOCKS {
                grad.first_block = tunable.first_block;
            }
            if (&grad.name, grad.first_block) != (&tunable.name, tunable.first_block) {
                let name = |tunable: &HostTunable| format!("`{}` from block {}", tunable.name, tunable.first_block);
                let (found, expected) = (name(grad), name(tunable));
                return Err(CallError::Invalid { what: "a gradient of", found, expected });
            }
            check_tensor(
                "a gradient of a tunable of",
                &grad.tensor,
                tunable.tensor.shape(),
                self.want.tunables_dtype(),
            )?;
        }
        check_block(grads.not_finite, self.span)?;
        Ok(grads)
    }
}

/// Checks a tensor's number of dimensions, each size and the format.
fn check_tensor(what: &'static str, tensor: &HostTensor, shape: &[usize], dtype: DType) -> Result<(), CallError> {
    if tensor.shape() == shape && tensor.dtype() == dtype {
        return Ok(());
    }
    let (found, expected) = (describe(tensor.shape(), tensor.dtype()), describe(shape, dtype));
    Err(CallError::Invalid { what, found, expected })
}

fn describe(shape: &[usize], dtype: DType) -> String {
    format!("shape {shape:?} in {dtype}")
}

/// Returns the bytes of a tensor; all of memory if it has too many numbers.
fn n_bytes(shape: &[usize], dtype: DType) -> usize {
    let numel = shape.iter().try_fold(1_usize, |numel, &dim| numel.checked_mul(dim));
    numel.and_then(|numel| dtype.n_bytes(numel)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use sepal_core::{DEEP_PROMPTS, Ragged};
    use sepal_wire::{Limits, Load};

    use super::*;

    const HIDDEN: usize = 4;
    const PREFIX: usize = 3;

    fn zeros(shape: &[usize]) -> HostTensor {
        HostTensor::from_f32(shape.to_vec(), &vec![0.0; shape.iter().product()]).expect("a tensor")
    }

    fn deep_prompts(first_block: usize, shape: &[usize]) -> HostTunable {
        HostTunable { name: DEEP_PROMPTS.to_owned(), first_block, tensor: zeros(shape) }
    }

    fn expected(input: InputGrad) -> ExpectedGrads {
        let step = Step::new(0, vec![deep_prompts(0, &[3, PREFIX, HIDDEN])]);
        let rows = Ragged::from_lengths([2]).expect("rows");
        let batch = WireBatch::new(PREFIX, rows, zeros(&[PREFIX + 2, HIDDEN])).expect("a batch");
        let want = GradWant { input, tunables: true, dtype: DType::F32 };
        ExpectedGrads::new(&step, Span::new(1, 3).expect("a span"), &batch, HIDDEN, want).expect("expected gradients")
    }

    fn good() -> Grads {
        let tunables = vec![deep_prompts(1, &[2, PREFIX, HIDDEN])];
        Grads { input: Some(zeros(&[PREFIX, HIDDEN])), tunables, not_finite: None }
    }

    #[test]
    fn exact_gradients_are_accepted() {
        let expected = expected(InputGrad::Prefix);
        expected.check(good(), sepal_wire::PROTOCOL).expect("as expected");
        assert_eq!(expected.n_bytes(), 4 * (PREFIX * HIDDEN + 2 * PREFIX * HIDDEN));
        let unnamed = Grads { tunables: vec![deep_prompts(0, &[2, PREFIX, HIDDEN])], ..good() };
        let grads = expected.check(unnamed, NAMED_BLOCKS - 1).expect("of an older server");
        assert_eq!(grads.tunables[0].first_block, 1);
    }

    #[test]
    fn gradients_of_other_shapes_names_and_blocks_are_refused() {
        let input = |shape: &[usize]| Grads { input: Some(zeros(shape)), ..good() };
        let tunables = |tunables: Vec<HostTunable>| Grads { tunables, ..good() };
        let tunable = deep_prompts(1, &[2, PREFIX, HIDDEN]);
        let half = HostTensor::new(DType::F16, vec![PREFIX, HIDDEN], vec![0; 2 * PREFIX * HIDDEN].into());
        for (grads, text) in [
            (Grads { input: None, ..good() }, "without the requested gradient of the input"),
            (input(&[PREFIX, PREFIX, HIDDEN]), "[3, 3, 4]"),
            (input(&[PREFIX]), "[3]"),
            (input(&[PREFIX, 16]), "[3, 16]"),
            (input(&[PREFIX + 2, HIDDEN]), "[5, 4]"),
            (Grads { input: half.ok(), ..good() }, "in f16"),
            (tunables(Vec::new()), "this number of gradients of tunables: 0"),
            (tunables(vec![tunable.clone(), tunable.clone()]), "this number of gradients of tunables: 2"),
            (tunables(vec![HostTunable { name: "other".into(), ..tunable.clone() }]), "`other`"),
            (tunables(vec![HostTunable { first_block: 2, ..tunable.clone() }]), "from block 2"),
            (tunables(vec![deep_prompts(1, &[1, PREFIX, HIDDEN])]), "[1, 3, 4]"),
            (tunables(vec![deep_prompts(1, &[2, 1, HIDDEN])]), "[2, 1, 4]"),
            (Grads { not_finite: Some(0), ..good() }, "block 0"),
        ] {
            let error = expected(InputGrad::Prefix).check(grads, sepal_wire::PROTOCOL).expect_err(text);
            assert!(error.to_string().contains(text), "{text} in {error}");
        }
        let error = expected(InputGrad::None).check(good(), sepal_wire::PROTOCOL).expect_err("unexpected");
        assert!(error.to_string().ends_with("expected none"), "{error}");
    }

    #[test]
    fn descriptions_with_impossible_figures_are_refused() {
        let model = ModelExpectation { digest: "d".into(), n_blocks: 3, hidden: 32, tunables: vec!["a".into()] };
        let good = || ServerInfo {
            protocol: sepal_wire::PROTOCOL,
            oldest_protocol: sepal_wire::OLDEST_CLIENT,
            software: String::new(),
            model_digest: "d".into(),
            family: String::new(),
            n_blocks: 3,
            hidden: 32,
            span: Span::new(0, 3).expect("a span"),
            compute_dtype: DType::F32,
            weights: String::new(),
            limits: Limits::default(),
            load: Load::default(),
            tape_token_bytes: 0,
            draining: false,
            tunables: vec!["a".into()],
            name: None,
            key: None,
            receipts: 0,
        };
        let limits = |limits| ServerInfo { limits, ..good() };
        let endpoint = Endpoint::Addr("127.0.0.1:1".parse().expect("an address"));
        check_description(&good(), &model, &endpoint).expect("a good one");
        for (info, text) in [
            (ServerInfo { n_blocks: 4_000_000_000, ..good() }, "4000000000"),
            (ServerInfo { span: Span::new(0, 4_000_000_000).expect("a span"), ..good() }, "a last block of 4000000000"),
            (ServerInfo { model_digest: "e".into(), ..good() }, "the digest"),
            (ServerInfo { tunables: Vec::new(), ..good() }, "do not take `a`"),
            (ServerInfo { tunables: vec!["a".into(); MAX_TUNABLES + 1], ..good() }, "tunables: 4097"),
            (ServerInfo { family: "x".repeat(MAX_TEXT_BYTES + 1), ..good() }, "bytes: 262147"),
            (limits(Limits { max_rows: 0, ..Limits::default() }), "rows of 0"),
            (limits(Limits { max_tokens: 0, ..Limits::default() }), "tokens of 0"),
            (limits(Limits { max_message_bytes: 0, ..Limits::default() }), "bytes of 0"),
        ] {
            let error = check_description(&info, &model, &endpoint).expect_err(text);
            assert!(error.to_string().contains(text), "{text} in {error}");
        }
    }
}
