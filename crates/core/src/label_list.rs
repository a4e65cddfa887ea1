//! Names of labels as one text, for metadata that hold texts only.

/// Joins names by line ends. A name may have any character: if one is empty or has a line end, the text begins with a line
/// end, and line ends and backslashes of names are escaped.
pub fn join_labels(names: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = names.iter().map(|name| name.as_ref()).collect();
    let escaped = |name: &&str| format!("\n{}", name.replace('\\', "\\\\").replace('\n', "\\n"));
    match names.iter().any(|name| name.is_empty() || name.contains('\n')) {
        true => names.iter().map(escaped).collect(),
        false => names.join("\n"),
    }
}

/// Names in a text of [`join_labels`]; none for an empty text.
pub fn split_labels(text: &str) -> Vec<String> {
    match text.strip_prefix('\n') {
        Some(escaped) => escaped.split('\n').map(unescaped).collect(),
        None if text.is_empty() => Vec::new(),
        None => text.split('\n').map(str::to_owned).collect(),
    }
}

fn unescaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.extend(chars.next().map(|next| if next == 'n' { '\n' } else { next })),
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_without_line_ends_are_lines() {
        assert_eq!(join_labels(&["bad\\n", "good"]), "bad\\n\ngood");
        assert_eq!(split_labels("bad\\n\ngood"), ["bad\\n", "good"]);
        assert_eq!(join_labels(&["a\nb\\", "c"]), "\na\\nb\\\\\nc");
        assert_eq!((join_labels(&[""; 0]), split_labels("")), (String::new(), Vec::new()));
    }

    proptest! {
        #[test]
        fn joined_names_are_split_again(names in prop::collection::vec("[a\\\\n\n\r\u{0} é]{0,5}", 1..5)) {
            prop_assert_eq!(split_labels(&join_labels(&names)), names);
        }
    }
}
