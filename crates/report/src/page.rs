//! The page around everything, and what keeps it whole.

use askama::Template;

/// A part of the page with a heading.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    /// Its anchor.
    pub(crate) id: &'static str,
    /// Its heading.
    pub(crate) title: &'static str,
    /// Its content, as HTML.
    pub(crate) html: String,
}

impl Section {
    /// A section of these parts.
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

/// A whole page. `head` is HTML, `title` and `foot` are text.
pub(crate) fn page(title: &str, head: &str, sections: &[Section], foot: &str) -> String {
    let style = include_str!("../assets/report.css");
    let script = include_str!("../assets/report.js");
    printable(render(&Page { title, head, sections, foot, style, script }))
}

/// A template as text.
pub(crate) fn render(template: &impl Template) -> String {
    // The templates call nothing that fails, and a `String` takes all that is written to it.
    template.render().unwrap_or_else(|error| format!("<p>{error}</p>"))
}

/// A paragraph.
pub(crate) fn paragraph(text: &str) -> String {
    render(&Paragraph { class: "", text })
}

/// A paragraph that says what is missing.
pub(crate) fn missing(text: &str) -> String {
    render(&Paragraph { class: "missing", text })
}

/// A heading within a section.
pub(crate) fn heading(text: &str) -> String {
    render(&Heading { text })
}

/// Things side by side where there is room.
pub(crate) fn side_by_side(parts: impl IntoIterator<Item = String>) -> String {
    grid("grid", parts)
}

/// Small charts that are read together, as many side by side as there is room for.
pub(crate) fn multiples(parts: impl IntoIterator<Item = String>) -> String {
    grid("grid multiples", parts)
}

fn grid(class: &'static str, parts: impl IntoIterator<Item = String>) -> String {
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { render(&Grid { class, parts }) }
}

/// Something that is shown when it is asked for.
pub(crate) fn folded(summary: &str, html: &str) -> String {
    folded_in("", summary, html)
}

/// The same in this class of the style sheet: what is `more` lies open on paper.
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
#[template(source = "<h3>{{ text }}</h3>", ext = "html")]
struct Heading<'a> {
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

/// The page without characters that HTML forbids, which texts may hold.
fn printable(page: String) -> String {
    let forbidden = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(u32::from(c), 0xFDD0..=0xFDEF)
            || u32::from(c) & 0xFFFE == 0xFFFE
    };
    if page.contains(forbidden) { page.replace(forbidden, "\u{fffd}") } else { page }
}
