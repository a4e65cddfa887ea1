use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use sepal_testkit::hub::{COMMIT, Commit, LoopbackHub, TOKEN};
use tempfile::TempDir;

use super::*;
use crate::hub::tests::fixture;
use crate::{AssetOptions, Token, ignore_events};

const CARD: &str = "README.md";
const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// Empty hub, folder with an adapter, and options with the right to push it.
fn push_fixture() -> (LoopbackHub, TempDir, AssetOptions) {
    let hub = LoopbackHub::new([]);
    let (folder, mut options) = fixture(false);
    options.hub_endpoint = hub.endpoint().to_owned();
    options.hub_token = Token::new(TOKEN);
    for (name, content) in [(CARD, "# A card"), (CONFIG, "{}"), (TENSORS, "tensors")] {
        fs::write(folder.path().join(name), content).expect("written");
    }
    (hub, folder, options)
}

fn target(text: &str) -> HubSource {
    let Ok(Source::Hub(source)) = text.parse() else { panic!("{text} is of the hub") };
    source
}

fn message(private: bool) -> PushOptions {
    PushOptions { message: "Three files".to_owned(), private }
}

fn push(options: &AssetOptions, folder: &Path, to: &str) -> Result<PushOutcome, PushError> {
    let files = [CARD, CONFIG, TENSORS].map(|name| folder.join(name));
    Assets::new(options.clone()).push(&target(to), &files, &message(false), &mut ignore_events)
}

#[test]
fn pushed_adapter_can_be_fetched() {
    let (hub, folder, options) = push_fixture();
    let mut ends = Vec::new();
    let mut on_event = |event: FetchEvent<'_>| {
        if let FetchEvent::End { file, size, received, .. } = event {
            ends.push((file.to_owned(), size, received));
        }
        ControlFlow::Continue(())
    };
    let files = [CARD, CONFIG, TENSORS].map(|name| folder.path().join(name));
    let assets = Assets::new(options.clone());
    let pushed = assets.push(&target("hub:a/b"), &files, &message(true), &mut on_event).expect("pushed");
    assert_eq!(pushed.commit.as_deref(), Some(COMMIT));
    assert_eq!(pushed.url, format!("{}/a/b", hub.endpoint()));
    assert_eq!(pushed.changed, [CARD, CONFIG, TENSORS]);
    assert_eq!(ends, [(TENSORS.to_owned(), 7, 7)], "small files go with the commit");
    assert!(hub.is_private());
    let files = [CARD, CONFIG, TENSORS].map(str::to_owned).to_vec();
    assert_eq!(hub.commits(), [Commit { branch: "main".to_owned(), summary: "Three files".to_owned(), files }]);

    let source: Source = "hub:a/b".parse().expect("a source");
    let fetched = Assets::new(options).fetch(&source, Kind::Adapter, &mut ignore_events).expect("fetched");
    assert_eq!(fs::read_to_string(fetched.path.join(TENSORS)).expect("a file"), "tensors");
    assert!(!fetched.path.join(CARD).exists(), "a card is for people");
}

#[test]
fn push_unchanged_files_sends_nothing() {
    let (hub, folder, options) = push_fixture();
    push(&options, folder.path(), "hub:a/b").expect("pushed");
    let stored = hub.stored();
    let second = push(&options, folder.path(), "hub:a/b").expect("pushed");
    assert_eq!((second.commit, second.changed), (None, Vec::new()));
    fs::write(folder.path().join(CARD), "# Another card").expect("written");
    let error = push(&options, folder.path(), "hub:a/b@draft").expect_err("no such branch");
    assert!(crate::error::one_line(&error).contains("404"), "{error}");
    hub.add_branch("draft");
    let other = push(&options, folder.path(), "hub:a/b@draft").expect("pushed");
    assert_eq!(other.changed, [CARD]);
    assert_eq!(hub.stored(), stored, "the tensors are there");
    let branches: Vec<String> = hub.commits().into_iter().map(|commit| commit.branch).collect();
    assert_eq!(branches, ["main", "draft"]);
}

#[test]
fn private_push_to_public_repository_is_error() {
    let (hub, folder, options) = push_fixture();
    hub.add_branch("main");
    let files = [folder.path().join(CARD)];
    let error = Assets::new(options.clone()).push(&target("hub:a/b"), &files, &message(true), &mut ignore_events);
    let error = error.expect_err("it is open");
    assert!(matches!(&error, PushError::Open { repository } if repository == "a/b"), "{error}");
    assert!(hub.files().is_empty());
    push(&options, folder.path(), "hub:a/b").expect("pushed");
}

#[test]
fn push_without_rights_names_remedy() {
    let (hub, folder, mut options) = push_fixture();
    // This token may write to a repository but not create one.
    let error = push(&options, folder.path(), "hub:locked/b").expect_err("no right");
    assert!(error.to_string().contains("403") && error.to_string().contains("to make it if it is new"), "{error}");
    hub.add_branch("main");
    push(&options, folder.path(), "hub:locked/b").expect("pushed");
    options.hub_token = Token::new("hf_of_somebody_else");
    let error = push(&options, folder.path(), "hub:a/b").expect_err("no right");
    assert!(matches!(&error, PushError::Forbidden { .. }), "{error}");
    assert!(error.to_string().contains("401") && error.to_string().contains("right to write"), "{error}");
    options.hub_token = None;
    let error = push(&options, folder.path(), "hub:a/b").expect_err("nobody");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    options.hub_offline = true;
    let error = push(&options, folder.path(), "hub:a/b").expect_err("offline");
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert_eq!(hub.commits().len(), 1);
}

#[test]
fn interrupted_upload_is_retried() {
    let (hub, folder, mut options) = push_fixture();
    options.hub_retries = 2;
    hub.fail_uploads([503, 0]);
    push(&options, folder.path(), "hub:a/b").expect("pushed");
    assert_eq!(hub.files()[TENSORS], b"tensors");
    options.hub_retries = 0;
    fs::write(folder.path().join(TENSORS), "others").expect("written");
    hub.fail_uploads([503]);
    let error = push(&options, folder.path(), "hub:a/b").expect_err("refused");
    assert!(error.to_string().contains("send adapter_model.safetensors"), "{error}");
    assert_eq!(hub.files()[TENSORS], b"tensors", "nothing changed");
    hub.fail_uploads([403]);
    let error = push(&options, folder.path(), "hub:a/b").expect_err("refused");
    // The message does not mention rights on the hub.
    let text = crate::error::one_line(&error);
    assert!(text.contains("the hub's storage answered 403"), "{text}");
}

#[test]
fn lost_commit_answer_is_not_retried() {
    let (hub, folder, mut options) = push_fixture();
    options.hub_retries = 3;
    hub.lose_answer();
    let error = push(&options, folder.path(), "hub:a/b").expect_err("no answer");
    assert!(matches!(&error, PushError::Unknown { .. }), "{error}");
    assert_eq!(hub.commits().len(), 1);
    assert_eq!(push(&options, folder.path(), "hub:a/b").expect("pushed").commit, None);
    // A proxy may have lost the answer or the request.
    fs::write(folder.path().join(CARD), "# Another card").expect("written");
    hub.refuse_commit(502);
    let error = push(&options, folder.path(), "hub:a/b").expect_err("no answer");
    assert!(matches!(&error, PushError::Unknown { .. }), "{error}");
    hub.refuse_commit(400);
    let error = push(&options, folder.path(), "hub:a/b").expect_err("refused");
    assert!(error.to_string().ends_with("make the commit"), "{error}");
}

#[test]
fn large_files_are_uploaded_with_progress() {
    let (hub, folder, options) = push_fixture();
    let content = vec![7; 3_000_000];
    let path = folder.path().join("large.safetensors");
    fs::write(&path, &content).expect("written");
    fs::write(folder.path().join("empty.safetensors"), "").expect("written");
    let files = [path, folder.path().join("empty.safetensors")];
    let assets = Assets::new(options.clone());
    let pushed = assets.push(&target("hub:a/b"), &files, &message(false), &mut ignore_events);
    assert_eq!(pushed.expect("pushed").changed, ["large.safetensors", "empty.safetensors"]);
    assert_eq!(hub.files()["large.safetensors"], content);
    assert_eq!(hub.files()["empty.safetensors"], b"");

    fs::write(&files[0], "other").expect("written");
    let mut stop = |event: FetchEvent<'_>| match event {
        FetchEvent::Begin { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error = Assets::new(options).push(&target("hub:a/b"), &files, &message(false), &mut stop).expect_err("stopped");
    assert!(matches!(error, PushError::Stopped { .. }), "{error}");
    assert_eq!(hub.files()["large.safetensors"], content);
}

#[test]
fn push_ignored_file_pushes_nothing() {
    let (hub, folder, options) = push_fixture();
    let files = [folder.path().join(CARD), folder.path().join("notes.log")];
    fs::write(&files[1], "x").expect("written");
    let error = Assets::new(options).push(&target("hub:a/b"), &files, &message(false), &mut ignore_events);
    let error = error.expect_err("ignored there");
    assert!(error.to_string().contains("its .gitignore ignores notes.log"), "{error}");
    assert!(hub.files().is_empty());
}

#[test]
fn adapter_branch_is_resolved_again() {
    let (hub, folder, mut options) = push_fixture();
    fs::write(folder.path().join("config.json"), "{}").expect("written");
    fs::write(folder.path().join("model.safetensors"), "weights").expect("written");
    let files = [CARD, CONFIG, TENSORS, "config.json", "model.safetensors"].map(|name| folder.path().join(name));
    Assets::new(options.clone()).push(&target("hub:a/b"), &files, &message(false), &mut ignore_events).expect("pushed");
    let fetch = |options: &AssetOptions, kind| {
        let source: Source = "hub:a/b".parse().expect("a source");
        Assets::new(options.clone()).fetch(&source, kind, &mut ignore_events).expect("fetched").path
    };
    assert!(fetch(&options, Kind::Model).join("model.safetensors").is_file());
    assert!(fetch(&options, Kind::Adapter).join(TENSORS).is_file());
    hub.requests();
    hub.revisions();
    fetch(&options, Kind::Model);
    assert_eq!(hub.revisions(), 0, "a model stays as it was fetched");
    fetch(&options, Kind::Adapter);
    assert_eq!(hub.revisions(), 1, "an adapter may have been pushed again");
    assert!(hub.requests().is_empty(), "its files are here");
    options.hub_endpoint = "http://127.0.0.1:1".to_owned();
    assert!(fetch(&options, Kind::Adapter).join(TENSORS).is_file(), "as it was, without the hub");
}

#[test]
fn push_to_other_than_branch_is_error() {
    let (_hub, folder, options) = push_fixture();
    for (to, part) in [
        ("hub:a/b/x.json", "a file in"),
        (&*format!("hub:a/b@{COMMIT}"), "a commit"),
        ("hub:a/b@draft", "a branch of a repository that is not there"),
    ] {
        let error = push(&options, folder.path(), to).expect_err("no branch");
        assert!(error.to_string().contains(part) && error.to_string().contains(to), "{error}");
    }
    let error = push(&options, &folder.path().join("nowhere"), "hub:a/b").expect_err("no files");
    assert!(error.to_string().contains("nowhere/README.md"), "{error}");
}

#[test]
fn stalled_upload_is_error() {
    let (hub, folder, mut options) = push_fixture();
    options.hub_stall_timeout = Duration::from_millis(400);
    hub.stall_upload();
    let error = push(&options, folder.path(), "hub:a/b").expect_err("it stalls");
    let text = crate::error::one_line(&error);
    assert!(text.contains("send adapter_model.safetensors") && text.contains("received nothing for 0.4 s"), "{text}");
}
