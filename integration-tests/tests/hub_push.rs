//! What a run trained, given to others: exported, pushed to a hub on loopback, and taken from there by somebody who has the
//! model alone.

use std::fs;
use std::process::{Command, Output};

use sepal_testkit::hub::{LoopbackHub, TOKEN};
use serde_json::Value;

use sepal_integration_tests::fixture::Fixture;

/// `sepal` as somebody with a cache of their own, who is logged in to the hub.
fn somebody(fixture: &Fixture, hub: &LoopbackHub, args: &[&str]) -> Command {
    let mut command = fixture.sepal(args);
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HUB_OFFLINE", "0").env("HF_TOKEN", TOKEN);
    command.env("SEPAL_CACHE", fixture.path("other/sepal")).env("HF_HUB_CACHE", fixture.path("other/hub"));
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
fn pushed_classifier_predicts_on_another_machine() {
    let fixture = Fixture::new("llama-gqa");
    let here = fixture.path("").display().to_string();
    let sets = [("model.source", "model"), ("data.train", "train.csv"), ("data.validation", "validation.csv")];
    let mut sets: Vec<String> = sets.iter().map(|(key, name)| format!("{key}={here}{name}")).collect();
    sets.extend(["train.max_steps=3".to_owned(), r#"data.template="It says: {text}""#.to_owned()]);
    let trained = fixture.run(&sets.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(fs::read_to_string(trained.folder.join("manifest.json")).expect("a manifest").contains(&here));
    let folder = trained.folder.to_str().expect("a path");
    let hub = LoopbackHub::new([]);

    // The tiny model lies in a folder of this machine, where nobody else finds it.
    succeeds(fixture.sepal(&["export", "peft", folder, "export"]));
    let refused = run(somebody(&fixture, &hub, &["push", "export", "hub:me/reviews"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--base-model OWNER/NAME"), "{said}");

    let args = ["export", "peft", folder, "export", "--base-model", "me/tiny", "--overwrite"];
    succeeds(fixture.sepal(&args));
    fs::write(fixture.path("export/notes.txt"), "mine").expect("written");
    let said = succeeds(somebody(&fixture, &hub, &["push", "export", "hub:me/reviews", "--private"]));
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
    for (name, content) in &pushed {
        let text = String::from_utf8_lossy(content);
        assert!(!text.contains(&here), "{name} tells of this machine");
    }
    let card = String::from_utf8_lossy(&pushed["README.md"]).into_owned();
    assert!(card.contains(r#"template = "It says: {text}""#) && card.contains("max_length = "), "{card}");

    let again = succeeds(somebody(&fixture, &hub, &["push", "export", "hub:me/reviews"]));
    assert!(again.contains("nothing was pushed"), "{again}");
    assert_eq!(hub.commits().len(), 1);

    // Elsewhere no path of before leads anywhere.
    fs::create_dir(fixture.path("elsewhere")).expect("a folder");
    let mut import = somebody(&fixture, &hub, &["import", "peft", "hub:me/reviews", "classifier"]);
    import.current_dir(fixture.path("elsewhere"));
    let said = succeeds(import);
    assert!(said.contains("`sepal predict classifier --input FILE --set model.source=SOURCE`"), "{said}");
    let (rows, model) = (format!("{here}validation.csv"), format!("model.source={here}model"));
    let predicted = |run: &str| {
        let args = ["predict", run, "-i", &rows, "--probabilities", "--set", &model];
        let mut command = fixture.sepal(&args);
        command.current_dir(fixture.path("elsewhere"));
        run_to_stdout(command)
    };
    assert_eq!(predicted("classifier"), predicted(folder));
}

#[test]
fn imported_pipeline_cannot_redirect_the_swarm() {
    let fixture = Fixture::new("llama-gqa");
    let trained = fixture.run(&["train.max_steps=1"]);
    let folder = trained.folder.to_str().expect("a path");
    succeeds(fixture.sepal(&["export", "peft", folder, "export", "--base-model", "me/tiny"]));
    let side = fixture.path("export/sepal.json");
    let honest: Value = serde_json::from_slice(&fs::read(&side).expect("a file")).expect("JSON");
    let with = |pipeline: &str| {
        let mut side_file = honest.clone();
        side_file["run"]["pipeline"] = pipeline.into();
        fs::write(&side, side_file.to_string()).expect("written");
    };
    let pipeline = honest["run"]["pipeline"].as_str().expect("a pipeline").to_owned();
    assert!(pipeline.contains("use: embedded"), "{pipeline}");
    // It would have all texts sent to its author.
    with(
        &pipeline
            .replace("use: embedded", "use: static")
            .replace("tape_budget_mb: 4096", "servers: ['evil.example:4000']"),
    );
    let changed = fs::read_to_string(&side).expect("a file");
    assert!(changed.contains("evil.example"), "{changed}");
    succeeds(fixture.sepal(&["import", "peft", "export", "imported"]));
    let imported = fs::read_to_string(fixture.path("imported/pipeline.yaml")).expect("a pipeline");
    assert!(imported.contains("use: embedded") && !imported.contains("evil.example"), "{imported}");
    // What nobody understands is left out, with a word.
    with("nonsense: 1");
    let said = succeeds(fixture.sepal(&["import", "peft", "export", "alone"]));
    assert!(said.contains("the adapter comes without its run") && said.contains("nonsense"), "{said}");
    assert!(fixture.path("alone/adapter.safetensors").is_file() && !fixture.path("alone/pipeline.yaml").exists());
}

fn run_to_stdout(command: Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn push_without_an_export_is_refused() {
    let fixture = Fixture::new("llama-gqa");
    let hub = LoopbackHub::new([]);
    fs::create_dir(fixture.path("folder")).expect("a folder");
    for (args, part) in [
        (["push", "folder", "hub:me/x"], "no folder that `sepal export peft` wrote (README.md is missing)"),
        (["push", "folder", "me/x"], "it is no repository of the hub; write hub:OWNER/NAME"),
    ] {
        let output = run(somebody(&fixture, &hub, &args));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(part), "{said}");
    }
    assert!(hub.commits().is_empty());
}
