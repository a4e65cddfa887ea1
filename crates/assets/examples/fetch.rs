//! Fetches the first available one of the sources on the command line: `cargo run -p sepal-assets --example fetch --
//! dataset hub:stanfordnlp/sst2 data/train.tsv`.

use std::error::Error;
use std::ops::ControlFlow;

use sepal_assets::{Assets, FetchEvent, Kind, Source};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let kind = match words.next().as_deref() {
        Some("model") => Kind::Model,
        Some("dataset") => Kind::Dataset,
        _ => return Err("usage: fetch model|dataset SOURCE...".into()),
    };
    let sources = words.map(|word| word.parse()).collect::<Result<Vec<Source>, _>>()?;
    let mut on_event = |event: FetchEvent<'_>| {
        match event {
            FetchEvent::Notice(line) => println!("{line}"),
            FetchEvent::End { file, size, .. } => println!("{file}: {size} bytes"),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let asset = Assets::from_env().fetch_first(&sources, kind, &mut on_event)?;
    println!("path    {}", asset.path.display());
    println!("source  {}", asset.pinned());
    println!("sha256  {}", asset.sha256.as_deref().unwrap_or("not known"));
    Ok(())
}
