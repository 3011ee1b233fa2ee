//! The disks that a VMX attaches.

use crate::dictionary::Dictionary;
use crate::error::Error;

/// The buses that have disks.
const BUSES: [&str; 4] = ["ide", "nvme", "sata", "scsi"];

/// A disk that a VMX attaches.
#[derive(Clone, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct AttachedDisk {
    /// Where, as `scsi0:1`.
    pub node: String,
    /// The file as the VMX names it: relative to its folder, or any path.
    pub file: String,
    /// Whether it is there when the VM runs; one that is not is still a disk of the VM.
    pub is_present: bool,
}

/// The disks of a VMX in the order of its lines: devices whose type is a disk, or not said.
///
/// # Errors
/// [`Error::Encoding`] and [`Error::Unknown`] for a file name that cannot be decoded.
pub fn attached_disks(vmx: &Dictionary) -> Result<Vec<AttachedDisk>, Error> {
    let mut disks: Vec<AttachedDisk> = Vec::new();
    for (name, _) in vmx.entries() {
        let name = String::from_utf8_lossy(&name).to_ascii_lowercase();
        let Some(node) = name.strip_suffix(".filename").filter(|node| is_node(node)) else { continue };
        if disks.iter().any(|disk| disk.node == node) {
            continue;
        }
        let text = |field: &str| vmx.text(&format!("{node}.{field}"));
        let kind = text("deviceType")?;
        if kind.is_some_and(|kind| !kind.to_ascii_lowercase().contains("disk")) {
            continue;
        }
        let is_present = text("present")?.is_none_or(|word| word.eq_ignore_ascii_case("TRUE"));
        let file = text("fileName")?.unwrap_or_default();
        disks.push(AttachedDisk { node: node.to_owned(), file, is_present });
    }
    Ok(disks)
}

/// Whether a name is that of a place on a bus.
fn is_node(name: &str) -> bool {
    let Some(place) = BUSES.iter().find_map(|bus| name.strip_prefix(bus)) else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    place.split_once(':').is_some_and(|(controller, unit)| is_number(controller) && is_number(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_told_from_other_devices() {
        let vmx = Dictionary::parse(
            b"scsi0.present = TRUE\nscsi0:0.fileName = \"a.vmdk\"\nSATA0:1.fileName=\"iso\"\nsata0:1.deviceType = \"cdrom-image\"\n\
              nvme0:0.FILENAME = \"/b.vmdk\"\nnvme0:0.deviceType = \"scsi-hardDisk\"\nnvme0:0.present = FALSE\nfloppy0.fileName = x\n\
              ide0.fileName = y\n",
        );
        let disk = |node: &str, file: &str, is_present| AttachedDisk {
            node: node.to_owned(),
            file: file.to_owned(),
            is_present,
        };
        assert_eq!(attached_disks(&vmx).unwrap(), [disk("scsi0:0", "a.vmdk", true), disk("nvme0:0", "/b.vmdk", false)]);
    }
}
