//! Well-formed, self-contained, escaped and small pages.

use scraper::{Html, Selector};
use sepal_report::{Run, compare, report};

use crate::fixture::{self, HOSTILE};
use crate::{parse, run, save_page, texts};

const LIMIT: usize = 2_000_000;

fn check(name: &str, page: &str) -> Html {
    save_page(name, page);
    assert!(page.len() < LIMIT, "{name} has {} bytes", page.len());
    let html = parse(page);
    let all = Selector::parse("*").expect("it");
    let mut ids = std::collections::BTreeSet::new();
    for element in html.select(&all).map(|element| element.value()) {
        let is_refused = ["img", "iframe", "object", "embed", "base", "form"].contains(&element.name());
        assert!(!is_refused, "{name}: {}", element.name());
        for (key, value) in element.attrs() {
            assert!(!key.starts_with("on") && key != "src" && key != "srcset", "{name}: {key}={value}");
            assert!(key != "href" || value.starts_with('#') || value == "data:,", "{name}: {key}={value}");
            assert!(key != "style" || value.starts_with("--heat:"), "{name}: {key}={value}");
            assert!(key != "id" || ids.insert(value.to_owned()), "{name}: two elements are #{value}");
        }
    }
    let count = |selector: &str| texts(&html, selector).len();
    assert_eq!((count("script"), count("style"), count("title:not(svg title)"), count("h1")), (1, 1, 1, 1), "{name}");
    assert!(texts(&html, "style, script").iter().all(|text| !text.contains("url(") && !text.contains("http")));
    assert_eq!(count("table"), count("table > caption"), "{name}: each table says what it shows");
    assert_eq!(count("svg[role=img]"), count("svg[role=img] > desc"), "{name}: each picture is told in words");
    assert_eq!(count("nav a"), count("main > section"), "{name}");
    html
}

#[test]
fn pages_of_all_kinds_are_valid() {
    let all = [
        ("sst2", fixture::sentiment()),
        ("topics", fixture::topics()),
        ("stsb", fixture::scores()),
        ("emotions", fixture::tags()),
        ("failed", fixture::failed()),
    ];
    let runs: Vec<Run> = all.iter().map(|(name, made)| run(&format!("{name}-20261124-171519"), made)).collect();
    for (run, (name, _)) in runs.iter().zip(&all) {
        assert_eq!(run.problems, Vec::<String>::new());
        let page = report(run);
        check(&format!("{name}.html"), &page);
        assert!(!page.contains("seaplx7q2vsecret"), "secrets are not shown");
    }
    let html = check("compare.html", &compare(&runs));
    assert_eq!(texts(&html, "#runs thead th").len(), 6);
    check("compare-none.html", &compare(&[]));
    check("compare-one.html", &compare(&runs[..1]));
}

#[test]
fn external_text_is_escaped() {
    let mut made = fixture::sentiment();
    let hostile = || HOSTILE.to_owned();
    made.manifest.name = hostile();
    made.manifest.status = sepal_track::Status::Failed { error: hostile() };
    made.manifest.ended_early = Some(hostile());
    made.manifest.model.source = hostile();
    made.manifest.data.train = hostile();
    made.manifest.labels = vec![hostile(), "positive".into()];
    made.manifest.servers[0].server = hostile();
    made.manifest.nearest_words[0].words[0].0 = hostile();
    made.manifest.adapter_digest = hostile();
    made.evaluations.iter_mut().for_each(|one| _ = one.metrics.insert(hostile(), 0.5));
    made.manifest.metrics.insert(hostile(), 0.5);
    made.manifest.best = Some(sepal_track::BestEvaluation { step: 1, metric: hostile(), value: 0.5 });
    made.pipeline = format!("name: {}\n", serde_json::json!(HOSTILE));
    made.predictions.as_mut().expect("rows").names[0] = hostile();
    let run = run("a'b", &made);
    let html = check("hostile.html", &report(&run));
    assert!(texts(&html, "h1")[0].starts_with("</script></title>"));
    assert!(texts(&html, ".mistakes .text").iter().any(|text| text.ends_with("&lt; {{ 1 }} \u{fffd} end")));
    check("hostile-compare.html", &compare(&[run.clone(), run]));
}

#[test]
fn page_of_long_run_is_small() {
    let run = run("long", &fixture::long());
    let page = report(&run);
    let html = check("long.html", &page);
    assert_eq!(texts(&html, ".mistakes > li").len(), 50);
    assert_eq!(texts(&html, ".more .mistakes > li").len(), 40);
    let paths = Selector::parse("path[data-name]").expect("it");
    for path in html.select(&paths) {
        let points = path.value().attr("d").expect("a path").split('L').count();
        assert!((1..=1000).contains(&points), "{points} points");
    }
    // The curves of many runs share the limit.
    let runs: Vec<Run> = vec![run; 30];
    check("long-compare.html", &compare(&runs));
}
