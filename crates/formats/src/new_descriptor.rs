//! Descriptors that are written from nothing.

use crate::create_type::CreateType;
use crate::descriptor::Descriptor;
use crate::error::Error;
use crate::extent::Extent;

/// Sectors of a track, as every tool counts them.
const SECTORS_PER_TRACK: u64 = 63;
/// The most cylinders that fit the field of a BIOS.
const IDE_CYLINDERS_MAX: u64 = 16_383;

/// What a new descriptor says; its text is that of `qemu-img` and VMware's tools.
#[derive(Clone, Debug)]
pub struct NewDescriptor {
    create_type: CreateType,
    cid: u32,
    extents: Vec<Extent>,
    parent: Option<(u32, String)>,
    adapter_type: String,
    hardware_version: u32,
}

impl NewDescriptor {
    /// A disk without a parent, on an `lsilogic` adapter.
    pub fn new(create_type: CreateType, cid: u32, extents: Vec<Extent>) -> Self {
        Self { create_type, cid, extents, parent: None, adapter_type: "lsilogic".to_owned(), hardware_version: 4 }
    }

    /// Makes it the child of a disk, by that disk's CID and the name of its descriptor.
    #[must_use]
    pub fn parent(mut self, cid: u32, hint: &str) -> Self {
        self.parent = Some((cid, hint.to_owned()));
        self
    }

    /// The adapter: `ide`, `lsilogic`, `buslogic`, `legacyESX` or `pvscsi`.
    #[must_use]
    pub fn adapter_type(mut self, name: &str) -> Self {
        self.adapter_type = name.to_owned();
        self
    }

    /// The virtual hardware version.
    #[must_use]
    pub fn hardware_version(mut self, version: u32) -> Self {
        self.hardware_version = version;
        self
    }

    /// The descriptor.
    ///
    /// # Errors
    /// As [`Descriptor::parse`]: no extents, too many sectors, or a name with a quote in it, which the format cannot
    /// write.
    pub fn build(&self) -> Result<Descriptor, Error> {
        let mut text = String::from("# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\n");
        let parent_cid = self.parent.as_ref().map_or(0xffff_ffff, |(cid, _)| *cid);
        text.push_str(&format!("CID={:08x}\nparentCID={parent_cid:08x}\n", self.cid));
        text.push_str(&format!("createType=\"{}\"\n", self.create_type.name()));
        if let Some((_, hint)) = &self.parent {
            text.push_str(&format!("parentFileNameHint=\"{hint}\"\n"));
        }
        text.push_str("\n# Extent description\n");
        for extent in &self.extents {
            text.push_str(&format!("{extent}\n"));
        }
        let sector_count = self.extents.iter().fold(0_u64, |sum, extent| sum.saturating_add(extent.sector_count));
        let heads = if self.adapter_type == "ide" { 16 } else { 255 };
        let cylinders = sector_count / (heads * SECTORS_PER_TRACK);
        let cylinders = if self.adapter_type == "ide" { cylinders.min(IDE_CYLINDERS_MAX) } else { cylinders };
        text.push_str("\n# The Disk Data Base\n#DDB\n\n");
        for (name, value) in [
            ("adapterType", self.adapter_type.clone()),
            ("geometry.cylinders", cylinders.max(1).to_string()),
            ("geometry.heads", heads.to_string()),
            ("geometry.sectors", SECTORS_PER_TRACK.to_string()),
            ("virtualHWVersion", self.hardware_version.to_string()),
        ] {
            text.push_str(&format!("ddb.{name} = \"{value}\"\n"));
        }
        Descriptor::parse(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::ExtentKind;

    #[test]
    fn what_is_built_says_what_was_asked_for() {
        let extents = vec![
            Extent::new(ExtentKind::Flat, 4096, Some("a b-flat.vmdk")),
            Extent { offset_sectors: 4096, ..Extent::new(ExtentKind::Flat, 8, Some("a b-flat.vmdk")) },
            Extent::new(ExtentKind::Zero, 8, None),
        ];
        let disk = NewDescriptor::new(CreateType::MonolithicFlat, 0xabcd, extents).parent(7, "p.vmdk").build().unwrap();
        assert_eq!((disk.cid(), disk.parent_cid(), disk.capacity_sectors()), (0xabcd, Some(7), 4112));
        assert_eq!(disk.parent_hint().as_deref(), Some("p.vmdk"));
        assert_eq!((disk.extents()[0].offset_sectors, disk.extents()[1].offset_sectors), (0, 4096));
        assert_eq!(disk.kind(), Some(CreateType::MonolithicFlat));
        assert!(NewDescriptor::new(CreateType::Vmfs, 1, Vec::new()).build().is_err());
        let quoted = vec![Extent::new(ExtentKind::Vmfs, 8, Some("a\" 0\nRW 1 ZERO"))];
        assert!(NewDescriptor::new(CreateType::Vmfs, 1, quoted).build().is_err());
    }
}
