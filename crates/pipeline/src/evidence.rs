//! Evidence against servers with wrong results and of disputes, in the run folder.

use std::path::Path;

use sepal_core::in_one_line;
use sepal_machine::durable;
use sepal_model::Blocks;
use sepal_remote::Evidence;
use sepal_track::{WriteError, write_atomic};

/// Folder in the run folder, with a file for each server that was taken out of use, and for each dispute.
const FOLDER: &str = "evidence";

/// Writes evidence into the run folder: against each server that is taken out of use for wrong results, and of disputes.
pub(crate) fn keep_evidence(blocks: &dyn Blocks, run_folder: &Path) {
    let folder = run_folder.join(FOLDER);
    blocks.on_evidence(Box::new(move |evidence| {
        if let Err(error) = write(&folder, evidence) {
            tracing::warn!(error = in_one_line(&error), "the evidence against a server is not saved");
        }
    }));
}

fn write(folder: &Path, evidence: &Evidence) -> Result<(), WriteError> {
    let path = folder.join(file_name(evidence));
    let failed = |source| WriteError { path: path.clone(), source };
    durable::create_folders(folder).map_err(failed)?;
    let text = serde_json::to_vec_pretty(evidence).map_err(|error| failed(error.into()))?;
    write_atomic(&path, &text)
}

/// Name of the file: the server, of which other characters than letters, digits and dots are replaced, and the session.
fn file_name(evidence: &Evidence) -> String {
    const MAX_LEN: usize = 80;
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' };
    let server: String = evidence.accused.server.chars().take(MAX_LEN).map(plain).collect();
    format!("{server}-{}.json", evidence.session)
}

#[cfg(test)]
mod tests {
    use sepal_swarm::{Sha256, Statement, Witness};

    use super::*;

    #[test]
    fn evidence_is_a_file_of_its_server_and_session() {
        let hash = Sha256([1; 32]);
        let span = "0:4".parse().expect("a span");
        let statement = Statement { model: "d".into(), span, call: "forward all f32".into(), tunables: hash };
        let server = "../10.0.0.5:4000".to_owned();
        let accused = Witness { server, key: None, statement, input: hash, output: hash, receipt: None };
        let evidence =
            Evidence { accused, disputed: false, session: 7, difference: 0.5, tolerance: 0.01, checkers: Vec::new() };
        let folder = tempfile::tempdir().expect("a folder");
        write(&folder.path().join(FOLDER), &evidence).expect("written");
        let text = std::fs::read(folder.path().join("evidence/.._10.0.0.5_4000-7.json")).expect("a file");
        assert_eq!(serde_json::from_slice::<Evidence>(&text).expect("evidence"), evidence);
    }
}
