use std::sync::Arc;

use serde_json::{Value, json};

use crate::model::Description;
use crate::openapi::description;
use crate::options::Options;

const PAGE: &str = include_str!("page.html");
const PLACEHOLDER: &str = "\"ABOUT\"";

pub(crate) fn page(models: &[Arc<Description>], options: &Options) -> String {
    let models: Vec<Value> = models.iter().map(|model| about(model)).collect();
    let about = json!({
        "models": models,
        "needs_token": options.token.is_some(),
        "max_text_bytes": options.max_text_bytes,
    });
    // Only `<` could end the script element.
    PAGE.replacen(PLACEHOLDER, &about.to_string().replace('<', "\\u003c"), 1)
}

fn about(Description { info, .. }: &Description) -> Value {
    json!({
        "name": info.name,
        "description": description(info),
        "labels": info.labels,
        "takes_pairs": info.takes_pairs,
        "facts": info.facts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classifier::{Answer, AnswerKind, ClassifierInfo};

    #[test]
    fn names_are_escaped() {
        let info = ClassifierInfo::new("</script><b>", AnswerKind::Class, &["<!--", "ok"]);
        let model = Arc::new(Description { info, example: Answer::Value(1.0) });
        let page = page(&[model], &Options::default());
        assert!(!page.contains(PLACEHOLDER) && !page.contains("<b>") && page.matches("<!--").count() == 0);
        assert!(page.contains(r"\u003c/script>\u003cb>"));
    }

    #[test]
    fn page_loads_no_other_resources() {
        assert!(!PAGE.contains("http://") && !PAGE.contains("https://") && !PAGE.contains("src="));
        assert_eq!(PAGE.matches(PLACEHOLDER).count(), 1);
    }
}
