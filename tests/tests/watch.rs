//! Watching a run from another process: `distill watch` and TensorBoard's event files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::Path;

use ccm::train::batches::StageKind;
use ccm_tests::program::{TINY, distill, fail, kill_after, resume, succeed};
use tempfile::tempdir;

fn watch(run: &Path) -> String {
    succeed(distill().args(["watch", "--once", "--page"]).arg(run))
}

#[test]
fn a_run_can_be_watched_before_and_after_its_end() {
    let folder = tempdir().unwrap();
    let run = folder.path().join("run");
    let mut command = distill();
    command.args(["run", "--device", "cpu", "--out"]).arg(&run).args(TINY);
    command.args(["--set", "data.count=64", "--set", "run.tensorboard=true", "--set", "distill.kimg=0.8"]);
    kill_after(&mut command, &run, StageKind::Distill, 4);
    let said = watch(&run);
    for part in ["distill, step", "of 100", "left of this stage", "teacher", "4 of 4", "loss", "KDC", "saved"]
    {
        assert!(said.contains(part), "`{part}` expected in:\n{said}");
    }
    let page = fs::read_to_string(run.join("watch.html")).unwrap();
    assert!(page.contains("http-equiv=\"refresh\"") && page.contains("<svg"));
    succeed(&mut resume(&run));
    let said = watch(&run);
    assert!(said.contains(": finished") && said.contains("100 of 100") && said.contains("samples"), "{said}");
    assert!(!fs::read_to_string(run.join("watch.html")).unwrap().contains("http-equiv=\"refresh\""));

    // One event file for each start of a stage. TensorBoard's reading of them: tests/references/events.py.
    let files = |stage: &str| {
        let mut files: Vec<_> =
            fs::read_dir(run.join("events").join(stage)).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    };
    assert_eq!((files("teacher").len(), files("distill").len()), (1, 2));
    let bytes = fs::read(&files("distill")[1]).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("brain.Event:2") && has("distill/kdc") && has("distill/samples"));
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let folder = tempdir().unwrap();
    fail(distill().arg("watch").arg(folder.path()), &["no run there"]);
}
