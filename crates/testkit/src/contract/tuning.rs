use sepal_core::{DEEP_PROMPTS, PREFIX_KEYS_VALUES, Span};
use sepal_nn::Parameters;
use sepal_plugin::{BuildError, NamedTensor, Plugin, Tuning, TuningContext, TuningMode};
use tch::{Device, Kind, Tensor};

use super::{OTHER_SEED, SEED, check_gradients, check_options, check_start_and_files, numbers, parameters};

const N_BLOCKS: usize = 3;
const HIDDEN: i64 = 8;
const KV_SIZE: usize = 6;
const VOCAB: i64 = 256;

/// Checks a tuning mode.
pub fn check_tuning<P: Plugin<Tuning>>() {
    check_options::<Tuning, P>();
    let name = P::NAME;
    let embeddings = numbers(&[VOCAB, HIDDEN]);
    let before = embeddings.copy();
    let (params, mode) = build::<P>(SEED, &embeddings);
    let (again, _) = build::<P>(SEED, &embeddings);
    let (mut other, loaded) = build::<P>(OTHER_SEED, &embeddings);

    check_shapes(name, &*mode);
    check_spans(name, &*mode);
    check_training(name, &params, &*mode);
    assert!(!embeddings.grad().defined() && embeddings == before, "`{name}`: the model's embeddings stay frozen");
    check_start_and_files(name, &params, &again, &mut other);
    let (expected, found) = (all_tensors(&*mode), all_tensors(&*loaded));
    assert!(expected.iter().zip(&found).all(|(a, b)| a == b), "`{name}`: a loaded mode gives what the saved one did");
}

/// Builds a tuning mode for a model of five blocks with keys and values of size 3. Row `i` of its embeddings `[20, 4]`
/// begins with `4 * i`, and a text has one token, its number of bytes.
///
/// # Errors
/// Those of the plugin.
pub fn build_tuning<P: Plugin<Tuning>>(config: P::Config) -> Result<(Parameters, Box<dyn TuningMode>), BuildError> {
    let mut params = Parameters::new();
    let mut cx = TuningContext {
        params: &mut params,
        n_blocks: 5,
        hidden: 4,
        kv_size: 3,
        initializer_range: 0.5,
        embeddings: &Tensor::arange(80, (Kind::Float, Device::Cpu)).view([20, 4]),
        tokenize: &|text| Ok(vec![text.len() as i64]),
        labels: &["no".to_owned(), "yes".to_owned()],
        is_restored: false,
        seed: 42,
    };
    let mode = P::build(config, &mut cx)?;
    Ok((params, mode))
}

fn build<P: Plugin<Tuning>>(seed: u64, embeddings: &Tensor) -> (Parameters, Box<dyn TuningMode>) {
    let mut params = parameters();
    let mut cx = TuningContext {
        params: &mut params,
        n_blocks: N_BLOCKS,
        hidden: HIDDEN as usize,
        kv_size: KV_SIZE,
        initializer_range: 0.02,
        embeddings,
        tokenize: &|text| Ok(text.bytes().map(i64::from).collect()),
        labels: &["negative".to_owned(), "positive".to_owned()],
        is_restored: false,
        seed,
    };
    let mode = P::build(P::example(), &mut cx).expect("the example builds");
    (params, mode)
}

fn check_shapes(name: &str, mode: &dyn TuningMode) {
    let pre_seq_len = mode.pre_seq_len() as i64;
    match mode.prefix().expect("a prefix") {
        Some(prefix) => {
            assert_eq!(prefix.size(), [pre_seq_len, HIDDEN], "`{name}`: the prefix is [pre_seq_len, hidden]");
            assert!(pre_seq_len > 0, "`{name}`: a prefix that is there has positions");
        }
        None => assert_eq!(pre_seq_len, 0, "`{name}`: without a prefix, pre_seq_len is 0"),
    }
    for NamedTensor { name: tunable, tensor } in tunables(mode, 0, N_BLOCKS) {
        assert_eq!(tensor.size()[0], N_BLOCKS as i64, "`{name}`: `{tunable}` has an entry per block of the span");
        if tunable == DEEP_PROMPTS {
            let expected = [N_BLOCKS as i64, pre_seq_len, HIDDEN];
            assert_eq!(tensor.size(), expected, "`{name}`: deep prompts are [span, pre_seq_len, hidden]");
        }
        if tunable == PREFIX_KEYS_VALUES {
            let expected = [N_BLOCKS as i64, pre_seq_len, 2 * KV_SIZE as i64];
            assert_eq!(tensor.size(), expected, "`{name}`: keys and values are [span, pre_seq_len, 2 * kv_size]");
        }
    }
}

/// Checks that the tunables of each span are the matching part of those of the full model.
fn check_spans(name: &str, mode: &dyn TuningMode) {
    for NamedTensor { name: tunable, tensor } in tunables(mode, 0, N_BLOCKS) {
        for block_idx in 0..N_BLOCKS {
            let part = tunables(mode, block_idx, block_idx + 1).into_iter().find(|part| part.name == tunable);
            let part = part.unwrap_or_else(|| panic!("`{name}`: every span has `{tunable}`"));
            let expected = tensor.narrow(0, block_idx as i64, 1);
            assert_eq!(part.tensor, expected, "`{name}`: block {block_idx} gets its own part of `{tunable}`");
        }
    }
    let beyond = Span::new(N_BLOCKS - 1, N_BLOCKS + 1).expect("a span");
    let beyond_len = mode.tunables(beyond).map(|tunables| tunables.len()).unwrap_or(0);
    assert_eq!(beyond_len, 0, "`{name}`: blocks that the model does not have get nothing");
}

fn check_training(name: &str, params: &Parameters, mode: &dyn TuningMode) {
    // With trained keys and values, the prefix holds only positions.
    let is_keys_values = tunables(mode, 0, N_BLOCKS).iter().any(|named| named.name == PREFIX_KEYS_VALUES);
    for tensor in all_tensors(mode).into_iter().skip(usize::from(is_keys_values)) {
        assert!(tensor.requires_grad(), "`{name}`: prefix and tunables are attached to the parameters");
        (&tensor * numbers(&tensor.size())).sum(Kind::Float).backward();
    }
    check_gradients(name, params);
}

/// Returns the prefix and the tunables of all blocks.
fn all_tensors(mode: &dyn TuningMode) -> Vec<Tensor> {
    let prefix = mode.prefix().expect("a prefix");
    prefix.into_iter().chain(tunables(mode, 0, N_BLOCKS).into_iter().map(|named| named.tensor)).collect()
}

fn tunables(mode: &dyn TuningMode, start: usize, end: usize) -> Vec<NamedTensor> {
    mode.tunables(Span::new(start, end).expect("a span")).expect("tunables")
}
