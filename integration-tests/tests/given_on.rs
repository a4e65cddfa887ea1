//! What a run trained, given to others: exported, pushed to a hub on loopback, and taken from there by somebody who has the
//! model alone.

use std::fs;
use std::process::{Command, Output};

use sepal_testkit::hub::{LoopbackHub, TOKEN};

use crate::program::Bench;

/// `sepal` as somebody with a cache of their own, who is logged in to the hub.
fn somebody(bench: &Bench, hub: &LoopbackHub, args: &[&str]) -> Command {
    let mut command = bench.sepal(args);
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HUB_OFFLINE", "0").env("HF_TOKEN", TOKEN);
    command.env("SEPAL_CACHE", bench.path("other/sepal")).env("HF_HUB_CACHE", bench.path("other/hub"));
    command
}

fn run(mut command: Command) -> Output {
    command.output().expect("sepal runs")
}

fn succeeds(command: Command) -> String {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn a_classifier_goes_to_the_hub_and_predicts_elsewhere() {
    let bench = Bench::new("llama-gqa");
    let trained = bench.run(&["train.max_steps=3", r#"data.template="It says: {text}""#]);
    let folder = trained.folder.to_str().expect("a path");
    let hub = LoopbackHub::new([]);

    // The tiny model lies in a folder of this machine, where nobody else finds it.
    succeeds(bench.sepal(&["export", "peft", folder, "export"]));
    let refused = run(somebody(&bench, &hub, &["push", "export", "hub:me/reviews"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--base-model OWNER/NAME"), "{said}");

    let args = ["export", "peft", folder, "export", "--base-model", "me/tiny", "--overwrite"];
    succeeds(bench.sepal(&args));
    fs::write(bench.path("export/notes.txt"), "mine").expect("written");
    let said = succeeds(somebody(&bench, &hub, &["push", "export", "hub:me/reviews", "--private"]));
    assert!(
        said.contains("names no licence") && said.contains("left out, as no part of an export: notes.txt"),
        "{said}"
    );
    assert!(said.contains("pushed README.md, adapter_config.json,"), "{said}");
    assert!(hub.is_private());
    let pushed = hub.files();
    let names: Vec<&str> = pushed.keys().map(String::as_str).collect();
    let expected =
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "sepal.json", "sepal_adapter.safetensors"];
    assert_eq!(names, expected);
    let here = bench.path("").display().to_string();
    for (name, content) in &pushed {
        let text = String::from_utf8_lossy(content);
        assert!(!text.contains(&here) && !text.contains("/tmp"), "{name} tells of this machine");
    }
    let card = String::from_utf8_lossy(&pushed["README.md"]).into_owned();
    assert!(card.contains(r#"template = "It says: {text}""#) && card.contains("max_length="), "{card}");

    let again = succeeds(somebody(&bench, &hub, &["push", "export", "hub:me/reviews"]));
    assert!(again.contains("nothing was pushed"), "{again}");
    assert_eq!(hub.commits().len(), 1);

    let said = succeeds(somebody(&bench, &hub, &["import", "peft", "hub:me/reviews", "classifier"]));
    assert!(said.contains("`sepal predict classifier --input FILE`"), "{said}");
    let predicted = |run: &str| {
        let args = ["predict", run, "-i", "validation.csv", "--probabilities", "--set", "model.source=model"];
        run_to_stdout(bench.sepal(&args))
    };
    assert_eq!(predicted("classifier"), predicted(folder));
}

fn run_to_stdout(command: Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn only_an_export_is_pushed() {
    let bench = Bench::new("llama-gqa");
    let hub = LoopbackHub::new([]);
    fs::create_dir(bench.path("folder")).expect("a folder");
    for (args, part) in [
        (["push", "folder", "hub:me/x"], "no folder that `sepal export peft` wrote (README.md is missing)"),
        (["push", "folder", "me/x"], "it is no repository of the hub; write hub:OWNER/NAME"),
    ] {
        let output = run(somebody(&bench, &hub, &args));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(part), "{said}");
    }
    assert!(hub.commits().is_empty());
}
