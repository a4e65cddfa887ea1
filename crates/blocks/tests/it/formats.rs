use sepal_blocks::{BlockStack, Ends};
use sepal_core::{Ragged, Span, Want, WeightFormat};
use tch::{Kind, Tensor};

use crate::model::{forward, tiny_models};

fn largest(tensor: &Tensor) -> f64 {
    f64::try_from(tensor.abs().max()).expect("a number")
}

/// Hidden states and gradients with weights of 16, 8 and 4 bits are close to fp32, and closer with more bits.
#[test]
fn formats_are_close_to_fp32() {
    for (name, model) in tiny_models() {
        let rows = Ragged::from_lengths([7, 2, 4]).expect("rows");
        let prompts = model.random(&[3, model.config.hidden as i64], 3);
        let text = model.ends().embed(&Tensor::arange(13, (Kind::Int64, tch::Device::Cpu))).expect("embedded");
        let weights = model.random(&[3, model.config.hidden as i64], 4);
        let run = |format: WeightFormat| {
            let span = Span::new(0, model.config.n_blocks).expect("a span");
            let stack = BlockStack::load_with(&model, span, format).expect("a stack");
            let prompts = prompts.copy().set_requires_grad(true);
            let hidden = Tensor::cat(&[&prompts, &text], 0);
            let output = forward(&stack, &hidden, 3, &rows, Want::LastOfRows);
            let output = Ends::load(&model).expect("ends").final_norm(&output).expect("normed");
            (&output * &weights).sum(Kind::Float).backward();
            (output.detach(), prompts.grad(), stack.weight_bytes())
        };
        let (output, grad, bytes) = run(WeightFormat::F32);
        for (format, bound, share) in [
            (WeightFormat::F16, 4e-3, 0.6),
            (WeightFormat::Bf16, 3e-2, 0.6),
            (WeightFormat::Int8, 6e-2, 0.5),
            (WeightFormat::Nf4, 2.0, 0.5),
        ] {
            let (found, found_grad, found_bytes) = run(format);
            let off = largest(&(found - &output)) / largest(&output);
            let off_grad = largest(&(found_grad - &grad)) / largest(&grad);
            println!("{name}: {} off by {off:.5}, gradient by {off_grad:.5}", format.name());
            assert!(off < bound && off_grad < 6.0 * bound, "{name}, {}: off by {off}, {off_grad}", format.name());
            assert!(off > 0.0, "{name}, {}: nothing was rounded", format.name());
            assert!((found_bytes as f64) < share * bytes as f64, "{name}, {}: {found_bytes} bytes", format.name());
        }
    }
}
