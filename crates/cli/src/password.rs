//! Passwords: from a file, from standard input, or from the terminal; never from the command line.

use std::io::{IsTerminal, Read};
use std::path::Path;

use zeroize::Zeroizing;

use crate::status::{Failure, Status};

/// A password is a line, not a document.
const LEN_MAX: u64 = 64 << 10;

/// Reads a password from `file` (`-` is standard input), once. A trailing newline is not part of it.
pub(crate) fn from_file(file: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut password = Zeroizing::new(Vec::with_capacity(LEN_MAX as usize + 1));
    let failed = |error: std::io::Error| {
        Failure::new(Status::Key, format!("{}: the password cannot be read: {error}", file.display()))
    };
    if file.as_os_str() == "-" {
        std::io::stdin().lock().take(LEN_MAX + 1).read_to_end(&mut password).map_err(failed)?;
    } else {
        std::fs::File::open(file).map_err(failed)?.take(LEN_MAX + 1).read_to_end(&mut password).map_err(failed)?;
    }
    if password.len() as u64 > LEN_MAX {
        return Err(Failure::new(
            Status::Key,
            format!("{}: the password is longer than {LEN_MAX} bytes", file.display()),
        ));
    }
    if password.last() == Some(&b'\n') {
        password.pop();
        if password.last() == Some(&b'\r') {
            password.pop();
        }
    }
    if password.is_empty() {
        return Err(Failure::new(Status::Key, format!("{}: the password is empty", file.display())));
    }
    Ok(password)
}

/// Asks the terminal for `what`. Without a terminal the option that names a file is asked for.
pub(crate) fn ask(what: &str, option: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            Status::Key,
            format!("{what} is needed and there is no terminal to ask; give it with {option} FILE"),
        ));
    }
    prompt(what)
}

/// A password from its file, or from the terminal.
pub(crate) fn from_file_or_ask(file: Option<&Path>, what: &str, option: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    file.map_or_else(|| ask(what, option), from_file)
}

/// A new password from its file, or from the terminal, which is asked twice.
pub(crate) fn new_from_file_or_ask(
    file: Option<&Path>,
    what: &str,
    option: &str,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    if let Some(file) = file {
        return from_file(file);
    }
    let password = ask(what, option)?;
    if password.is_empty() {
        return Err(Failure::new(Status::Key, "the password is empty"));
    }
    if *prompt("The same again")? != *password {
        return Err(Failure::new(Status::Key, "the two passwords differ; nothing was changed"));
    }
    Ok(password)
}

fn prompt(what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let text = rpassword::prompt_password(format!("{what}: "))
        .map_err(|error| Failure::new(Status::Key, format!("{what} could not be read from the terminal: {error}")))?;
    Ok(Zeroizing::new(text.into_bytes()))
}
