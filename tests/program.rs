//! Runs the program `distill` and writes small data sets for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ccm::data::{ImageShape, Split, shapes};
use ccm::sampler::image::grid;
use ccm::train::batches::StageKind;
use ccm::train::checkpoint::{self, Checkpoint};

/// Settings of a very short training run: 4 steps of 8 images for the teacher and for the student.
pub const TINY: [&str; 44] = [
    "--set",
    "network.height=8",
    "--set",
    "network.width=8",
    "--set",
    "network.model_channels=32",
    "--set",
    "network.channel_mult=[1, 1]",
    "--set",
    "network.attention_resolutions=[4]",
    "--set",
    "network.num_res_blocks=1",
    "--set",
    "network.num_head_channels=16",
    "--set",
    "teacher.kimg=0.032",
    "--set",
    "distill.kimg=0.032",
    "--set",
    "teacher.batch=8",
    "--set",
    "distill.batch=8",
    "--set",
    "teacher.warmup_kimg=0.016",
    "--set",
    "distill.warmup_kimg=0.016",
    "--set",
    "distill.step_size=0.25",
    "--set",
    "run.log_every_kimg=0.016",
    "--set",
    "run.sample_every_kimg=0.032",
    "--set",
    "run.checkpoint_every_kimg=0.016",
    "--set",
    "run.report_steps=2",
    "--set",
    "run.report_images=16",
    "--set",
    "run.seed=5",
    "--set",
    "distill.learning_rate=1e-3",
    "--set",
    "teacher.learning_rate=1e-3",
];

/// The program `distill`, built by the test script.
pub fn distill() -> Command {
    let test = std::env::current_exe().expect("a test has a path");
    let program = test.ancestors().nth(2).map(|folder| folder.join("distill")).unwrap_or_default();
    assert!(program.exists(), "{}: not built; `cargo build` builds it", program.display());
    Command::new(program)
}

/// Runs a command that must succeed and returns its output.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The command that resumes the run in a folder, on the CPU.
pub fn resume(run: &Path) -> Command {
    let mut command = distill();
    command.args(["run", "--device", "cpu", "--resume", "--out"]).arg(run);
    command
}

/// Checks that two runs have made the same bytes.
pub fn assert_same_models(a: &Path, b: &Path) {
    for file in ["teacher.safetensors", "student.safetensors"] {
        let [a, b] = [a, b].map(|run| fs::read(run.join(file)).expect("a run that has ended"));
        assert!(a == b, "{file} differs");
    }
}

/// Runs a command that must fail with status 1 and a one-line error that contains each of `parts`.
pub fn fail(command: &mut Command, parts: &[&str]) {
    let output = command.output().expect("the program starts");
    let line = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{command:?}\n{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "one line expected:\n{line}");
    for part in parts {
        assert!(line.contains(part), "`{part}` expected in: {line}");
    }
}

/// Writes a folder of PNG images, with one folder per class.
pub fn picture_folder(folder: &Path, count: usize) {
    let data =
        shapes(count, ImageShape { channels: 3, height: 12, width: 10 }, Split::Train, 1).expect("shapes");
    for i in 0..count {
        let class = folder.join(&data.classes()[data.label(i) as usize]);
        fs::create_dir_all(&class).expect("a folder");
        let png = grid(&data.batch(&[i], &[]), [3, 12, 10], 1).to_png().expect("a picture");
        fs::write(class.join(format!("{i:03}.png")), png).expect("a file");
    }
}

/// Writes MNIST's four files with `count` images of 8x8 each.
pub fn write_idx(folder: &Path, count: usize) -> PathBuf {
    const SIDE: u32 = 8;
    for name in ["train", "t10k"] {
        let mut images = [0x0000_0803u32, count as u32, SIDE, SIDE].map(u32::to_be_bytes).concat();
        images.extend((0..count as u32 * SIDE * SIDE).map(|i| (i * 7 % 256) as u8));
        fs::write(folder.join(format!("{name}-images-idx3-ubyte")), images).expect("a file");
        let mut labels = [0x0000_0801u32, count as u32].map(u32::to_be_bytes).concat();
        labels.extend((0..count).map(|i| (i % 10) as u8));
        fs::write(folder.join(format!("{name}-labels-idx1-ubyte")), labels).expect("a file");
    }
    folder.to_owned()
}

/// Starts a run and waits for a checkpoint of at least `step` steps.
pub fn start(command: &mut Command, out: &Path, stage: StageKind, step: u64) -> Child {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let begin = Instant::now();
    let reached = |found: &Checkpoint| found.stage == stage && found.step >= step;
    while !checkpoint::list(&out.join("checkpoints")).iter().any(reached) {
        assert!(child.try_wait().expect("a process").is_none(), "the run ended before step {step}");
        assert!(begin.elapsed() < Duration::from_secs(120), "no step {step} after two minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// Starts a run, waits for a checkpoint of at least `step` steps, and kills the run.
pub fn kill_after(command: &mut Command, out: &Path, stage: StageKind, step: u64) {
    let mut child = start(command, out, stage, step);
    child.kill().expect("a process");
    child.wait().expect("a process");
}
