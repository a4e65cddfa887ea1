use sepal_blocks::{BlockStack, Ends, EndsError, ForwardError, LoadError};
use sepal_core::{HostTensor, ModelConfig, Ragged, Span, Want};
use tch::{Kind, Tensor};

use crate::model::Tiny;

fn load(model: &Tiny, start: usize, end: usize) -> Result<BlockStack, LoadError> {
    BlockStack::load(model, Span::new(start, end).expect("a span"))
}

fn assert_shape_error(result: Result<Tensor, ForwardError>, expected_name: &str, expected_shape: &[usize]) {
    match result {
        Err(ForwardError::Shape { name, expected, .. }) => {
            assert_eq!((name, &expected[..]), (expected_name, expected_shape))
        }
        result => panic!("expected an error of shape, got {result:?}"),
    }
}

#[test]
fn forward_with_wrong_hidden_shape_fails() {
    let model = Tiny::open("llama-gqa");
    let stack = model.full_stack();
    let rows = Ragged::from_lengths([3, 2]).expect("rows");
    for shape in [&[7, 32][..], &[9, 32], &[8, 31], &[8], &[1, 8, 32], &[0, 32]] {
        let result = stack.forward(&model.random(shape, 1), 3, &rows, &[], Want::All);
        assert_shape_error(result, "hidden states", &[8, 32]);
    }
    let double = model.random(&[8, 32], 1).to_kind(Kind::Double);
    assert_shape_error(stack.forward(&double, 3, &rows, &[], Want::All), "hidden states", &[8, 32]);
}

#[test]
fn forward_outside_of_the_stack_fails() {
    let model = Tiny::open("llama-gqa");
    let rows = Ragged::from_lengths([2]).expect("rows");
    let (span, hidden) = (Span::new(0, 2).expect("a span"), model.random(&[2, 32], 1));
    let result = model.stack(1, 3).forward_with(span, &hidden, 0, &rows, &[], Want::All);
    assert!(matches!(result, Err(ForwardError::Span { .. })));
}

#[test]
fn load_without_blocks_or_tensors_fails() {
    let mut model = Tiny::open("llama-gqa");
    assert!(matches!(load(&model, 2, 4), Err(LoadError::Span { n_blocks: 3, .. })));

    let name = "model.layers.1.self_attn.k_proj.weight";
    let square = HostTensor::from_f32(vec![32, 32], &[0.0; 1024]).expect("fits");
    model.changed.insert(name.to_owned(), Some(square));
    match load(&model, 0, 3) {
        Err(LoadError::Shape { name: found, expected, .. }) => {
            assert_eq!((found.as_str(), expected), (name, vec![16, 32]));
        }
        result => panic!("expected a shape error, got {result:?}"),
    }
    assert!(load(&model, 2, 3).is_ok(), "independent of other blocks");
    model.changed.insert(name.to_owned(), None);
    assert!(matches!(load(&model, 1, 2), Err(LoadError::Read { name: found, .. }) if found == name));
}

#[test]
fn load_of_similar_architectures_fails() {
    let mut model = Tiny::open("llama-gqa");
    let norm = HostTensor::from_f32(vec![8], &[1.0; 8]).expect("fits");
    model.changed.insert("model.layers.0.self_attn.q_norm.weight".to_owned(), Some(norm));
    assert!(matches!(load(&model, 0, 1), Err(LoadError::Unsupported { .. })));
    // Norms of heads that the configuration does not have, by the names of two families.
    for name in ["q_layernorm.norms.0", "q_norm"] {
        let mut model = Tiny::open("stablelm");
        let norm = HostTensor::from_f32(vec![16], &[1.0; 16]).expect("fits");
        model.changed.insert(format!("model.layers.0.self_attn.{name}.weight"), Some(norm));
        assert!(matches!(load(&model, 0, 1), Err(LoadError::Unsupported { .. })), "{name}");
    }

    let check = |name: &str, change: fn(&mut ModelConfig)| {
        let mut model = Tiny::open(name);
        change(&mut model.config);
        assert!(matches!(load(&model, 0, 1), Err(LoadError::Config { .. })), "{name}");
    };
    check("llama-gqa", |config| config.n_kv_heads = 3);
    check("llama-gqa", |config| config.n_kv_heads = 0);
    check("llama-gqa", |config| config.rope = None);
    check("bloom", |config| config.n_heads = 5);
}

#[test]
fn forward_beyond_learned_positions_fails() {
    let model = Tiny::open("gpt2");
    let rows = Ragged::from_lengths([3, 254]).expect("rows");
    let stack = model.full_stack();
    let run = |stack: &BlockStack, prefix_len: usize, want: Want| {
        stack.forward(&model.hidden(prefix_len, &rows, 1), prefix_len, &rows, &[], want)
    };
    assert!(run(&stack, 2, Want::LastOfRows).is_ok());
    match run(&stack, 3, Want::LastOfRows) {
        Err(ForwardError::Positions { length: 257, learned: 256 }) => {}
        result => panic!("expected an error of positions, got {result:?}"),
    }
    // Later blocks have no learned positions.
    assert!(run(&model.stack(1, 2), 3, Want::All).is_ok());
}

#[test]
fn ends_with_wrong_inputs_fail() {
    let mut model = Tiny::open("bloom");
    let ends = model.ends();
    assert!(matches!(ends.embed(&Tensor::from_slice(&[3_i64, 64])), Err(EndsError::Vocabulary { id: 64, .. })));
    assert!(matches!(ends.embed(&Tensor::from_slice(&[-1_i64])), Err(EndsError::Vocabulary { id: -1, .. })));
    assert!(matches!(ends.embed(&Tensor::from_slice(&[1_i32])), Err(EndsError::Ids { .. })));
    assert!(matches!(ends.embed_prompts(&model.random(&[2, 31], 1)), Err(EndsError::Hidden { hidden: 32, .. })));
    assert!(matches!(ends.final_norm(&model.random(&[], 1)), Err(EndsError::Hidden { .. })));
    assert_eq!(ends.final_norm(&model.random(&[2, 3, 32], 1)).expect("normed").size(), [2, 3, 32]);
    model.changed.insert("transformer.ln_f.bias".to_owned(), None);
    assert!(matches!(Ends::load(&model), Err(LoadError::Read { .. })));
}
