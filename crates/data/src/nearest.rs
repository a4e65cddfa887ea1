/// The name most like `wanted`, if one is like it at all.
pub(crate) fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKENESS: f64 = 0.5;
    let wanted = wanted.to_lowercase();
    let score = |name: &str| strsim::normalized_damerau_levenshtein(&wanted, &name.to_lowercase());
    let scored = names.into_iter().map(|name| (score(name), name)).filter(|(score, _)| *score >= LIKENESS);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// `; did you mean NAME?`, or nothing.
pub(crate) fn hint(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_like_it() {
        assert_eq!(nearest("Sentense", ["label", "sentence", "idx"]), Some("sentence"));
        assert_eq!(nearest("zzz", ["label", "sentence"]), None);
    }
}
