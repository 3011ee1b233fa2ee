//! Progress on a terminal, and the wish to stop.

use core::ops::ControlFlow;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vmseal::{Progress, Watch};

use crate::output::{Output, printable};
use crate::status::{Failure, Status};

static STOP: AtomicBool = AtomicBool::new(false);

/// Lets an interrupt (Ctrl-C) or SIGTERM stop an operation at its next safe point, from where it can be resumed.
pub(crate) fn catch_interrupts() -> Result<(), Failure> {
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
        .map_err(|error| Failure::new(Status::Failed, format!("interrupts cannot be caught: {error}")))
}

/// A source that tells how far it is, and ends with an error when an interrupt was caught, so that what was made of it so far is removed.
pub(crate) struct Watched<R> {
    source: R,
    bar: Bar,
}

impl<R> Watched<R> {
    /// `len_bytes` is what the source will give, where that is known.
    pub(crate) fn new(source: R, name: &str, len_bytes: Option<u64>, output: &Output) -> Self {
        let bar = Bar::new(output);
        if let Some(len) = len_bytes {
            bar.bar.set_length(len);
        }
        bar.bar.set_message(printable(name));
        Self { source, bar }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.bar.bar.inc(count as u64);
        if STOP.load(Ordering::Relaxed) { Err(std::io::Error::other("stopped on request")) } else { Ok(count) }
    }
}

/// A bar with bytes, rate and time left on a terminal; nothing otherwise.
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    pub(crate) fn new(output: &Output) -> Self {
        let target = if output.shows_progress() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{wide_msg} {bytes}/{total_bytes} {bar:20} {percent:>3}% {bytes_per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }
}

impl Watch for Bar {
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.bar.set_length(progress.total_bytes);
        self.bar.set_position(progress.done_bytes);
        self.bar.set_message(printable(&progress.file));
        if STOP.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
