//! Prints the progress of a run: progress bars on a terminal, plain lines otherwise.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ccm::train::batches::StageKind;
use ccm::train::drive::Watch;
use ccm::train::metrics_log::Line;
use ccm::train::summary::duration;
use indicatif::{ProgressBar, ProgressStyle};

use crate::Failure;

/// Shortest time between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

/// Prints the progress of a run and handles Ctrl-C.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    stop: Arc<AtomicBool>,
    total: u64,
    batch: usize,
    said: Option<Instant>,
}

impl Progress {
    /// Installs a handler for Ctrl-C: the first one makes the run save and stop, the second one exits immediately.
    pub(crate) fn new() -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            eprintln!("\nsaving; press Ctrl-C again to exit immediately");
        })?;
        Ok(Self { bar: None, stop, total: 0, batch: 0, said: None })
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }
}

impl Watch for Progress {
    fn stage(&mut self, stage: StageKind, done: u64, total: u64, batch: usize) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
        (self.total, self.batch, self.said) = (total, batch, None);
        if std::io::stdout().is_terminal() {
            let bar = ProgressBar::new(total).with_position(done);
            let style = ProgressStyle::with_template("{prefix:>8} {bar:28} {pos}/{len} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(stage.name());
            self.bar = Some(bar);
        } else {
            println!("{}: {done} of {total} steps done, {batch} images a step", stage.name());
        }
    }

    fn line(&mut self, line: &Line) {
        let left = self.total.saturating_sub(line.step) as f64 * self.batch as f64 / line.images_per_second;
        let curriculum = match (line.kdc, line.teacher_steps) {
            (Some(kdc), Some(steps)) => format!(", KDC {kdc:.1} dB, {steps:.2} teacher steps"),
            _ => String::new(),
        };
        let opponent = match line.discriminator_loss {
            Some(loss) => format!(", discriminator {loss:.2}"),
            None => String::new(),
        };
        let skipped = match line.skipped_steps {
            Some(steps @ 1..) => format!(", {steps} steps skipped in f16"),
            _ => String::new(),
        };
        let figures = format!(
            "loss {:.4}{curriculum}{opponent}{skipped}, {:.0} images/s, {} left",
            line.loss,
            line.images_per_second,
            duration(left)
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(line.step);
                bar.set_message(figures);
            }
            None => {
                let last = line.step >= self.total;
                if last || self.said.is_none_or(|said| said.elapsed() > QUIET) {
                    println!("{}: step {} of {}, {figures}", line.stage, line.step, self.total);
                    self.said = Some(Instant::now());
                }
            }
        }
    }

    fn note(&mut self, text: &str) {
        self.say(text);
    }

    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Stops a run as [`Progress`] does, but prints nothing: for all ranks but the first.
pub(crate) struct Silent(pub(crate) Progress);

impl Watch for Silent {
    fn stage(&mut self, _: StageKind, _: u64, _: u64, _: usize) {}
    fn line(&mut self, _: &Line) {}
    fn note(&mut self, _: &str) {}
    fn should_stop(&self) -> bool {
        self.0.should_stop()
    }
}

/// A progress bar, hidden unless standard output is a terminal.
pub(crate) fn counter(what: &str) -> ProgressBar {
    if !std::io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix:>10} {bar:28} {pos}/{len} {msg}");
    let bar = ProgressBar::new(0).with_prefix(what.to_owned());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
