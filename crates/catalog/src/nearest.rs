/// Candidate that `name` was probably meant to be, if one is similar enough.
///
/// ```
/// assert_eq!(sepal_catalog::nearest("batchsize", ["batch_size", "shuffle"]), Some("batch_size"));
/// assert_eq!(sepal_catalog::nearest("zebra", ["batch_size", "shuffle"]), None);
/// ```
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = plain(name);
    candidates
        .into_iter()
        .map(|candidate| (similarity(&plain, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= 0.6)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// Similarity from 0 to 1. A prefix counts as at least 0.75.
fn similarity(name: &str, candidate: &str) -> f64 {
    let candidate = plain(candidate);
    let begins = name.len() >= 3 && (candidate.starts_with(name) || name.starts_with(&candidate));
    let edits = strsim::normalized_damerau_levenshtein(name, &candidate);
    if begins { edits.max(0.75) } else { edits }
}

/// Lower case, with one kind of separator.
fn plain(name: &str) -> String {
    name.to_lowercase().replace(['-', ' '], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_returns_the_most_similar_name_above_the_threshold() {
        let known = ["epochs", "max_steps", "clip_norm", "seed"];
        for (name, expected) in
            [("epoch", Some("epochs")), ("max-steps", Some("max_steps")), ("clip", Some("clip_norm")), ("lr", None)]
        {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
        assert_eq!(nearest("x", []), None);
    }
}
