//! `vmseal envelope describe`, `extract` and `create`, and `vmseal coredump decrypt`.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use serde::Serialize;
use vmseal::envelope_file::{self, EnvelopeFile, EnvelopeSeal};
use vmseal::{AttributeValue, FileError, FileKey, LocalDir, Storage, StoragePath};

use crate::file_args::{CoredumpDecryptArgs, EnvelopeCreateArgs, EnvelopeDescribeArgs, EnvelopeExtractArgs};
use crate::key_file;
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
        (Some(file), _) => (key_file::read_file_key(file)?, ""),
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
    let key = key_file::read_file_key(&args.key_file)?;
    let aad = args.aad.as_deref().unwrap_or_default().as_bytes();
    let seal = EnvelopeSeal { key: &key, key_id: &args.key_id, aad };
    let Source { name, reader: source, .. } = source(&args.file, output)?;
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
    decrypt(&args.file, &key_file::read_file_key(&args.key_file)?, "", &args.output, args.force, output)
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
    let source = source(file, output)?;
    Ok(EnvelopeFile::begin(&source.name, source.reader)?)
}

/// A file or standard input.
pub(crate) struct Source {
    /// For messages.
    pub(crate) name: String,
    pub(crate) reader: Box<dyn Read>,
    /// Where that is known.
    pub(crate) len_bytes: Option<u64>,
}

pub(crate) fn source(file: &Path, output: &Output) -> Result<Source, Failure> {
    catch_interrupts()?;
    if is_dash(file) {
        let name = "standard input";
        let reader = Box::new(Watched::new(std::io::stdin(), name, None, output));
        return Ok(Source { name: name.to_owned(), reader, len_bytes: None });
    }
    let path = VmPath::of_file(file)?;
    let (folder, name) = (LocalDir::open(&path.folder)?, StoragePath::new(&path.name)?);
    let reader = envelope_file::reader(&folder, &name)?;
    let len_bytes = folder.metadata(&name)?.map(|metadata| metadata.len);
    let reader = Box::new(Watched::new(reader, &path.name, len_bytes, output));
    Ok(Source { name: file.display().to_string(), reader, len_bytes })
}

pub(crate) fn refuse_terminal() -> Result<(), Failure> {
    match std::io::stdout().is_terminal() {
        true => Err(Failure::usage("this is no text for a terminal; name a file with -o, or redirect the output")),
        false => Ok(()),
    }
}
