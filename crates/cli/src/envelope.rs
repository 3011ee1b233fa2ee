//! `vmseal envelope describe`, `extract` and `create`, and `vmseal coredump decrypt`.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use serde::Serialize;
use vmseal::envelope_file::{self, EnvelopeFile, EnvelopeSeal};
use vmseal::{AttributeValue, FileError, FileKey, LocalDir, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::args::{CoredumpDecryptArgs, EnvelopeCreateArgs, EnvelopeDescribeArgs, EnvelopeExtractArgs};
use crate::lock::{is_dash, one_stdin};
use crate::output::{Output, hex};
use crate::progress::{Watched, catch_interrupts};
use crate::status::{Failure, Status};
use crate::vm_path::VmPath;

/// What the host's configuration is bound to; its key is in the keystore.
const CONFIGURATION_AAD: &str = "ESXConfiguration";

#[derive(Serialize)]
struct Description {
    file: String,
    offset_bytes: u64,
    header_bytes: usize,
    cipher: &'static str,
    key_id: String,
    key_hash: String,
    iv: String,
    attributes: Vec<AttributeItem>,
}

#[derive(Serialize)]
struct AttributeItem {
    name: String,
    value: serde_json::Value,
}

pub(crate) fn describe(args: &EnvelopeDescribeArgs, output: &mut Output) -> Result<(), Failure> {
    let envelope = open(&args.file, output)?;
    let header = envelope.header();
    let attributes = header.attributes().iter().map(|attribute| {
        let value = match &attribute.value {
            AttributeValue::Unsigned(value) => (*value).into(),
            AttributeValue::Signed(value) => (*value).into(),
            AttributeValue::Float(value) => (*value).into(),
            AttributeValue::Text(bytes) => String::from_utf8_lossy(bytes).into(),
            AttributeValue::Bytes(bytes) => hex(bytes).into(),
        };
        AttributeItem { name: attribute.name.clone(), value }
    });
    let description = Description {
        file: args.file.display().to_string(),
        offset_bytes: envelope.offset_bytes(),
        header_bytes: header.raw().len(),
        cipher: header.cipher(),
        key_id: header.key_info().to_owned(),
        key_hash: hex(header.key_hash()),
        iv: hex(header.iv()),
        attributes: attributes.collect(),
    };
    let mut text = format!(
        "{}: an envelope at byte {}, {} under key {}\n  IV        {}\n  key hash  {}\n",
        description.file,
        description.offset_bytes,
        description.cipher,
        description.key_id,
        description.iv,
        description.key_hash
    );
    for attribute in description.attributes.iter().filter(|attribute| !attribute.name.starts_with("vmware.")) {
        text.push_str(&format!("  {} = {}\n", attribute.name, attribute.value));
    }
    text.push_str("Nothing of this is authenticated before the envelope is extracted.");
    output.result(&description, &text)
}

pub(crate) fn extract(args: &EnvelopeExtractArgs, output: &mut Output) -> Result<(), Failure> {
    one_stdin(&[Some(&args.file), args.key_file.as_deref()])?;
    let (key, aad) = match (&args.key_file, &args.keystore) {
        (Some(file), _) => (read_key(file)?, ""),
        (None, Some(keystore)) => {
            let path = VmPath::of_file(keystore)?;
            let keystore =
                envelope_file::read_keystore(&LocalDir::open(&path.folder)?, &StoragePath::new(&path.name)?)?;
            let key = FileKey::from_bytes(keystore.key().expose());
            (key.map_err(|error| Failure::new(Status::Failed, error.to_string()))?, CONFIGURATION_AAD)
        }
        (None, None) => return Err(Failure::usage("name the key with --key-file or --keystore")),
    };
    let aad = args.aad.as_deref().unwrap_or(aad);
    decrypt(&args.file, &key, aad, &args.output, args.force, output)
}

pub(crate) fn create(args: &EnvelopeCreateArgs, output: &mut Output) -> Result<(), Failure> {
    one_stdin(&[Some(&args.file), Some(&args.key_file)])?;
    let key = read_key(&args.key_file)?;
    let aad = args.aad.as_deref().unwrap_or_default().as_bytes();
    let seal = EnvelopeSeal { key: &key, key_id: &args.key_id, aad };
    let (name, source) = source(&args.file, output)?;
    if is_dash(&args.output) {
        refuse_terminal()?;
        let mut stdout = std::io::stdout().lock();
        let failed = |source| FileError::Stream { path: "standard output".to_owned(), source };
        seal.encrypt(&name, source, |data| stdout.write_all(data).map_err(failed))?;
        return Ok(stdout.flush()?);
    }
    let out = VmPath::of_file(&args.output)?;
    seal.create(&name, source, &LocalDir::open(&out.folder)?, &StoragePath::new(&out.name)?, args.force)?;
    output.note(&format!("{} is written.", args.output.display()));
    Ok(())
}

pub(crate) fn decrypt_coredump(args: &CoredumpDecryptArgs, output: &mut Output) -> Result<(), Failure> {
    one_stdin(&[Some(&args.file), Some(&args.key_file)])?;
    decrypt(&args.file, &read_key(&args.key_file)?, "", &args.output, args.force, output)
}

fn decrypt(
    file: &Path,
    key: &FileKey,
    aad: &str,
    target: &Path,
    force: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let envelope = open(file, output)?;
    if is_dash(target) {
        refuse_terminal()?;
        let folder = LocalDir::open(std::env::temp_dir())?;
        let name = StoragePath::new(&format!(".vmseal-{}.spool", std::process::id()))?;
        let mut data = envelope.extract_unnamed(key, aad.as_bytes(), &folder, &name)?;
        let mut stdout = std::io::stdout().lock();
        std::io::copy(&mut data, &mut stdout)?;
        return Ok(stdout.flush()?);
    }
    let out = VmPath::of_file(target)?;
    let folder = LocalDir::open(&out.folder)?;
    let len = envelope.extract(key, aad.as_bytes(), &folder, &StoragePath::new(&out.name)?, force)?;
    output.note(&format!("{}: {len} bytes, verified.", target.display()));
    Ok(())
}

fn open(file: &Path, output: &Output) -> Result<EnvelopeFile<Box<dyn Read>>, Failure> {
    let (name, source) = source(file, output)?;
    Ok(EnvelopeFile::begin(&name, source)?)
}

/// A file or standard input, with its name for messages.
fn source(file: &Path, output: &Output) -> Result<(String, Box<dyn Read>), Failure> {
    catch_interrupts()?;
    if is_dash(file) {
        let name = "standard input";
        return Ok((name.to_owned(), Box::new(Watched::new(std::io::stdin(), name, None, output))));
    }
    let path = VmPath::of_file(file)?;
    let (folder, name) = (LocalDir::open(&path.folder)?, StoragePath::new(&path.name)?);
    let reader = envelope_file::reader(&folder, &name)?;
    let len = folder.metadata(&name)?.map(|metadata| metadata.len);
    Ok((file.display().to_string(), Box::new(Watched::new(reader, &path.name, len, output))))
}

/// A key of 32 bytes, as they are or as 64 hexadecimal digits.
fn read_key(file: &Path) -> Result<FileKey, Failure> {
    const LEN_MAX: usize = 2 * FileKey::LEN + 2;
    let failed = |what: String| Failure::new(Status::Key, format!("{}: {what}", file.display()));
    let mut bytes = Zeroizing::new(Vec::with_capacity(LEN_MAX + 1));
    let read = match is_dash(file) {
        true => std::io::stdin().lock().take(LEN_MAX as u64 + 1).read_to_end(&mut bytes),
        false => std::fs::File::open(file).and_then(|file| file.take(LEN_MAX as u64 + 1).read_to_end(&mut bytes)),
    };
    read.map_err(|error| failed(format!("the key cannot be read: {error}")))?;
    let digits = bytes.trim_ascii();
    let mut key = Zeroizing::new(bytes.to_vec());
    if bytes.len() != FileKey::LEN && digits.len() == 2 * FileKey::LEN {
        key.truncate(FileKey::LEN);
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            let pair = core::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|byte| byte.is_ascii_hexdigit()));
            *byte = pair
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| failed("a key is 32 bytes, or 64 hexadecimal digits".to_owned()))?;
        }
    }
    FileKey::from_slice(&key).map_err(|_| failed("a key is 32 bytes, or 64 hexadecimal digits".to_owned()))
}

fn refuse_terminal() -> Result<(), Failure> {
    match std::io::stdout().is_terminal() {
        true => Err(Failure::usage("this is no text for a terminal; name a file with -o, or redirect the output")),
        false => Ok(()),
    }
}
