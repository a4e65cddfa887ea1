//! `sepal push`: uploads of an export to the hub.

use sepal_assets::{Assets, PushOptions, Source};
use sepal_track::export::{PublishError, check_publishable};

use crate::args::PushArgs;
use crate::downloads::Downloads;
use crate::output::{Failure, print, print_progress};

pub(crate) fn push(args: &PushArgs) -> Result<(), Failure> {
    let Source::Hub(to) = &args.to else {
        return Err(format!("push to {}: it is not a repository of the hub; use hub:OWNER/NAME", args.to).into());
    };
    let publishable = check_publishable(&args.folder).map_err(publish_failure)?;
    for notice in &publishable.notices {
        print_progress(&format!("note: {notice}"));
    }
    let options = PushOptions { message: args.message.clone(), private: args.private };
    let mut uploads = Downloads::uploads();
    let pushed = Assets::from_env().push(to, &publishable.files, &options, &mut uploads.watch())?;
    drop(uploads);
    match pushed.commit {
        Some(commit) => print(&format!("pushed {} to {}, commit {commit}", pushed.changed.join(", "), pushed.url)),
        None => print(&format!("{} has all files as they are here; nothing was pushed", pushed.url)),
    }
}

fn publish_failure(error: PublishError) -> Failure {
    match &error {
        PublishError::Foreign { .. } => format!("{error}; `sepal export peft` writes one").into(),
        PublishError::Run { folder } => format!("{error}: `sepal export peft {} DIR`", folder.display()).into(),
        PublishError::BaseModel { .. } => format!("{error} (--base-model OWNER/NAME)").into(),
        _ => error.into(),
    }
}
