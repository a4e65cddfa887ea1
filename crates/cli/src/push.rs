//! `sepal push`: uploads of an export to the hub.

use sepal_assets::{Assets, PushOptions, Source};

use crate::args::PushArgs;
use crate::downloads::Downloads;
use crate::output::{Failure, print};

pub(crate) fn push(args: &PushArgs) -> Result<(), Failure> {
    let Source::Hub(to) = &args.to else {
        return Err(format!("push to {}: it is no repository of the hub; write hub:OWNER/NAME", args.to).into());
    };
    let shared = sepal_peft::share(&args.folder)?;
    for notice in &shared.notices {
        eprintln!("note: {notice}");
    }
    let options = PushOptions { message: args.message.clone(), private: args.private };
    let mut uploads = Downloads::uploads();
    let pushed = Assets::from_env().push(to, &shared.files, &options, &mut uploads.watch())?;
    drop(uploads);
    match pushed.commit {
        Some(commit) => print(&format!("pushed {} to {}, commit {commit}", pushed.changed.join(", "), pushed.url)),
        None => print(&format!("{} has all files as they are here; nothing was pushed", pushed.url)),
    }
}
