//! Layout of a page and its basic elements.

use askama::Template;

/// Part of the page with a heading.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) html: String,
}

impl Section {
    pub(crate) fn new(id: &'static str, title: &'static str, parts: impl IntoIterator<Item = String>) -> Self {
        Self { id, title, html: parts.into_iter().collect() }
    }
}

#[derive(Template)]
#[template(path = "page.html")]
struct Page<'a> {
    title: &'a str,
    head: &'a str,
    sections: &'a [Section],
    foot: &'a str,
    style: &'static str,
    script: &'static str,
}

/// Renders a page. `head` is HTML, `title` and `foot` are text.
pub(crate) fn page(title: &str, head: &str, sections: &[Section], foot: &str) -> String {
    let style = include_str!("../templates/report.css");
    let script = include_str!("../templates/report.js");
    printable(render(&Page { title, head, sections, foot, style, script }))
}

pub(crate) fn render(template: &impl Template) -> String {
    // The templates call only infallible functions, and a `String` accepts all writes.
    template.render().unwrap_or_else(|error| format!("<p>{error}</p>"))
}

pub(crate) fn paragraph(text: &str) -> String {
    render(&Paragraph { class: "", text })
}

/// Paragraph about a missing part.
pub(crate) fn missing(text: &str) -> String {
    render(&Paragraph { class: "missing", text })
}

pub(crate) fn heading(text: &'static str) -> String {
    format!("<h3>{text}</h3>")
}

/// Grid of elements, side by side on wide screens.
pub(crate) fn side_by_side(parts: impl IntoIterator<Item = String>) -> String {
    grid("grid", parts)
}

/// Grid of small charts.
pub(crate) fn multiples(parts: impl IntoIterator<Item = String>) -> String {
    grid("grid multiples", parts)
}

fn grid(class: &'static str, parts: impl IntoIterator<Item = String>) -> String {
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { render(&Grid { class, parts }) }
}

/// Collapsed element.
pub(crate) fn folded(summary: &str, html: &str) -> String {
    folded_in("", summary, html)
}

/// Collapsed element with a class of the style sheet; `more` is open on paper.
pub(crate) fn folded_in(class: &'static str, summary: &str, html: &str) -> String {
    render(&Folded { class, summary, html })
}

#[derive(Template)]
#[template(source = r#"<p class="{{ class }}">{{ text }}</p>"#, ext = "html")]
struct Paragraph<'a> {
    class: &'a str,
    text: &'a str,
}

#[derive(Template)]
#[template(
    source = r#"<div class="{{ class }}">{% for part in parts %}{{ part|safe }}{% endfor %}</div>"#,
    ext = "html"
)]
struct Grid {
    class: &'static str,
    parts: Vec<String>,
}

#[derive(Template)]
#[template(
    source = r#"<details class="{{ class }}"><summary>{{ summary }}</summary>{{ html|safe }}</details>"#,
    ext = "html"
)]
struct Folded<'a> {
    class: &'static str,
    summary: &'a str,
    html: &'a str,
}

/// Replaces characters that HTML forbids, and writes those that reorder others as escapes; external text may contain both.
/// Joiners stay, because words of some languages need them.
fn printable(page: String) -> String {
    if !page.contains(|c| is_forbidden(c) || is_reordering(c)) {
        return page;
    }
    let mut shown = String::with_capacity(page.len());
    for c in page.chars() {
        match c {
            c if is_forbidden(c) => shown.push('\u{fffd}'),
            c if is_reordering(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

fn is_forbidden(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\t'))
        || matches!(u32::from(c), 0xFDD0..=0xFDEF)
        || u32::from(c) & 0xFFFE == 0xFFFE
}

/// True for characters that change the direction of a text.
fn is_reordering(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn pages_show_characters_that_reorder_others() {
        let page = "<p>a\u{202e}b\u{7}c\u{200c}d\u{2066}</p>\n".to_owned();
        assert_eq!(printable(page), "<p>a\\u{202e}b\u{fffd}c\u{200c}d\\u{2066}</p>\n");
        assert_eq!(printable("plain\n".to_owned()), "plain\n");
    }
}
