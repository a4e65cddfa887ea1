/// Rule by which [`nearest`] compares names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMatching {
    /// Names of options and plugins: case and separators are ignored, and either name may be a prefix of the other.
    Options,
    /// Names in data, such as columns and labels: only case is ignored, and the name may be a prefix of a candidate.
    Data,
}

/// Returns the candidate that `name` was probably meant to be, if one is similar enough.
///
/// ```
/// use sepal_core::{NameMatching, nearest};
///
/// assert_eq!(nearest("batchsize", ["batch_size", "shuffle"], NameMatching::Options), Some("batch_size"));
/// assert_eq!(nearest("zebra", ["batch_size", "shuffle"], NameMatching::Options), None);
/// ```
pub fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    matching: NameMatching,
) -> Option<&'a str> {
    let min_similarity = match matching {
        NameMatching::Options => 0.6,
        NameMatching::Data => 0.5,
    };
    let name = matching.normalized(name);
    let scored = candidates.into_iter().map(|candidate| (matching.similarity(&name, candidate), candidate));
    let similar = scored.filter(|(similarity, _)| *similarity >= min_similarity);
    similar.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, candidate)| candidate)
}

impl NameMatching {
    fn normalized(self, name: &str) -> String {
        match self {
            Self::Options => name.to_lowercase().replace(['-', ' '], "_"),
            Self::Data => name.to_lowercase(),
        }
    }

    /// Similarity from 0 to 1; a prefix has a minimum.
    fn similarity(self, name: &str, candidate: &str) -> f64 {
        const MIN_PREFIX: usize = 3;
        let candidate = self.normalized(candidate);
        let (is_prefix, prefix_similarity) = match self {
            Self::Options => (candidate.starts_with(name) || name.starts_with(&candidate), 0.75),
            Self::Data => (candidate.starts_with(name), 0.5),
        };
        let similarity = strsim::normalized_damerau_levenshtein(name, &candidate);
        let is_long = name.chars().count() >= MIN_PREFIX;
        if is_long && is_prefix { similarity.max(prefix_similarity) } else { similarity }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_option_ignores_separators() {
        let known = ["epochs", "max_steps", "clip_norm", "seed"];
        for (name, expected) in
            [("epoch", Some("epochs")), ("max-steps", Some("max_steps")), ("clip", Some("clip_norm")), ("lr", None)]
        {
            assert_eq!(nearest(name, known, NameMatching::Options), expected, "{name}");
        }
        assert_eq!(nearest("x", [], NameMatching::Options), None);
    }

    #[test]
    fn nearest_data_name_is_similar_or_begins_with_name() {
        for (name, candidates, expected) in [
            ("Sentense", &["label", "sentence", "idx"][..], Some("sentence")),
            ("zzz", &["label", "sentence"], None),
            ("sent", &["label", "sentiment"], Some("sentiment")),
            ("id", &["label", "identity"], None),
        ] {
            assert_eq!(nearest(name, candidates.iter().copied(), NameMatching::Data), expected, "{name}");
        }
    }
}
