use std::collections::HashSet;
use std::ops::Range;

use sepal_checkpoint::linear_sites;
use sepal_core::{LinearSite, ModelConfig, NameMatching, TunableName, nearest};

/// Tunable that does not fit the blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the message names the fields")]
#[non_exhaustive]
pub enum TunableError {
    /// Name without a tunable or a layer.
    #[error("inject `{name}`: {problem}")]
    Unknown { name: String, problem: String },
    /// Tunable that is given twice.
    #[error("inject `{name}`: it is given twice")]
    Twice { name: String },
    /// Blocks that the model does not have.
    #[error("inject `{name}` into blocks {}..{}: the model has {n_blocks}", blocks.start, blocks.end)]
    Blocks { name: String, blocks: Range<usize>, n_blocks: usize },
    /// Tensor with a wrong shape.
    #[error("inject `{name}` of shape {found:?}: expected {expected}")]
    Shape { name: String, expected: String, found: Vec<usize> },
    /// Factor without the other.
    #[error("inject `{name}`: `{missing}` of the same rank and blocks is missing")]
    Factor { name: String, missing: String },
    /// Tunables of the prefix that disagree about its length.
    #[error("inject `{name}` for a prefix of {found} positions: another tunable is for {expected}")]
    PrefixLen { name: String, expected: usize, found: usize },
}

/// Name, first block and shape of a tunable.
pub(super) struct Described<'a> {
    pub(super) name: TunableName,
    text: &'a str,
    /// Blocks of the model.
    pub(super) blocks: Range<usize>,
    shape: &'a [usize],
}

/// Names of all tunables that the blocks of a model take.
pub fn tunable_names(config: &ModelConfig) -> Vec<String> {
    let prefix = [TunableName::DeepPrompts, TunableName::PrefixKeysValues];
    let sites = linear_sites(config);
    prefix.into_iter().chain(sites.iter().flat_map(TunableName::of_site)).map(|name| name.to_string()).collect()
}

/// Checks names, blocks and shapes of tunables, each given with its first block. Needs no blocks and no tensors.
///
/// # Errors
/// [`TunableError`] for the first tunable that does not fit.
pub fn check_tunables<'a>(
    config: &ModelConfig,
    tunables: impl IntoIterator<Item = (&'a str, usize, &'a [usize])>,
) -> Result<(), TunableError> {
    describe(config, tunables).map(drop)
}

pub(super) fn describe<'a>(
    config: &ModelConfig,
    tunables: impl IntoIterator<Item = (&'a str, usize, &'a [usize])>,
) -> Result<Vec<Described<'a>>, TunableError> {
    let sites = linear_sites(config);
    let mut names = HashSet::new();
    let mut described = Vec::new();
    for (text, first_block, shape) in tunables {
        if !names.insert(text) {
            return Err(TunableError::Twice { name: text.to_owned() });
        }
        let name = known_name(text, &sites)?;
        let blocks = first_block..first_block.saturating_add(shape.first().copied().unwrap_or(0));
        if blocks.is_empty() || blocks.end > config.n_blocks {
            return Err(TunableError::Blocks { name: text.to_owned(), blocks, n_blocks: config.n_blocks });
        }
        let tunable = Described { name, text, blocks, shape };
        tunable.check_shape(config, &sites)?;
        described.push(tunable);
    }
    described.iter().try_for_each(|tunable| tunable.check_factors(&described))?;
    check_prefix_len(&described)?;
    Ok(described)
}

/// Checks that all tunables of the prefix are for the same number of positions: libtorch would broadcast a single one.
fn check_prefix_len(described: &[Described<'_>]) -> Result<(), TunableError> {
    let mut prefixes = described.iter().filter_map(|tunable| Some((tunable.text, tunable.prefix_len()?)));
    let Some((_, expected)) = prefixes.next() else { return Ok(()) };
    match prefixes.find(|&(_, found)| found != expected) {
        Some((name, found)) => Err(TunableError::PrefixLen { name: name.to_owned(), expected, found }),
        None => Ok(()),
    }
}

/// Longest name of a tunable, in bytes. Peers send names, and the search for a similar one takes memory for each byte.
const MAX_NAME_BYTES: usize = 256;

fn known_name(text: &str, sites: &[LinearSite]) -> Result<TunableName, TunableError> {
    if text.len() > MAX_NAME_BYTES {
        let (name, problem) = (text.chars().take(20).collect(), format!("the name has {} bytes", text.len()));
        return Err(TunableError::Unknown { name, problem });
    }
    let unknown = |problem: String| TunableError::Unknown { name: text.to_owned(), problem };
    let Some(name) = TunableName::parse(text) else {
        return Err(unknown("blocks take prompts, keys and values, low-rank factors and scales of layers".to_owned()));
    };
    let Some(site) = name.site() else { return Ok(name) };
    let Some(found) = sites.iter().find(|known| known.name == site) else {
        let known: Vec<&str> = sites.iter().map(|site| site.name.as_str()).collect();
        let similar = nearest(site, known.iter().copied(), NameMatching::Options);
        let hint = similar.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        return Err(unknown(format!("the blocks have no layer `{site}`{hint} (known: {})", known.join(", "))));
    };
    if TunableName::of_site(found).contains(&name) {
        return Ok(name);
    }
    Err(unknown(format!("only inputs of the MLP's last layer are scaled, not those of `{site}`")))
}

impl Described<'_> {
    fn check_shape(&self, config: &ModelConfig, sites: &[LinearSite]) -> Result<(), TunableError> {
        let site = self.name.site().and_then(|name| sites.iter().find(|site| site.name == name));
        let (outputs, inputs) = site.map_or((0, 0), |site| (site.outputs, site.inputs));
        let rank_limit = outputs.min(inputs);
        let (is_fitting, expected) = match (&self.name, self.shape) {
            (TunableName::DeepPrompts, shape) => (
                matches!(shape, [_, len, width] if *len > 0 && *width == config.hidden),
                format!("[blocks, prefix_len, {}]", config.hidden),
            ),
            (TunableName::PrefixKeysValues, shape) => (
                matches!(shape, [_, len, width] if *len > 0 && *width == 2 * config.kv_size()),
                format!("[blocks, prefix_len, {}]", 2 * config.kv_size()),
            ),
            (TunableName::LoraA(_), shape) => (
                matches!(shape, [_, rank, width] if (1..=rank_limit).contains(rank) && *width == inputs),
                format!("[blocks, rank, {inputs}] with a rank of at most {rank_limit}"),
            ),
            (TunableName::LoraB(_), shape) => (
                matches!(shape, [_, height, rank] if (1..=rank_limit).contains(rank) && *height == outputs),
                format!("[blocks, {outputs}, rank] with a rank of at most {rank_limit}"),
            ),
            (TunableName::ScaleOutput(_), shape) => {
                (matches!(shape, [_, width] if *width == outputs), format!("[blocks, {outputs}]"))
            }
            (TunableName::ScaleInput(_), shape) => {
                (matches!(shape, [_, width] if *width == inputs), format!("[blocks, {inputs}]"))
            }
        };
        if is_fitting {
            return Ok(());
        }
        Err(TunableError::Shape { name: self.text.to_owned(), expected, found: self.shape.to_vec() })
    }

    /// Checks that the other factor of a low-rank addition is there.
    fn check_factors(&self, all: &[Described<'_>]) -> Result<(), TunableError> {
        let other = match &self.name {
            TunableName::LoraA(site) => TunableName::LoraB(site.clone()),
            TunableName::LoraB(site) => TunableName::LoraA(site.clone()),
            _ => return Ok(()),
        };
        let is_other = |tunable: &Described<'_>| {
            tunable.name == other && tunable.blocks == self.blocks && tunable.rank() == self.rank()
        };
        if all.iter().any(is_other) {
            return Ok(());
        }
        Err(TunableError::Factor { name: self.text.to_owned(), missing: other.to_string() })
    }

    fn rank(&self) -> Option<usize> {
        match self.name {
            TunableName::LoraA(_) => self.shape.get(1).copied(),
            TunableName::LoraB(_) => self.shape.get(2).copied(),
            _ => None,
        }
    }

    /// Number of positions of the prefix, if the tunable acts on it.
    pub(super) fn prefix_len(&self) -> Option<usize> {
        self.name.site().is_none().then(|| self.shape[1])
    }
}
