//! The page for people.

use serde_json::json;

use crate::about::About;
use crate::openapi::description;
use crate::options::Options;

const PAGE: &str = include_str!("page.html");
/// Stands in the page where what is known of the classifier goes.
const PLACE: &str = "\"ABOUT\"";

/// The page of this classifier.
pub(crate) fn page(about: &About, options: &Options) -> String {
    let about = json!({
        "name": about.name,
        "description": description(about),
        "labels": about.labels,
        "takes_pairs": about.takes_pairs,
        "facts": about.facts,
        "needs_token": options.token.is_some(),
        "max_text_bytes": options.max_text_bytes,
    });
    // Inside of a script element, this is all that could end it.
    PAGE.replacen(PLACE, &about.to_string().replace('<', "\\u003c"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::about::Kind;

    #[test]
    fn names_cannot_break_out_of_the_page() {
        let about = About::new("</script><b>", Kind::Class, &["<!--", "ok"]);
        let page = page(&about, &Options::default());
        assert!(!page.contains(PLACE) && !page.contains("<b>") && page.matches("<!--").count() == 0);
        assert!(page.contains(r"\u003c/script>\u003cb>"));
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://") && !PAGE.contains("src="));
        assert_eq!(PAGE.matches(PLACE).count(), 1);
    }
}
