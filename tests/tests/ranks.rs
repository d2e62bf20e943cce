//! Runs on several devices and, with the feature `mpi`, in several processes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot read its data has failed")]

use std::fs;
use std::path::Path;
use std::process::Command;

use ccm_tests::program::{TINY, assert_same_models, distill, fail, succeed};
use tempfile::tempdir;

/// Settings of a run with every stage and a discriminator.
const ALL_STAGES: [&str; 10] = [
    "--set",
    "data.count=64",
    "--set",
    "distill.adversarial_warmup_kimg=0.02",
    "--set",
    "finish.kimg=0.032",
    "--set",
    "finish.batch=8",
    "--set",
    "run.threads=2",
];

/// Adds the arguments of a run with two threads altogether.
fn arguments<'a>(command: &'a mut Command, out: &Path, more: &[&str]) -> &'a mut Command {
    command.args(["run", "--out"]).arg(out).args(TINY).args(ALL_STAGES).args(more)
}

#[test]
fn two_devices_make_the_bytes_of_two_threads() {
    let folder = tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    succeed(arguments(&mut distill(), &one, &["--device", "cpu"]));
    let said = succeed(arguments(&mut distill(), &two, &["--device", "cpu:0,1"]));
    assert!(said.contains("device: CPU, 1 thread + CPU, 1 thread;"), "{said}");
    assert_same_models(&one, &two);
    let [one, two] = [one, two].map(|run| fs::read_to_string(run.join("metrics.jsonl")).unwrap());
    let without_speed = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("\"images_per_second\"").next().unwrap().to_owned()).collect()
    };
    assert_eq!(without_speed(&one), without_speed(&two));

    // Beside a given teacher, a weaker one is trained, which both ranks read.
    let teacher = folder.path().join("one/teacher.safetensors");
    let given = ["--teacher", teacher.to_str().unwrap(), "--set", "distill.autoguidance=2"];
    let given = [&given[..], &["--set", "teacher.weaker_kimg=0.016"]].concat();
    let [one, two] = ["one with weaker", "two with weaker"].map(|name| folder.path().join(name));
    succeed(arguments(&mut distill(), &one, &["--device", "cpu"]).args(&given));
    succeed(arguments(&mut distill(), &two, &["--device", "cpu:0,1"]).args(&given));
    for file in ["weaker.safetensors", "student.safetensors"] {
        assert_eq!(fs::read(one.join(file)).unwrap(), fs::read(two.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn an_exchange_that_overlaps_with_the_backward_pass_has_the_same_result() {
    let folder = tempdir().unwrap();
    let run = |name: &str, settings: [&str; 2]| {
        let out = folder.path().join(name);
        let parts = ["--set", "teacher.micro_batch=2", "--set", "distill.micro_batch=2"];
        let mut command = distill();
        arguments(&mut command, &out, &parts).args(["--device", "cpu:0,1"]);
        succeed(command.args(settings.iter().flat_map(|setting| ["--set", setting])));
        out
    };
    let [overlap, after] = ["run.overlap_exchange=true", "run.overlap_exchange=false"];
    let [recompute, keep] = ["run.gradient_checkpointing=true", "run.gradient_checkpointing=false"];
    assert_same_models(
        &run("recomputed, after", [recompute, after]),
        &run("recomputed", [recompute, overlap]),
    );

    // In segments, gradients are added up in another order than in the plain backward pass. Adam's first steps enlarge rounding
    // errors, since they divide small gradients by their own size.
    let losses = |run: &Path| -> Vec<f64> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let loss =
            |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
        text.lines().map(loss).collect()
    };
    let [plain, in_segments] = [("kept, after", after), ("kept", overlap)]
        .map(|(name, exchange)| losses(&run(name, [keep, exchange])));
    assert!(plain.len() > 5 && plain.len() == in_segments.len());
    for (plain, in_segments) in plain.into_iter().zip(in_segments) {
        assert!((plain - in_segments).abs() <= 0.01 * plain.abs(), "{plain} {in_segments}");
    }
}

#[test]
fn devices_that_cannot_share_a_batch_are_refused() {
    let out = tempdir().unwrap();
    let run = |devices, setting| {
        let mut command = distill();
        arguments(&mut command, &out.path().join("run"), &["--device", devices, "--set", setting]);
        command
    };
    fail(&mut run("cpu:0,1,2", "run.threads=4"), &["run.threads", "multiple of the 3 ranks", "found 4"]);
    let mut overlapping = run("cpu:0,1", "run.threads=4");
    fail(
        overlapping.args(["--set", "run.overlap_exchange=true"]),
        &["run.overlap_exchange", "one thread in each rank", "found 2"],
    );
    fail(&mut run("cpu:0,0", "run.threads=2"), &["--device", "different numbers"]);
    fail(&mut run("cuda", "run.threads=2"), &["--device", "vulkan:0,1"]);
    let few = ["cpu:0,1,2,3", "run.threads=4"];
    // Also a later stage's, before anything is trained.
    for stage in ["teacher", "distill"] {
        let mut command = run(few[0], few[1]);
        let batch = format!("{stage}.batch=3");
        fail(command.args(["--set", &batch]), &[&format!("{stage}.batch"), "each of 4 ranks", "found 3"]);
        assert!(!out.path().join("run/metrics.jsonl").exists());
    }
}

#[cfg(feature = "mpi")]
mod processes {
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use ccm::noise::Noise;

    use super::*;

    /// A command that `mpirun` starts in `ranks` processes.
    fn in_ranks(ranks: usize) -> Command {
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-n"]).arg(ranks.to_string());
        command.arg(distill().get_program());
        command
    }

    /// The process of a rank, once it is there.
    fn process(launcher: &Child, rank: usize) -> Option<u32> {
        let variable = format!("OMPI_COMM_WORLD_RANK={rank}\0");
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(5) {
            let children = format!("/proc/{0}/task/{0}/children", launcher.id());
            for child in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
                let environment = fs::read(format!("/proc/{child}/environ")).unwrap_or_default();
                if String::from_utf8_lossy(&environment).contains(&variable) {
                    return child.parse().ok();
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    #[test]
    fn two_processes_make_the_bytes_of_two_threads() {
        let folder = tempdir().unwrap();
        let [one, two, resumed] = ["one", "two", "resumed"].map(|name| folder.path().join(name));
        succeed(arguments(&mut distill(), &one, &["--device", "cpu"]));
        let said = succeed(arguments(&mut in_ranks(2), &two, &["--device", "cpu"]));
        assert_eq!(said.matches("device: 2 processes with CPU, 1 thread;").count(), 1, "{said}");
        assert_same_models(&one, &two);

        // Started by two processes, continued by one.
        let longer = ["--device", "cpu", "--set", "teacher.kimg=2"];
        for command in [&mut distill(), &mut in_ranks(2)] {
            let out = if command.get_program() == "mpirun" { &resumed } else { &two };
            let _ = fs::remove_dir_all(out);
            arguments(command, out, &longer);
            if out == &two {
                succeed(command);
                continue;
            }
            let mut launcher = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            while fs::read_dir(out.join("checkpoints")).map_or(0, Iterator::count) == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            kill(process(&launcher, 0).unwrap());
            launcher.wait().unwrap();
            succeed(distill().args(["run", "--device", "cpu", "--resume", "--out"]).arg(out));
        }
        assert_same_models(&two, &resumed);
    }

    fn kill(process: u32) {
        succeed(Command::new("kill").args(["-KILL", &process.to_string()]));
    }

    #[test]
    fn whichever_rank_is_killed_the_run_resumes_to_the_same_bytes() {
        const KILLS: usize = 12;
        let folder = tempdir().unwrap();
        let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
        let settings = ["--device", "cpu", "--set", "teacher.kimg=2.4", "--set", "distill.kimg=1.2"];
        succeed(arguments(&mut in_ranks(2), &whole, &settings));
        let mut noise = Noise::new(7, 0);
        let mut kills = 0;
        while kills < KILLS {
            let mut command = in_ranks(2);
            arguments(&mut command, &killed, &settings);
            if killed.join("config.toml").exists() {
                command.arg("--resume");
            }
            let mut launcher = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let process = process(&launcher, kills % 2).expect("a process of each rank");
            std::thread::sleep(Duration::from_millis(200 + noise.below(900) as u64));
            if launcher.try_wait().unwrap().is_some() {
                panic!("the run has ended after {kills} kills; it should be longer");
            }
            kill(process);
            let output = launcher.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && said.contains("on signal 9"), "{said}");
            kills += 1;
        }
        succeed(arguments(&mut in_ranks(2), &killed, &settings).arg("--resume"));
        assert_same_models(&whole, &killed);
    }

    #[test]
    fn what_one_process_refuses_is_told_once() {
        let folder = tempdir().unwrap();
        let mut command = in_ranks(2);
        arguments(&mut command, &folder.path().join("run"), &["--data", "not there"]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert_eq!(said.matches("error: not there").count(), 1, "{said}");
    }
}
