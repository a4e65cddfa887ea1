//! Matrices that are packed row by row: widened a few rows at a time, for a product or to be packed anew.

use std::ops::{Range, RangeInclusive};

use sepal_autograd::linear::{RowCount, linear};
use sepal_autograd::memory::tensor_from_bytes;
use sepal_autograd::packed::{Columns, widen};
use sepal_autograd::parallel::{ReadOnly, map_ranges};
use sepal_autograd::quantize;
use sepal_core::{PackedMatrix, RowEncoding};
use tch::{Device, Kind, TchError, Tensor};

use crate::segment::Segment;

/// Numbers that all threads widen at a time, so that they stay in the processor's cache until they are multiplied.
const TILES: u64 = 1 << 23;

/// Least and most of them that one thread widens. Products of fewer take longer.
const TILE: RangeInclusive<u64> = 1 << 20..=1 << 22;

/// Numbers of a matrix from which on its products are divided among threads. All threads together compute those of a smaller
/// one, which has few tiles: in parts for each thread they took a tenth longer.
const DIVIDED: i64 = 1 << 23;

/// Columns of a gradient that a thread sums up at a time, which stay in its cache.
const COLUMNS: u64 = 2048;

/// Rows of a matrix in one encoding.
#[derive(Debug)]
pub(crate) struct PackedRows {
    /// `[n, bytes of a row]`, uint8.
    rows: ReadOnly,
    encoding: RowEncoding,
    /// Numbers of a row.
    width: i64,
}

impl PackedRows {
    /// Rows that share the memory of `matrix`.
    pub(crate) fn new(matrix: &PackedMatrix) -> Result<Self, TchError> {
        let shape = [matrix.n_rows() as i64, (matrix.data().len() / matrix.n_rows().max(1)) as i64];
        let rows = tensor_from_bytes(matrix.data().clone(), &shape, Kind::Uint8);
        let rows = rows.map_err(|error| TchError::Shape(error.to_string()))?;
        Ok(Self { rows: rows.into(), encoding: matrix.encoding(), width: matrix.width() as i64 })
    }

    /// Packs `numbers [n, width]` of fp32; the encoding is a 16-bit format, int8 or NF4.
    fn pack(numbers: &Tensor, encoding: RowEncoding) -> Result<Self, TchError> {
        let width = numbers.size()[1];
        let halves = |kind: Kind| numbers.f_to_kind(kind)?.f_contiguous()?.f_view_dtype(Kind::Uint8);
        let rows = match encoding {
            RowEncoding::F16 => halves(Kind::Half)?,
            RowEncoding::Bf16 => halves(Kind::BFloat16)?,
            RowEncoding::Int8 => quantize::quantize_int8(&numbers.f_contiguous()?)?,
            RowEncoding::Nf4 => quantize::quantize_nf4(&numbers.f_contiguous()?)?,
            other => return Err(TchError::Kind(format!("matrices are not packed as {other:?}"))),
        };
        Ok(Self { rows: rows.into(), encoding, width })
    }

    pub(crate) fn len(&self) -> i64 {
        self.rows.size()[0]
    }

    pub(crate) fn width(&self) -> i64 {
        self.width
    }

    pub(crate) fn bytes(&self) -> usize {
        self.rows.numel()
    }

    /// Applies `map`, which reorders or selects rows.
    pub(crate) fn map(&self, map: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        Ok(Self { rows: map(&self.rows)?.f_contiguous()?.into(), ..*self })
    }

    fn to_device(&self, device: Device) -> Result<Self, TchError> {
        Ok(Self { rows: self.rows.f_to_device(device)?.into(), ..*self })
    }

    /// Numbers of all rows, `[n, width]`.
    pub(crate) fn widen(&self, columns: Columns<'_>) -> Result<Tensor, TchError> {
        widen(&self.rows, self.encoding, self.width, columns)
    }

    /// Numbers of some of the rows, `[rows, width]`.
    fn widen_rows(&self, rows: Segment, columns: Columns<'_>) -> Result<Tensor, TchError> {
        widen(&rows.narrow(&self.rows)?, self.encoding, self.width, columns)
    }

    /// Numbers of some rows and columns, which begin at a multiple of the encoding's groups, times `factors [columns]`.
    fn widen_part(&self, rows: Segment, columns: Segment, factors: Option<&Tensor>) -> Result<Tensor, TchError> {
        let bytes = |width: i64| usize::try_from(width).ok().and_then(|width| self.encoding.row_bytes(width));
        let (Some(start), Some(len)) = (bytes(columns.start), bytes(columns.len)) else {
            return Err(TchError::Shape(format!("columns {columns:?} of {:?}", self.encoding)));
        };
        let part = rows.narrow(&self.rows)?.f_narrow(1, start as i64, len as i64)?;
        widen(&part, self.encoding, columns.len, Columns { order: None, factors })
    }

    /// Tiles of all rows with `width` columns, of about equal size: a multiple of `n_shares`, if there are enough rows, where
    /// `n_threads` widen one at the same time.
    fn tiles(&self, width: i64, n_threads: u64, n_shares: u64) -> impl Iterator<Item = Segment> + use<> {
        let most = tile_rows(width, n_threads);
        let n_tiles = self.len().unsigned_abs().div_ceil(most).next_multiple_of(n_shares).max(1);
        // Kernels of products have loops over 16 rows.
        let rows = self.len().unsigned_abs().div_ceil(n_tiles).next_multiple_of(16);
        Segment::cover(self.len(), rows.cast_signed())
    }
}

/// Most rows of `width` numbers that one of `n_threads` widens at a time.
fn tile_rows(width: i64, n_threads: u64) -> u64 {
    let numbers = (TILES / n_threads).clamp(*TILE.start(), *TILE.end());
    (numbers / width.unsigned_abs().max(1)).max(1)
}

/// Weight of a layer while it is built: `[out, in]` in fp32, or rows of several encodings one after another.
#[derive(Debug)]
pub(crate) enum Weight {
    Plain(Tensor),
    Packed(Vec<PackedRows>),
}

impl Weight {
    /// Number of outputs.
    pub(crate) fn outputs(&self) -> i64 {
        match self {
            Self::Plain(weight) => weight.size()[0],
            Self::Packed(parts) => parts.iter().map(PackedRows::len).sum(),
        }
    }

    pub(crate) fn inputs(&self) -> i64 {
        match self {
            Self::Plain(weight) => weight.size()[1],
            Self::Packed(parts) => parts.first().map_or(0, PackedRows::width),
        }
    }

    /// Applies `map`, which reorders or selects rows.
    pub(crate) fn map_rows(&self, map: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        match self {
            Self::Plain(weight) => map(weight).map(Self::Plain),
            Self::Packed(parts) => match &parts[..] {
                [part] => Ok(Self::Packed(vec![part.map(map)?])),
                parts => Err(TchError::Kind(format!("rows of {} encodings are not reordered", parts.len()))),
            },
        }
    }

    /// The rows of all weights, one after another.
    pub(crate) fn stacked(weights: Vec<Self>) -> Result<Self, TchError> {
        let are_packed = weights.iter().all(|weight| matches!(weight, Self::Packed(_)));
        let (mut plain, mut packed) = (Vec::new(), Vec::new());
        for weight in weights {
            match weight {
                Self::Packed(parts) if are_packed => packed.extend(parts),
                weight => plain.push(weight.into_plain()?),
            }
        }
        if are_packed { Ok(Self::Packed(packed)) } else { Tensor::f_cat(&plain, 0).map(Self::Plain) }
    }

    /// `[out, in]` in fp32.
    pub(crate) fn into_plain(self) -> Result<Tensor, TchError> {
        match self {
            Self::Plain(weight) => Ok(weight),
            Self::Packed(parts) => {
                let parts = parts.iter().map(|part| part.widen(Columns::default()));
                Tensor::f_cat(&parts.collect::<Result<Vec<_>, _>>()?, 0)
            }
        }
    }

    /// Product with a vector `[in]`: `[out]`.
    pub(crate) fn product(&self, vector: &Tensor) -> Result<Tensor, TchError> {
        let mut products = Vec::new();
        self.for_chunks(|chunk| {
            products.push(chunk.f_mv(vector)?);
            Ok(())
        })?;
        Tensor::f_cat(&products, 0)
    }

    /// Packs the numbers anew, a few rows at a time.
    pub(crate) fn pack(&self, encoding: RowEncoding) -> Result<PackedRows, TchError> {
        let mut rows = Vec::new();
        self.for_chunks(|chunk| {
            rows.push(PackedRows::pack(&chunk, encoding)?.rows);
            Ok(())
        })?;
        let rows: Vec<&Tensor> = rows.iter().map(|rows| &**rows).collect();
        Ok(PackedRows { rows: Tensor::f_cat(&rows, 0)?.into(), encoding, width: self.inputs() })
    }

    /// Calls `each` with some rows after another, in fp32.
    fn for_chunks(&self, mut each: impl FnMut(Tensor) -> Result<(), TchError>) -> Result<(), TchError> {
        match self {
            Self::Plain(weight) => {
                let mut chunks = Segment::cover(weight.size()[0], tile_rows(weight.size()[1], 1).cast_signed());
                chunks.try_for_each(|rows| each(rows.narrow(weight)?))
            }
            Self::Packed(parts) => {
                let widened = |part: &PackedRows, rows| part.widen_rows(rows, Columns::default());
                parts
                    .iter()
                    .try_for_each(|part| part.tiles(part.width, 1, 1).try_for_each(|rows| each(widened(part, rows)?)))
            }
        }
    }
}

/// Frozen matrix of packed rows, a row for each output.
#[derive(Debug)]
pub(crate) struct Packed {
    parts: Vec<PackedRows>,
    /// Index of each input among the packed columns, `[in]`.
    order: Option<ReadOnly>,
    /// Factors of the inputs, `[in]`.
    inputs: Option<ReadOnly>,
}

/// Some rows of one part of a matrix, and the outputs that they are.
#[derive(Debug, Clone, Copy)]
struct Tile<'a> {
    part: &'a PackedRows,
    rows: Segment,
    outputs: Segment,
}

impl Packed {
    pub(crate) fn new(
        parts: &[PackedRows],
        order: Option<&Tensor>,
        inputs: Option<&Tensor>,
        device: Device,
    ) -> Result<Self, TchError> {
        let to_device =
            |tensor: Option<&Tensor>| tensor.map(|tensor| tensor.f_to_device(device).map(ReadOnly::from)).transpose();
        let parts = parts.iter().map(|part| part.to_device(device)).collect::<Result<_, TchError>>()?;
        Ok(Self { parts, order: to_device(order)?, inputs: to_device(inputs)? })
    }

    /// Number of outputs.
    pub(crate) fn outputs(&self) -> i64 {
        self.parts.iter().map(PackedRows::len).sum()
    }

    fn width(&self) -> i64 {
        self.parts.first().map_or(0, PackedRows::width)
    }

    /// Memory in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let inputs = self.inputs.as_ref().map_or(0, |inputs| inputs.numel() * size_of::<f32>());
        let order = self.order.as_ref().map_or(0, |order| order.numel() * size_of::<i64>());
        self.parts.iter().map(PackedRows::bytes).sum::<usize>() + inputs + order
    }

    /// Returns `x [n, in]` times the transposed matrix, plus `bias [out]` and `sum [n, out]` if given: `[n, out]` of the kind
    /// of `x`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        sum: Option<&Tensor>,
        row_count: RowCount,
    ) -> Result<Tensor, TchError> {
        let [bias, sum] = [bias, sum].map(|tensor| tensor.map(ReadOnly::new));
        let (x, columns) = (ReadOnly::new(x), Segment { start: 0, len: self.width() });
        let n_threads = self.n_shares();
        let tiles = self.tiles(columns.len, n_threads, n_threads);
        let product = |tile: &Tile<'_>| {
            let bias = bias.as_ref().map(|bias| tile.outputs.narrow(bias)).transpose()?;
            let sum = sum.as_ref().map(|sum| tile.outputs.narrow_dim(sum, 1)).transpose()?;
            let weight = self.widen(tile, columns)?.f_to_kind(x.kind())?.f_transpose(0, 1)?;
            linear(&x, &weight, bias.as_ref(), sum.as_ref(), row_count)
        };
        let compute = |range: Range<usize>| tiles[range].iter().map(product).collect::<Result<Vec<Tensor>, TchError>>();
        joined(if n_threads > 1 { map_ranges(tiles.len(), compute)? } else { vec![compute(0..tiles.len())?] })
    }

    /// Returns `grad [n, out]` times the matrix, plus `sum [n, in]` if given: `[n, in]`.
    pub(crate) fn backward(
        &self,
        grad: &Tensor,
        sum: Option<&Tensor>,
        row_count: RowCount,
    ) -> Result<Tensor, TchError> {
        let kind = grad.kind();
        let sum = sum.map(|sum| sum.f_to_kind(Kind::Float)).transpose()?.map(ReadOnly::from);
        let (grad, columns) = (ReadOnly::new(grad), self.columns());
        let n_threads = self.n_shares().min(columns.len() as u64);
        let product = |columns: &Segment| -> Result<Tensor, TchError> {
            let sum = sum.as_ref().map(|sum| columns.narrow_dim(sum, 1)).transpose()?;
            let add = |sum: Option<Tensor>, tile: Tile<'_>| -> Result<Option<Tensor>, TchError> {
                let grad = tile.outputs.narrow_dim(&grad, 1)?;
                let weight = self.widen(&tile, *columns)?.f_to_kind(kind)?;
                Ok(Some(match (kind, sum) {
                    (Kind::Float, sum) => linear(&grad, &weight, None, sum.as_ref(), row_count)?,
                    // Products of 16 bits are added up in fp32.
                    (_, None) => linear(&grad, &weight, None, None, row_count)?.f_to_kind(Kind::Float)?,
                    (_, Some(sum)) => sum.f_add(&linear(&grad, &weight, None, None, row_count)?)?,
                }))
            };
            let product = self.tiles(columns.len, n_threads, 1).into_iter().try_fold(sum, add)?;
            product.ok_or_else(|| TchError::Shape("a matrix without rows".to_owned()))
        };
        let compute =
            |range: Range<usize>| columns[range].iter().map(product).collect::<Result<Vec<Tensor>, TchError>>();
        joined(map_ranges(columns.len(), compute)?)?.f_to_kind(kind)
    }

    /// Ranges of inputs, at least one for each thread, whose gradients are computed apart. A single range if inputs cannot be
    /// divided so, as those that share a factor or are in another order: then all threads compute each product together.
    fn columns(&self) -> Vec<Segment> {
        let groups: Option<Vec<usize>> = self.parts.iter().map(|part| part.encoding.group_len()).collect();
        let group = groups.and_then(|groups| {
            let largest = groups.iter().copied().max()?;
            groups.iter().all(|group| largest.is_multiple_of(*group)).then_some(largest as u64)
        });
        let (n_threads, inputs) = (self.n_shares(), self.width().unsigned_abs());
        if let Some(group) = group.filter(|_| n_threads > 1 && self.order.is_none()) {
            let n_ranges = inputs.div_ceil(COLUMNS).next_multiple_of(n_threads);
            let len = inputs.div_ceil(n_ranges).next_multiple_of(group).max(group);
            if inputs.div_ceil(len) >= n_threads {
                return Segment::cover(self.width(), len.cast_signed()).collect();
            }
        }
        vec![Segment { start: 0, len: self.width() }]
    }

    /// Threads that divide a product; 1 if they compute it together, or another device does.
    fn n_shares(&self) -> u64 {
        let is_on_cpu = self.parts.iter().all(|part| part.rows.device() == Device::Cpu);
        if is_on_cpu && self.outputs() * self.width() >= DIVIDED { n_threads() } else { 1 }
    }

    /// Tiles of `width` columns of all parts, in the order of the outputs.
    fn tiles(&self, width: i64, n_threads: u64, n_shares: u64) -> Vec<Tile<'_>> {
        let (mut tiles, mut first) = (Vec::new(), 0);
        for part in &self.parts {
            let tile = |rows: Segment| {
                let outputs = Segment { start: first + rows.start, len: rows.len };
                Tile { part, rows, outputs }
            };
            tiles.extend(part.tiles(width, n_threads, n_shares).map(tile));
            first += part.len();
        }
        tiles
    }

    /// Numbers of some columns of a tile, `[outputs, columns]` of fp32.
    fn widen(&self, tile: &Tile<'_>, columns: Segment) -> Result<Tensor, TchError> {
        let factors = self.inputs.as_ref().map(|factors| columns.narrow(factors)).transpose()?;
        if columns.len == tile.part.width {
            let columns = Columns { order: self.order.as_deref(), factors: factors.as_ref() };
            return tile.part.widen_rows(tile.rows, columns);
        }
        tile.part.widen_part(tile.rows, columns, factors.as_ref())
    }
}

fn n_threads() -> u64 {
    u64::from(tch::get_num_threads().unsigned_abs()).max(1)
}

/// Matrices beside each other, `[n, ..]`.
fn joined(products: Vec<Vec<Tensor>>) -> Result<Tensor, TchError> {
    let mut products: Vec<Tensor> = products.into_iter().flatten().collect();
    if products.len() == 1 { Ok(products.swap_remove(0)) } else { Tensor::f_cat(&products, 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random<const N: usize>(shape: [i64; N]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        let off = f64::try_from((found - expected).abs().max() / expected.abs().max()).expect("a number");
        assert!(off < 1e-5, "off by {off}");
    }

    /// Two parts of several tiles each, with an order and factors of the inputs.
    #[test]
    fn products_equal_those_of_the_widened_matrix() {
        let (n, inner) = (5, 1600);
        let weights = [random([1500, inner]), random([1400, inner])];
        let encodings = [RowEncoding::Int8, RowEncoding::F16];
        let pack = |(weight, encoding): (&Tensor, RowEncoding)| PackedRows::pack(weight, encoding).expect("rows");
        let parts: Vec<PackedRows> = weights.iter().zip(encodings).map(pack).collect();
        let (order, factors) = (Tensor::randperm(inner, (Kind::Int64, Device::Cpu)), random([inner]));
        let packed = Packed::new(&parts, Some(&order), Some(&factors), Device::Cpu).expect("a matrix");
        let matrix = Weight::Packed(parts).into_plain().expect("numbers").index_select(1, &order) * &factors;
        let (x, grad, bias) = (random([n, inner]), random([n, 2900]), random([2900]));
        let (sum, grad_sum) = (random([n, 2900]), random([n, inner]));
        let product = packed.forward(&x, Some(&bias), Some(&sum), RowCount::Repeated).expect("a product");
        assert_close(&product, &(x.matmul(&matrix.tr()) + &bias + &sum));
        let product = packed.backward(&grad, Some(&grad_sum), RowCount::Repeated).expect("a product");
        assert_close(&product, &(grad.matmul(&matrix) + grad_sum));
        assert_close(&packed.backward(&grad, None, RowCount::Repeated).expect("a product"), &grad.matmul(&matrix));
    }

    /// Parts whose columns can be read alone, in ranges of whole groups; the last range is shorter.
    #[test]
    fn gradients_of_ranges_of_inputs_equal_those_of_the_widened_matrix() {
        let (n, inner) = (5, 3 * COLUMNS.cast_signed() + 192);
        let encodings = [RowEncoding::Nf4, RowEncoding::F16];
        let pack = |encoding| PackedRows::pack(&random([700, inner]), encoding).expect("rows");
        let (parts, factors) = (encodings.map(pack), random([inner]));
        let packed = Packed::new(&parts, None, Some(&factors), Device::Cpu).expect("a matrix");
        let ranges = packed.columns();
        assert!(ranges.len() as u64 >= n_threads() && ranges.iter().all(|range| range.start % 64 == 0));
        assert!(ranges.len() >= 4 || n_threads() == 1);
        assert_eq!(ranges.iter().map(|range| range.len).sum::<i64>(), inner);
        let matrix = Weight::Packed(parts.into()).into_plain().expect("numbers") * &factors;
        let (grad, sum) = (random([n, 1400]), random([n, inner]));
        let found = packed.backward(&grad, Some(&sum), RowCount::Repeated).expect("a product");
        assert_close(&found, &(grad.matmul(&matrix) + sum));
        let x = random([n, inner]);
        let product = packed.forward(&x, None, None, RowCount::Repeated).expect("a product");
        assert_close(&product, &x.matmul(&matrix.tr()));
    }

    #[test]
    fn products_of_16_bits_are_summed_in_fp32() {
        tch::manual_seed(1);
        let (inner, outputs) = (64, 8 * TILE.end().cast_signed() / 64);
        let weight = random([outputs, inner]);
        let rows = PackedRows::pack(&weight, RowEncoding::Bf16).expect("rows");
        let packed = Packed::new(&[rows], None, None, Device::Cpu).expect("a matrix");
        let grad = random([16, outputs]).to_kind(Kind::BFloat16);
        let found = packed.backward(&grad, None, RowCount::Repeated).expect("a product");
        assert_eq!(found.kind(), Kind::BFloat16);
        let rounded = weight.to_kind(Kind::BFloat16).to_kind(Kind::Double);
        let expected = grad.to_kind(Kind::Double).matmul(&rounded);
        let off = f64::try_from((found.to_kind(Kind::Double) - &expected).norm() / expected.norm()).expect("a number");
        // The product of each tile and the sum are rounded: 0.0017 times the root of two. A sum in bf16 is off by 0.0034.
        assert!(off < 0.0029, "off by {off}");
    }

    #[test]
    fn rows_are_packed_anew_in_chunks() {
        let weight = random([1500, 1600]);
        let packed = Weight::Packed(vec![PackedRows::pack(&weight, RowEncoding::F16).expect("rows")]);
        let rounded = packed.pack(RowEncoding::Int8).expect("rows");
        let whole = weight.to_kind(Kind::Half).to_kind(Kind::Float);
        let expected = PackedRows::pack(&whole, RowEncoding::Int8).expect("rows");
        assert_eq!(*rounded.rows, *expected.rows);
        let vector = random([1600]);
        assert_close(&packed.product(&vector).expect("a product"), &whole.mv(&vector));
    }

    #[test]
    fn stacked_with_plain_weights_is_plain() {
        let weight = random([3, 64]);
        let packed = || Weight::Packed(vec![PackedRows::pack(&weight, RowEncoding::F16).expect("rows")]);
        let Weight::Packed(parts) = Weight::stacked(vec![packed(), packed()]).expect("stacked") else {
            panic!("packed weights become plain");
        };
        assert_eq!(parts.len(), 2);
        let mixed = Weight::stacked(vec![packed(), Weight::Plain(weight.copy())]).expect("stacked");
        assert!(matches!(&mixed, Weight::Plain(weight) if weight.size() == [6, 64]));
        let several = Weight::stacked(vec![packed(), packed()]).expect("stacked");
        assert!(several.map_rows(|rows| rows.f_narrow(0, 0, 2)).is_err());
    }
}
