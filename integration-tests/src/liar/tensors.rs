//! Lies about tensors.

use bytes::Bytes;
use sepal_core::{DType, HostTensor, HostTunable};
use sepal_wire::codec::Grads;

use super::lies::Lie;

/// Returns the tensor with other numbers, as fp32.
pub(super) fn map(tensor: &HostTensor, mut number: impl FnMut(f32) -> f32) -> HostTensor {
    let numbers: Vec<f32> = tensor.to_f32().into_iter().map(&mut number).collect();
    HostTensor::from_f32(tensor.shape().to_vec(), &numbers).expect("as many numbers")
}

/// Returns numbers in [-1, 1) without any relation to those of the tensor.
fn noise(tensor: &HostTensor) -> HostTensor {
    // A linear congruential generator, of which the upper bits are used.
    let mut state = 1_u32;
    map(tensor, |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// Returns the numbers of `stale` in the shape of `tensor`, from the start again if there are too few.
pub(super) fn resized(stale: &HostTensor, tensor: &HostTensor) -> HostTensor {
    let mut numbers = stale.to_f32().into_iter().cycle();
    map(tensor, |number| numbers.next().unwrap_or(number))
}

/// Alters an output.
pub(super) fn alter_output(output: &HostTensor, lie: Lie, huge: &Bytes) -> HostTensor {
    match lie {
        Lie::OutputsNegated => map(output, |number| -number),
        Lie::OutputsNoise => noise(output),
        Lie::OutputsZero => map(output, |_| 0.0),
        Lie::OutputsScaled => map(output, |number| number * 1.05),
        Lie::OutputsNan => {
            let mut index = 0;
            map(output, |number| {
                index += 1;
                if index == 2 { f32::NAN } else { number }
            })
        }
        Lie::OutputsNarrow => of_ones(vec![output.shape()[0], 16]),
        Lie::HugeAnswers => huge_tensor(output, huge),
        _ => output.clone(),
    }
}

/// Alters gradients.
pub(super) fn alter_grads(grads: &mut Grads, lie: Lie, huge: &Bytes) {
    let input = grads.input.take();
    match lie {
        Lie::GradsNegated => map_all(grads, input, |number| -number),
        Lie::GradsZero => map_all(grads, input, |_| 0.0),
        Lie::GradsLarge => map_all(grads, input, |number| number * 1e6),
        Lie::GradsOfOtherBlocks => {
            for tunable in &mut grads.tunables {
                tunable.tensor = rotated(&tunable.tensor);
            }
            // Those of the first position for all, if there are no tunables.
            grads.input = if grads.tunables.is_empty() { input.map(|input| first_rows(&input)) } else { input };
        }
        Lie::GradsNarrow => grads.input = input.map(|input| of_ones(vec![input.shape()[0], 16])),
        Lie::GradsDeep => {
            grads.input = input.map(|input| {
                let shape = input.shape();
                of_ones([&shape[..1], shape].concat())
            });
        }
        Lie::HugeAnswers => grads.input = input.map(|input| huge_tensor(&input, huge)),
        _ => grads.input = input,
    }
}

fn map_all(grads: &mut Grads, input: Option<HostTensor>, number: impl Fn(f32) -> f32) {
    grads.input = input.map(|input| map(&input, &number));
    for HostTunable { tensor, .. } in &mut grads.tunables {
        *tensor = map(tensor, &number);
    }
}

/// Returns a tensor that is stacked by block, with each block's part at the next one.
fn rotated(tensor: &HostTensor) -> HostTensor {
    let mut numbers = tensor.to_f32();
    let blocks = tensor.shape().first().copied().unwrap_or(1).max(1);
    let part = numbers.len() / blocks;
    numbers.rotate_right(part);
    HostTensor::from_f32(tensor.shape().to_vec(), &numbers).expect("as many numbers")
}

/// Returns the first row in place of each.
fn first_rows(tensor: &HostTensor) -> HostTensor {
    let numbers = tensor.to_f32();
    let width = numbers.len() / tensor.shape().first().copied().unwrap_or(1).max(1);
    let mut first = numbers[..width].iter().copied().cycle();
    map(tensor, |number| first.next().unwrap_or(number))
}

fn of_ones(shape: Vec<usize>) -> HostTensor {
    let numbers = shape.iter().product();
    HostTensor::from_f32(shape, &vec![1.0; numbers]).expect("as many numbers")
}

/// Returns a tensor of far too many rows.
fn huge_tensor(tensor: &HostTensor, huge: &Bytes) -> HostTensor {
    let width = tensor.shape().last().copied().unwrap_or(1).max(1);
    let rows = huge.len() / 4 / width;
    HostTensor::new(DType::F32, vec![rows, width], huge.slice(..rows * width * 4)).expect("as many bytes")
}
