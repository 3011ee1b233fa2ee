//! How far a long operation is, and how it is stopped.

use core::ops::ControlFlow;

/// A report of progress; bytes are bytes on storage.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The file being written.
    pub file: String,
    /// Bytes done, of all files.
    pub done_bytes: u64,
    /// Bytes to do in all, holes included.
    pub total_bytes: u64,
}

impl Progress {
    /// A report about `file`.
    pub fn new(file: &str, done_bytes: u64, total_bytes: u64) -> Self {
        Self { file: file.to_owned(), done_bytes, total_bytes }
    }
}

/// Is told of progress and may stop the operation. A stopped operation can be resumed or rolled back.
pub trait Watch {
    /// Called often; `Break` stops the operation at the next safe point.
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()>;
}

impl<F: FnMut(&Progress) -> ControlFlow<()>> Watch for F {
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        self(progress)
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn progress(&mut self, _: &Progress) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}
