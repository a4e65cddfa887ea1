use tch::{Kind, TchError, Tensor};

use crate::attention::heads::Heads;
use crate::attention::layout::Layout;
use crate::segment::Segment;

/// Keys and values of a group of bins, or their gradients.
#[derive(Debug)]
pub(crate) struct KeysValues {
    /// `[bins, len, 2, kv, dim]`
    pub(crate) own: Tensor,
    /// Keys and values of the prefix before each bin, `[prefix_len, 2, kv, dim]`.
    pub(crate) prefix: Option<Tensor>,
}

impl KeysValues {
    pub(crate) fn prefix_len(&self) -> i64 {
        self.prefix.as_ref().map_or(0, |prefix| prefix.size()[0])
    }

    /// Keys and values of some bins and heads, views.
    pub(crate) fn narrow(&self, bins: Segment, kv: Segment) -> Result<Self, TchError> {
        let own = kv.narrow_dim(&bins.narrow(&self.own)?, 3)?;
        Ok(Self { own, prefix: self.prefix.as_ref().map(|prefix| kv.narrow_dim(prefix, 2)).transpose()? })
    }

    /// The same in fp32, so that kernel calls on parts of it, or on several views of it, do not each convert it.
    pub(crate) fn to_fp32(&self) -> Result<Self, TchError> {
        let prefix = self.prefix.as_ref().map(|prefix| prefix.f_to_kind(Kind::Float)).transpose()?;
        Ok(Self { own: self.own.f_to_kind(Kind::Float)?, prefix })
    }

    /// Copies keys and values with the prefix before each bin, `[bins, kv, prefix_len + len, dim]`; views without a prefix.
    pub(crate) fn joined(&self) -> Result<[Tensor; 2], TchError> {
        let Some(prefix) = &self.prefix else { return by_head(&self.own) };
        let (bins, _, _, kv, dim) = self.own.size5()?;
        let prefix = prefix.f_unsqueeze(0)?.f_expand([bins, self.prefix_len(), 2, kv, dim], false)?;
        by_head(&Tensor::f_cat(&[&prefix, &self.own], 1)?)
    }

    /// Keys and values without the prefix, views `[bins, kv, len, dim]`.
    pub(crate) fn own_by_head(&self) -> Result<[Tensor; 2], TchError> {
        by_head(&self.own)
    }

    /// Keys and values of the prefix, views `[1, kv, prefix_len, dim]`.
    pub(crate) fn prefix_by_head(&self) -> Result<Option<[Tensor; 2]>, TchError> {
        self.prefix.as_ref().map(|prefix| by_head(&prefix.f_unsqueeze(0)?)).transpose()
    }

    /// Writes gradients of [`joined`](Self::joined): replaces those of the bins, and adds the part of the prefix.
    pub(crate) fn write(&self, grads: [&Tensor; 2]) -> Result<(), TchError> {
        let prefix_len = self.prefix_len();
        let part = |segment: Segment| {
            let [keys, values] = grads.map(|grad| segment.narrow_dim(grad, 2));
            Ok::<_, TchError>([keys?, values?])
        };
        let [keys, values] = part(Segment { start: prefix_len, len: self.own.size()[1] })?;
        self.write_own([&keys, &values])?;
        let [keys, values] = part(Segment { start: 0, len: prefix_len })?;
        self.add_to_prefix([&keys, &values])
    }

    /// Writes gradients of [`own_by_head`](Self::own_by_head).
    pub(crate) fn write_own(&self, grads: [&Tensor; 2]) -> Result<(), TchError> {
        for (i, grad) in (0..).zip(grads) {
            self.own.f_select(2, i)?.f_copy_(&grad.f_transpose(1, 2)?)?;
        }
        Ok(())
    }

    /// Adds gradients `[.., kv, prefix_len, dim]` for the prefix, summed over the first dimension.
    pub(crate) fn add_to_prefix(&self, grads: [&Tensor; 2]) -> Result<(), TchError> {
        let Some(prefix) = &self.prefix else { return Ok(()) };
        for (i, grad) in (0..).zip(grads) {
            let sum = grad.f_transpose(1, 2)?.f_sum_dim_intlist(0, false, Kind::Float)?;
            let _ = prefix.f_select(1, i)?.f_add_(&sum)?;
        }
        Ok(())
    }
}

/// Splits `[bins, n, 2, kv, dim]` into keys and values, views `[bins, kv, n, dim]`.
fn by_head(tensor: &Tensor) -> Result<[Tensor; 2], TchError> {
    let [keys, values] = [0, 1].map(|i| tensor.f_select(2, i)?.f_transpose(1, 2));
    Ok([keys?, values?])
}

/// Keys and values of one batch, or their gradients, by group.
#[derive(Debug)]
pub(crate) struct BatchKeysValues<'a> {
    layout: &'a Layout,
    /// `[bins, len, 2, kv, dim]` of each group.
    groups: Vec<Tensor>,
    /// `[prefix_len, 2, kv, dim]`
    prefix: Option<Tensor>,
}

impl<'a> BatchKeysValues<'a> {
    /// Views of `kv [n, 2 kv_size]`, and of keys and values of a prefix without slots.
    pub(crate) fn new(
        kv: &Tensor,
        heads: Heads,
        layout: &'a Layout,
        cached: Option<&Tensor>,
    ) -> Result<Self, TchError> {
        let Heads { kv: n_heads, dim, .. } = heads;
        let groups = kv.f_split_with_sizes(&layout.sizes, 0)?;
        let groups = groups.iter().zip(&layout.groups);
        let groups = groups.map(|(group, bins)| group.f_view([bins.bins, bins.len, 2, n_heads, dim]));
        let groups: Vec<Tensor> = groups.collect::<Result<_, _>>()?;
        let prefix = match (cached, groups.first()) {
            (Some(cached), _) => Some(cached.f_view([layout.prefix_len, 2, n_heads, dim])?),
            (None, Some(first)) if layout.prefix_slots > 0 => Some(first.f_select(0, 0)?),
            _ if layout.prefix_len > 0 => return Err(without_prefix()),
            _ => None,
        };
        Ok(Self { layout, groups, prefix })
    }

    /// Keys and values of group `i`, views.
    pub(crate) fn group(&self, i: usize) -> KeysValues {
        let prefix = self.prefix.as_ref().filter(|_| self.layout.groups[i].after_prefix);
        KeysValues { own: self.groups[i].shallow_clone(), prefix: prefix.map(Tensor::shallow_clone) }
    }

    /// Continues with the prefix in fp32, for sums of gradients, until [`finish_sums`](Self::finish_sums).
    pub(crate) fn start_sums(&mut self) -> Result<(), TchError> {
        if let Some(prefix) = self.prefix.take() {
            self.prefix = Some(match prefix.kind() {
                Kind::Float => prefix,
                _ => prefix.f_to_kind(Kind::Float)?,
            });
        }
        Ok(())
    }

    /// Writes the sums for the prefix to its slots.
    pub(crate) fn finish_sums(&self) -> Result<(), TchError> {
        match (&self.prefix, self.groups.first()) {
            (Some(sums), Some(group)) if group.kind() != Kind::Float => group.f_select(0, 0)?.f_copy_(sums),
            _ => Ok(()),
        }
    }
}

fn without_prefix() -> TchError {
    TchError::Kind("keys and values of a cached prefix are missing, as in a backward pass".to_owned())
}
