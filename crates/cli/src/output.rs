//! What the command prints: one JSON document or text on standard output, everything else on standard error.

#![expect(clippy::print_stderr, reason = "this is the place that prints")]

use std::error::Error as StdError;
use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::status::{Failure, Status};

/// Where the command prints.
#[derive(Debug)]
pub(crate) struct Output {
    quiet: bool,
    json: bool,
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: ErrorReport<'a>,
}

#[derive(Serialize)]
struct ErrorReport<'a> {
    status: u8,
    message: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    reasons: &'a [String],
}

impl Output {
    pub(crate) fn new(quiet: bool, json: bool) -> Self {
        Self { quiet, json }
    }

    /// Whether programs read standard output.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a progress bar makes sense.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }

    /// What was asked for: `value` for programs, `text` for people.
    pub(crate) fn result(&mut self, value: &impl Serialize, text: &str) -> Result<(), Failure> {
        if !self.json {
            return self.text(text);
        }
        let text =
            serde_json::to_string_pretty(value).map_err(|error| Failure::new(Status::Failed, error.to_string()))?;
        write(&text)
    }

    /// That something is ready, which goes on from here: a line of JSON for programs, a remark for people.
    pub(crate) fn ready(&mut self, value: &impl Serialize, text: &str) -> Result<(), Failure> {
        self.note(text);
        if !self.json {
            return Ok(());
        }
        write(&serde_json::to_string(value).map_err(|error| Failure::new(Status::Failed, error.to_string()))?)
    }

    /// What was asked for, for people.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        write(&printable(text))
    }

    /// A remark beside the result.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{}", printable(text));
        }
    }

    /// Something that deserves attention.
    pub(crate) fn warning(&self, text: &str) {
        eprintln!("vmseal: warning: {}", printable(text));
    }

    /// Why the command failed, with every cause below.
    pub(crate) fn error(&mut self, failure: &Failure) {
        eprintln!("vmseal: {}", printable(&failure.message));
        let mut source = failure.source();
        while let Some(cause) = source {
            eprintln!("  because: {}", printable(&cause.to_string()));
            source = cause.source();
        }
        if self.json && !failure.is_reported {
            let error =
                ErrorReport { status: failure.status as u8, message: &failure.message, reasons: &failure.reasons };
            if let Ok(text) = serde_json::to_string_pretty(&ErrorDocument { error }) {
                // Whoever does not read any more does not need it.
                let _ = write(&text);
            }
        }
    }
}

fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(end.as_bytes()))
        .and_then(|()| stdout.flush())
    {
        // Whoever reads has had enough, as `head` has.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Names come from files that anyone may have written: what would steer a terminal is shown instead.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let steers = character.is_control() && character != '\n' || is_bidirectional(character);
            let escaped = steers.then(|| character.escape_unicode());
            let plain = (!steers).then_some(character);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// Lower-case hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Characters that change the order in which others are shown (Unicode Standard Annex 9).
fn is_bidirectional(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_cannot_steer_the_terminal() {
        assert_eq!(super::printable("a\u{1b}[2Jb\nc\u{202e}ü"), "a\\u{1b}[2Jb\nc\\u{202e}ü");
    }
}
