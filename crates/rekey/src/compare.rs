//! Whether a successor is still what its file converts to. Asked only where a file shows signs of a change after the commit, as every file of a
//! copied folder does.

use vmseal_disk::{DiskLayout, Piece, PieceKind, UnitSize};
use vmseal_formats::envelope;
use vmseal_keys::{Dek, KeySource};
use vmseal_storage::{Access, File, Storage, StoragePath};
use zeroize::Zeroizing;

use crate::convert::Transform;
use crate::error::Error;
use crate::material::{Material, open_bundle, open_dek};
use crate::plan::Operation;
use crate::record::{DiskRecord, Record, Role, Staged, staged_path};
use crate::secrets::VmSecrets;
use crate::stage::{VM_FILE_LEN_MAX, file_context};

const CHUNK_LEN: u64 = 256 << 10;

/// Converts the file once more and compares. Where a key of the old side cannot be had any more nothing can be told: then no.
pub(crate) fn is_conversion(
    storage: &dyn Storage,
    record: &Record,
    staged: &Staged,
    material: &Material,
    keys: &mut dyn KeySource,
) -> Result<bool, Error> {
    let target = StoragePath::new(&staged.target)?;
    match staged.role {
        Role::Extent { disk } => {
            let entry = record.disk(disk)?;
            let Some(transform) = transform(record.operation, entry, disk, material, keys)? else { return Ok(false) };
            let layout = DiskLayout::open(storage, &StoragePath::new(&entry.descriptor)?)?;
            let source = storage.open(&target, Access::Read)?;
            let successor = storage.open(&staged_path(&target), Access::Read)?;
            if source.len()? != successor.len()? {
                return Ok(false);
            }
            // What one of the two has as data may be a hole in the other: both are gone through.
            for file in [&source, &successor] {
                for piece in layout.pieces(file.as_ref(), &target)? {
                    if !is_same(&piece?, source.as_ref(), successor.as_ref(), &transform)? {
                        return Ok(false);
                    }
                }
            }
            Ok(true)
        }
        Role::File { .. } => {
            let read = |path: &StoragePath| storage.read(path, VM_FILE_LEN_MAX).map(Zeroizing::new);
            let (source, successor) = (read(&target)?, read(&staged_path(&target))?);
            let old = match &record.old_bundle {
                Some(list) => open_bundle(list, &record.vmx, keys).ok(),
                None => None,
            };
            let source = content(old.as_ref(), &staged.target, source);
            let successor = content(material.new.as_ref(), &staged.target, successor);
            Ok(source.is_some() && source == successor)
        }
        Role::Descriptor { .. } | Role::Vmx => Ok(false),
    }
}

fn transform(
    operation: Operation,
    entry: &DiskRecord,
    disk: usize,
    material: &Material,
    keys: &mut dyn KeySource,
) -> Result<Option<Transform>, Error> {
    let mut transform = material.transform(disk, entry.unit()?)?;
    if operation == Operation::DeepRecrypt && transform.from.is_none() {
        let Some(list) = &entry.old_keys else { return Ok(None) };
        let old: Option<Dek> = open_dek(&entry.encryption(list)?, &entry.descriptor, keys).ok();
        let Some(old) = old else { return Ok(None) };
        transform.from = Some(vmseal_disk::DiskCipher::new(&old, entry.unit()?)?);
    }
    Ok(Some(transform))
}

fn is_same(piece: &Piece, source: &dyn File, successor: &dyn File, transform: &Transform) -> Result<bool, Error> {
    let mut at = piece.file_range.start;
    while at < piece.file_range.end {
        let len = CHUNK_LEN.min(piece.file_range.end - at);
        let (mut old, mut new) = (vec![0; len as usize], vec![0; len as usize]);
        source.read_at(&mut old, at)?;
        successor.read_at(&mut new, at)?;
        match piece.kind {
            // It has other keys on either side, and is not compared.
            PieceKind::Descriptor => {}
            PieceKind::Other if old != new => return Ok(false),
            PieceKind::Other => {}
            PieceKind::Guest { virtual_byte } => {
                let was_zero: Vec<bool> = units(&old).map(is_zero).collect();
                transform.apply(&mut old, virtual_byte + (at - piece.file_range.start))?;
                // A copy may fill holes with zeros: zeros on both sides are the same.
                let mut pairs = units(&old).zip(units(&new)).zip(was_zero);
                if !pairs.all(|((old, new), was_zero)| old == new || was_zero && is_zero(new)) {
                    return Ok(false);
                }
            }
        }
        at += len;
    }
    Ok(true)
}

fn units(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.chunks(UnitSize::B512.bytes() as usize)
}

fn is_zero(unit: &[u8]) -> bool {
    unit.iter().all(|byte| *byte == 0)
}

/// The plaintext of a VM file, whether it is an envelope or not.
fn content(secrets: Option<&VmSecrets>, name: &str, bytes: Zeroizing<Vec<u8>>) -> Option<Zeroizing<Vec<u8>>> {
    if !envelope::is_envelope(&bytes) {
        return Some(bytes);
    }
    let secrets = secrets?;
    envelope::open(secrets.file_key(name)?, &file_context(secrets), &bytes).ok()
}
