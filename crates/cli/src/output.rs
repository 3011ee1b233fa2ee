//! What the command prints: one JSON document or text on standard output, everything else on standard error.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this is the place that prints")]

use std::error::Error as StdError;
use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::status::{Failure, Status};

/// Where the command prints.
#[derive(Debug)]
pub(crate) struct Output {
    quiet: bool,
}

impl Output {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Whether a progress bar makes sense.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }

    /// What was asked for, for people.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        Ok(stdout.flush()?)
    }

    /// What was asked for, for programs.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(Status::Failed, error.to_string()))?;
        self.text(&text)
    }

    /// A remark beside the result.
    pub(crate) fn note(&mut self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// Something that deserves attention.
    pub(crate) fn warning(&mut self, text: &str) {
        eprintln!("vmseal: warning: {text}");
    }

    /// Why the command failed, with every cause below.
    pub(crate) fn error(&mut self, failure: &Failure) {
        eprintln!("vmseal: {failure}");
        let mut source = failure.source();
        while let Some(cause) = source {
            eprintln!("  because: {cause}");
            source = cause.source();
        }
    }
}
