use sepal_autograd::fused;
use tch::{Kind, TchError, Tensor};

use crate::attention::heads::Heads;
use crate::segment::Segment;
use crate::tensor_bytes::tensor_bytes;

/// Norm without weights, which the next layer includes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Norm {
    /// RMSNorm (arXiv 1910.07467).
    Rms { eps: f64 },
    /// LayerNorm (arXiv 1607.06450).
    Layer { eps: f64 },
    /// The input as it is.
    Identity,
}

impl Norm {
    /// Returns the output for `x [n, width]`, of the same shape, and the statistics for [`add_grad`](Self::add_grad). `x` is
    /// of any kind, output and statistics are fp32; [`Identity`](Self::Identity) returns `x`.
    pub(crate) fn forward(self, x: &Tensor) -> Result<(Tensor, RowStats), TchError> {
        match self {
            Norm::Rms { eps } => fused::rms_norm(x, eps).map(|(y, scales)| (y, RowStats(vec![scales]))),
            Norm::Layer { eps } => {
                fused::layer_norm(x, eps).map(|(y, means, scales)| (y, RowStats(vec![means, scales])))
            }
            Norm::Identity => Ok((x.shallow_clone(), RowStats(Vec::new()))),
        }
    }

    /// Adds the gradient of the norm's input to `sum`, which is fp32.
    pub(crate) fn add_grad(self, sum: &mut Tensor, grad: &Tensor, saved: &SavedNorm) -> Result<(), TchError> {
        let input = saved.input()?;
        match (self, &saved.stats.0[..]) {
            (Norm::Rms { .. }, [scales]) => fused::add_rms_norm_grad(sum, grad, &input, scales),
            (Norm::Layer { .. }, [means, scales]) => fused::add_layer_norm_grad(sum, grad, &input, means, scales),
            (Norm::Identity, []) => sum.f_add_(grad).map(drop),
            _ => Err(other_norm()),
        }
    }

    pub(crate) fn stats_per_row(self) -> usize {
        match self {
            Norm::Rms { .. } => 1,
            Norm::Layer { .. } => 2,
            Norm::Identity => 0,
        }
    }
}

/// Statistics of each row in fp32, `[n, 1]` each.
#[derive(Debug)]
pub(crate) struct RowStats(Vec<Tensor>);

impl RowStats {
    fn narrow(&self, segment: Segment) -> Result<Self, TchError> {
        Ok(Self(self.0.iter().map(|numbers| segment.narrow(numbers)).collect::<Result<_, _>>()?))
    }

    fn copied(&self) -> Result<Self, TchError> {
        Ok(Self(self.0.iter().map(Tensor::f_detach_copy).collect::<Result<_, _>>()?))
    }

    /// Applies the norm to its input.
    fn normalize(&self, input: &Tensor) -> Result<Tensor, TchError> {
        match &self.0[..] {
            [] => Ok(input.shallow_clone()),
            [scales] => input.f_mul(scales),
            [means, scales] => input.f_sub(means)?.f_mul(scales),
            _ => Err(other_norm()),
        }
    }

    /// Inverse of [`normalize`](Self::normalize).
    fn restore(&self, output: &Tensor) -> Result<Tensor, TchError> {
        match &self.0[..] {
            [] => Ok(output.shallow_clone()),
            [scales] => output.f_div(scales),
            [means, scales] => output.f_div(scales)?.f_add(means),
            _ => Err(other_norm()),
        }
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(tensor_bytes).sum()
    }
}

fn other_norm() -> TchError {
    TchError::Kind("statistics of another kind of norm".to_owned())
}

/// Input of a norm, `[n, width]`, and its statistics. On a tape of 16 bits the norm's output takes the place of an input in
/// fp32: it is at most the square root of the width, while inputs may exceed the range of fp16.
#[derive(Debug)]
pub(crate) struct SavedNorm {
    numbers: Tensor,
    are_normalized: bool,
    stats: RowStats,
}

impl SavedNorm {
    pub(crate) fn new(input: Tensor, stats: RowStats) -> Self {
        Self { numbers: input, are_normalized: false, stats }
    }

    /// The norm's input: as it was given, or of a tape of 16 bits in fp32.
    fn input(&self) -> Result<Tensor, TchError> {
        match self.are_normalized {
            true => self.stats.restore(&self.numbers.f_to_kind(Kind::Float)?),
            false => Ok(self.numbers.shallow_clone()),
        }
    }

    pub(crate) fn width(&self) -> i64 {
        self.numbers.size().get(1).copied().unwrap_or(0)
    }

    pub(crate) fn narrow(&self, segment: Segment) -> Result<Self, TchError> {
        Ok(Self { numbers: segment.narrow(&self.numbers)?, stats: self.stats.narrow(segment)?, ..*self })
    }

    /// Converts the input to the kind of the computation. Tensors that `are_shared` are copied, because a view would retain
    /// the memory of all callers.
    pub(crate) fn into_tape(self, compute: Kind, are_shared: bool) -> Result<Self, TchError> {
        let stats = if are_shared { self.stats.copied()? } else { self.stats };
        if self.numbers.kind() != compute {
            let numbers = stats.normalize(&self.numbers)?.f_to_kind(compute)?;
            return Ok(Self { numbers, are_normalized: true, stats });
        }
        let numbers = if are_shared { self.numbers.f_detach_copy()? } else { self.numbers };
        Ok(Self { numbers, are_normalized: self.are_normalized, stats })
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        tensor_bytes(&self.numbers) + self.stats.bytes()
    }

    /// Returns a norm with the same memory.
    pub(crate) fn share(&self) -> Self {
        let stats = RowStats(self.stats.0.iter().map(Tensor::shallow_clone).collect());
        Self { numbers: self.numbers.shallow_clone(), stats, ..*self }
    }

    /// Selects rows.
    pub(crate) fn select(&self, rows: &Tensor) -> Result<Self, TchError> {
        let stats = self.stats.0.iter().map(|numbers| numbers.f_index_select(0, rows));
        let stats = RowStats(stats.collect::<Result<_, _>>()?);
        Ok(Self { numbers: self.numbers.f_index_select(0, rows)?, stats, ..*self })
    }

    /// Returns `leftᵀ y`, `[k, width]`, for `left [n, k]` and the norm's output `y`, which is not computed again. All are
    /// fp32.
    pub(crate) fn transposed_product(&self, left: &Tensor) -> Result<Tensor, TchError> {
        let input = self.numbers.f_to_kind(Kind::Float)?;
        match &self.stats.0[..] {
            _ if self.are_normalized => left.f_transpose(0, 1)?.f_mm(&input),
            [] => left.f_transpose(0, 1)?.f_mm(&input),
            [scales] => left.f_mul(scales)?.f_transpose(0, 1)?.f_mm(&input),
            [means, scales] => {
                let scaled = left.f_mul(scales)?.f_transpose(0, 1)?; // [k, n]
                scaled.f_mm(&input)?.f_sub_(&scaled.f_mm(means)?)
            }
            _ => Err(other_norm()),
        }
    }
}

/// Weights of a norm in a checkpoint, `[hidden]` each.
#[derive(Debug)]
pub(crate) struct NormWeights {
    pub(crate) scale: Tensor,
    pub(crate) shift: Option<Tensor>,
}

/// Norm with a weight `[width]`, on the output of attention or of the MLP, or on queries or keys. A weight `[heads, width]`
/// has a row for each head, to whose numbers the rows of a tensor belong in turn.
#[derive(Debug)]
pub(crate) struct WeightedNorm {
    pub(crate) norm: Norm,
    pub(crate) weight: Tensor,
}

impl WeightedNorm {
    /// Returns the output in fp32, and `x` as it is with its statistics.
    pub(crate) fn forward(&self, x: Tensor) -> Result<(Tensor, SavedNorm), TchError> {
        let (y, stats) = self.norm.forward(&x)?;
        let _ = self.by_head(&y)?.f_mul_(&self.weight)?;
        Ok((y, SavedNorm::new(x, stats)))
    }

    /// Writes the gradient of the input, `[n, width]`, into `grad_input`, which is fp32.
    pub(crate) fn backward(&self, grad_input: &mut Tensor, grad: &Tensor, saved: &SavedNorm) -> Result<(), TchError> {
        let _ = grad_input.f_zero_()?;
        let weighted = self.by_head(grad)?.f_mul(&self.weight)?.f_view(grad.size().as_slice())?;
        self.norm.add_grad(grad_input, &weighted, saved)
    }

    /// Normalizes each `width` numbers of the rows of `x [n, parts * width]`, in place.
    pub(crate) fn forward_parts(&self, x: &Tensor) -> Result<SavedNorm, TchError> {
        let parts = x.f_detach_copy()?.f_reshape([-1, self.width()])?;
        let (y, saved) = self.forward(parts)?;
        x.shallow_clone().f_copy_(&y.f_view(x.size().as_slice())?)?;
        Ok(saved)
    }

    /// Replaces the gradient of the output of [`forward_parts`](Self::forward_parts) by that of its input, in place.
    pub(crate) fn backward_parts(&self, grad: &Tensor, saved: &SavedNorm) -> Result<(), TchError> {
        let parts = grad.f_reshape([-1, self.width()])?;
        let mut grad_input = Tensor::f_empty(parts.size(), (Kind::Float, parts.device()))?;
        self.backward(&mut grad_input, &parts, saved)?;
        grad.shallow_clone().f_copy_(&grad_input.f_view(grad.size().as_slice())?)
    }

    /// The rows `[n * heads, width]` as `[n, heads, width]` if each head has its own weight, a view.
    fn by_head(&self, rows: &Tensor) -> Result<Tensor, TchError> {
        match self.weight.size()[..] {
            [heads, width] => rows.f_view([-1, heads, width]),
            _ => Ok(rows.shallow_clone()),
        }
    }

    fn width(&self) -> i64 {
        self.weight.size().last().copied().unwrap_or(1)
    }
}

/// Norms of queries and keys before the rotary embedding: of each head, with one weight `[dim]` for all heads or a weight
/// for each, `[heads, dim]`, or of all heads together, with a weight of their width.
#[derive(Debug)]
pub(crate) struct HeadNorms {
    pub(crate) q: WeightedNorm,
    pub(crate) k: WeightedNorm,
}

impl HeadNorms {
    /// Numbers of norms of one position's queries and of its keys.
    pub(crate) fn per_position(&self, heads: Heads) -> [i64; 2] {
        [heads.q_size() / self.q.width(), heads.kv_size() / self.k.width()]
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max()).expect("a number");
        assert!(off < 1e-5, "off by {off}");
    }

    #[test]
    fn norm_of_parts_equals_autograd_on_a_view() {
        for width in [4, 12] {
            let weight = random([1, width]).view([-1]);
            let norm = WeightedNorm { norm: Norm::Rms { eps: 1e-5 }, weight: weight.shallow_clone() };
            let keys_values = random([5, 24]);
            let (keys, grad) = (keys_values.narrow(1, 0, 12), random([5, 24]));
            let x = keys.copy().set_requires_grad(true);
            let parts = x.view([-1, width]);
            let scale = (parts.square().mean_dim(-1, true, Kind::Float) + 1e-5).rsqrt();
            let expected = (&parts * scale * &weight).view([5, 12]);
            (&expected * grad.narrow(1, 0, 12)).sum(Kind::Float).backward();

            let values = keys_values.narrow(1, 12, 12).copy();
            let saved = norm.forward_parts(&keys).expect("a norm");
            assert_close(&keys, &expected.detach());
            assert_close(&keys_values.narrow(1, 12, 12), &values);
            norm.backward_parts(&grad.narrow(1, 0, 12), &saved).expect("a gradient");
            assert_close(&grad.narrow(1, 0, 12), &x.grad());
        }
    }

    #[test]
    fn norm_with_a_weight_for_each_head_equals_autograd() {
        let weight = random([3, 4]);
        for is_layer in [false, true] {
            let norm = if is_layer { Norm::Layer { eps: 1e-5 } } else { Norm::Rms { eps: 1e-5 } };
            let norm = WeightedNorm { norm, weight: weight.shallow_clone() };
            let (keys_values, grad) = (random([5, 24]), random([5, 24]));
            let keys = keys_values.narrow(1, 0, 12);
            let x = keys.copy().set_requires_grad(true);
            let heads = x.view([5, 3, 4]);
            let normed = match is_layer {
                true => heads.layer_norm([4_i64], None::<Tensor>, None::<Tensor>, 1e-5, false),
                false => &heads * (heads.square().mean_dim(-1, true, Kind::Float) + 1e-5).rsqrt(),
            };
            let expected = (normed * &weight).view([5, 12]);
            (&expected * grad.narrow(1, 0, 12)).sum(Kind::Float).backward();

            let saved = norm.forward_parts(&keys).expect("a norm");
            assert_close(&keys, &expected.detach());
            assert_eq!((norm.width(), saved.numbers.size()), (4, vec![15, 4]));
            norm.backward_parts(&grad.narrow(1, 0, 12), &saved).expect("a gradient");
            assert_close(&grad.narrow(1, 0, 12), &x.grad());
        }
    }

    #[test]
    fn identity_adds_the_gradient_unchanged() {
        let (x, grad, mut sum) = (random([3, 4]), random([3, 4]), Tensor::zeros([3, 4], (Kind::Float, Device::Cpu)));
        let (y, stats) = Norm::Identity.forward(&x).expect("a norm");
        assert_eq!((y.data_ptr(), stats.bytes(), Norm::Identity.stats_per_row()), (x.data_ptr(), 0, 0));
        let saved = SavedNorm::new(x.shallow_clone(), stats);
        Norm::Identity.add_grad(&mut sum, &grad, &saved).expect("a gradient");
        assert_close(&sum, &grad);
        let left = random([3, 2]);
        assert_close(&saved.transposed_product(&left).expect("a product"), &left.tr().matmul(&x));
    }

    #[test]
    fn norm_of_16_bit_parts_rounds_the_result_in_fp32() {
        let norm = WeightedNorm { norm: Norm::Rms { eps: 1e-5 }, weight: random([1, 4]).view([-1]) };
        for kind in [Kind::BFloat16, Kind::Half] {
            let [x, grad] = [(); 2].map(|()| random([5, 24]).to_kind(kind));
            let (wide_x, wide_grad) = (x.to_kind(Kind::Float), grad.to_kind(Kind::Float));
            let saved = norm.forward_parts(&x.narrow(1, 0, 12)).expect("a norm");
            let wide_saved = norm.forward_parts(&wide_x.narrow(1, 0, 12)).expect("a norm");
            assert_eq!((x.kind(), saved.numbers.kind(), saved.bytes()), (kind, kind, 5 * 12 * 2 + 5 * 3 * 4));
            assert_eq!(x, wide_x.to_kind(kind));
            norm.backward_parts(&grad.narrow(1, 0, 12), &saved).expect("a gradient");
            norm.backward_parts(&wide_grad.narrow(1, 0, 12), &wide_saved).expect("a gradient");
            assert_eq!(grad, wide_grad.to_kind(kind));
            let left = random([15, 2]);
            let product = saved.transposed_product(&left).expect("a product");
            assert_eq!(product, wide_saved.transposed_product(&left).expect("a product"));
        }
    }

    #[test]
    fn input_on_a_tape_is_in_the_format_of_the_computation() {
        let x = random([6, 4]);
        let (_, stats) = Norm::Rms { eps: 1e-5 }.forward(&x).expect("a norm");
        let segment = Segment { start: 2, len: 3 };
        let part = || SavedNorm::new(x.shallow_clone(), RowStats(vec![stats.0[0].shallow_clone()]));
        let part = || part().narrow(segment).expect("a part");
        let narrowed = part().into_tape(Kind::Float, false).expect("a tape");
        assert_eq!(narrowed.numbers.data_ptr(), x.narrow(0, 2, 3).data_ptr());
        let copied = part().into_tape(Kind::Float, true).expect("a tape");
        assert_ne!(copied.numbers.data_ptr(), narrowed.numbers.data_ptr());
        assert_ne!(copied.stats.0[0].data_ptr(), narrowed.stats.0[0].data_ptr());
        assert_eq!(copied.numbers, narrowed.numbers);
        for are_shared in [false, true] {
            let rounded = part().into_tape(Kind::BFloat16, are_shared).expect("a tape");
            assert_eq!(rounded.bytes(), 3 * (4 * 2 + 4));
            assert!(rounded.input().expect("an input").allclose(&narrowed.numbers, 8e-3, 0.0, false));
        }
    }

    /// fp16 ends at 65504.
    #[test]
    fn large_inputs_are_restored_from_a_tape_of_fp16() {
        let x = random([6, 8]) * 1e6 + 3e6;
        let grad = random([6, 8]);
        for norm in [Norm::Rms { eps: 1e-5 }, Norm::Layer { eps: 1e-5 }] {
            let (_, stats) = norm.forward(&x).expect("a norm");
            let exact = SavedNorm::new(x.shallow_clone(), stats);
            let rounded = exact.share().into_tape(Kind::Half, false).expect("a tape");
            let grad_of = |saved: &SavedNorm| {
                let mut sum = x.zeros_like();
                norm.add_grad(&mut sum, &grad, saved).expect("a gradient");
                (sum, saved.transposed_product(&grad).expect("a product"))
            };
            let ((found, found_product), (expected, expected_product)) = (grad_of(&rounded), grad_of(&exact));
            let off = |found: &Tensor, expected: &Tensor| {
                f64::try_from((found - expected).norm() / expected.norm()).expect("a number")
            };
            assert!(off(&found, &expected) < 1e-2 && off(&found_product, &expected_product) < 1e-2, "{norm:?}");
        }
    }
}
