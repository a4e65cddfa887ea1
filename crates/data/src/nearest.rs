/// The name most like `wanted`, if one is like it at all or begins with it.
pub(crate) fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LIKENESS: f64 = 0.5;
    const LEAST_BEGINNING: usize = 3;
    let wanted = wanted.to_lowercase();
    let score = |name: &str| {
        let name = name.to_lowercase();
        let likeness = strsim::normalized_damerau_levenshtein(&wanted, &name);
        let is_beginning = wanted.chars().count() >= LEAST_BEGINNING && name.starts_with(&wanted);
        if is_beginning { likeness.max(LIKENESS) } else { likeness }
    };
    let scored = names.into_iter().map(|name| (score(name), name)).filter(|(score, _)| *score >= LIKENESS);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// `; did you mean NAME?`, or nothing.
pub(crate) fn hint(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// What to do about a csv file whose fields something else than commas seems to part, or nothing.
pub(crate) fn separators<S: AsRef<str>>(columns: &[S]) -> &'static str {
    match columns {
        [one] if one.as_ref().contains('\t') => {
            "; its fields seem to be separated by tabs: give it the ending tsv, or the format tsv"
        }
        [one] if one.as_ref().contains(';') => {
            "; its fields seem to be separated by semicolons: set `delimiter` to `;`"
        }
        [one] if one.as_ref().contains(',') => "; its fields seem to be separated by commas: give the format csv",
        _ => "",
    }
}

/// The character that parts the only cell of a header into several, one of which is `wanted`.
pub(crate) fn other_delimiter(columns: &[String], wanted: &str) -> Option<char> {
    let [one] = columns else { return None };
    let parts = |c: &char| {
        c.is_ascii() && !c.is_alphanumeric() && !"_- .".contains(*c) && one.split(*c).any(|cell| cell == wanted)
    };
    one.chars().find(parts)
}

/// As [`separators`], where it is known what one of the fields is called.
pub(crate) fn delimiter_hint(columns: &[String], wanted: &str) -> String {
    match (separators(columns), other_delimiter(columns, wanted)) {
        ("", Some(delimiter)) => format!("; its fields seem to be separated by `{delimiter}`: set `delimiter` to that"),
        (hint, _) => hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_like_it() {
        assert_eq!(nearest("Sentense", ["label", "sentence", "idx"]), Some("sentence"));
        assert_eq!(nearest("zzz", ["label", "sentence"]), None);
        assert_eq!(nearest("sent", ["label", "sentiment"]), Some("sentiment"));
        assert_eq!(nearest("id", ["label", "identity"]), None);
    }

    #[test]
    fn fields_that_are_known_tell_any_separator() {
        let check =
            |header: &str, expected| assert_eq!(other_delimiter(&[header.to_owned()], "text"), expected, "{header}");
        check("id^text^label", Some('^'));
        check("text\u{1}label", Some('\u{1}'));
        check("text", None);
        check("review_text", None);
        check("the text", None);
        check("texts^label", None);
        assert!(delimiter_hint(&["id^text".to_owned()], "text").contains("set `delimiter`"));
    }

    #[test]
    fn other_separators_are_hinted_at() {
        assert!(separators(&["id;text;label"]).contains("semicolons"));
        assert!(separators(&["id\ttext"]).contains("tsv"));
        assert!(separators(&["id,text"]).contains("commas"));
        assert_eq!(separators(&["a;b", "c"]), "");
    }
}
