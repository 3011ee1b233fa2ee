//! The disks that a VMX attaches.

use std::collections::BTreeMap;

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
/// [`Error::Encoding`] and [`Error::Unknown`] for a value that cannot be decoded.
pub fn attached_disks(vmx: &Dictionary) -> Result<Vec<AttachedDisk>, Error> {
    let mut values = BTreeMap::new();
    let mut nodes = Vec::new();
    for (name, value, _) in vmx.decoded()? {
        let name = name.to_ascii_lowercase();
        if let Some(node) = name.strip_suffix(".filename").filter(|node| is_node(node))
            && !values.contains_key(&name)
        {
            nodes.push(node.to_owned());
        }
        // Of duplicates the first counts.
        values.entry(name).or_insert(value);
    }
    let disks = nodes.into_iter().filter_map(|node| {
        let text = |field: &str| values.get(&format!("{node}.{field}")).map(|value| value.as_str());
        let is_disk = text("devicetype").is_none_or(|kind| kind.to_ascii_lowercase().contains("disk"));
        let is_present = text("present").is_none_or(|word| word.eq_ignore_ascii_case("TRUE"));
        let file = text("filename").unwrap_or_default().to_owned();
        is_disk.then_some(AttachedDisk { node, file, is_present })
    });
    Ok(disks.collect())
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
