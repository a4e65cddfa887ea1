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

/// Replaces characters that HTML forbids, which external text may contain.
fn printable(page: String) -> String {
    let forbidden = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(u32::from(c), 0xFDD0..=0xFDEF)
            || u32::from(c) & 0xFFFE == 0xFFFE
    };
    if page.contains(forbidden) { page.replace(forbidden, "\u{fffd}") } else { page }
}
