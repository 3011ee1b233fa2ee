//! The types of virtual disks.

/// The type of a virtual disk, as `createType` names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum CreateType {
    /// Any extents.
    Custom,
    /// A whole device.
    FullDevice,
    /// One flat file.
    MonolithicFlat,
    /// One sparse file with the descriptor inside.
    MonolithicSparse,
    /// Some partitions of a device.
    PartitionedDevice,
    /// SESparse: a snapshot on VMFS 6.
    SeSparse,
    /// One file of compressed grains, with the descriptor inside.
    StreamOptimized,
    /// Flat files of at most 2 GiB.
    TwoGbMaxExtentFlat,
    /// Sparse files of at most 2 GiB.
    TwoGbMaxExtentSparse,
    /// One flat file on VMFS.
    Vmfs,
    /// As [`Vmfs`](Self::Vmfs), its blocks written with zeros.
    VmfsEagerZeroedThick,
    /// A physical raw device mapping.
    VmfsPassthroughRawDeviceMap,
    /// As [`Vmfs`](Self::Vmfs), its blocks allocated.
    VmfsPreallocated,
    /// A raw device.
    VmfsRaw,
    /// A virtual raw device mapping.
    VmfsRawDeviceMap,
    /// COWD: a snapshot on VMFS 3 and 5.
    VmfsSparse,
    /// As [`Vmfs`](Self::Vmfs), blocks allocated when they are written.
    VmfsThin,
}

/// Types and their names, the one that is written first.
const NAMES: [(CreateType, &str); 21] = [
    (CreateType::Custom, "custom"),
    (CreateType::FullDevice, "fullDevice"),
    (CreateType::MonolithicFlat, "monolithicFlat"),
    (CreateType::MonolithicSparse, "monolithicSparse"),
    (CreateType::PartitionedDevice, "partitionedDevice"),
    (CreateType::SeSparse, "seSparse"),
    (CreateType::StreamOptimized, "streamOptimized"),
    (CreateType::TwoGbMaxExtentFlat, "twoGbMaxExtentFlat"),
    (CreateType::TwoGbMaxExtentFlat, "2GbMaxExtentFlat"),
    (CreateType::TwoGbMaxExtentSparse, "twoGbMaxExtentSparse"),
    (CreateType::TwoGbMaxExtentSparse, "2GbMaxExtentSparse"),
    (CreateType::Vmfs, "vmfs"),
    (CreateType::VmfsEagerZeroedThick, "vmfsEagerZeroedThick"),
    (CreateType::VmfsPassthroughRawDeviceMap, "vmfsPassthroughRawDeviceMap"),
    (CreateType::VmfsPassthroughRawDeviceMap, "vmfsRDMP"),
    (CreateType::VmfsPreallocated, "vmfsPreallocated"),
    (CreateType::VmfsRaw, "vmfsRaw"),
    (CreateType::VmfsRawDeviceMap, "vmfsRawDeviceMap"),
    (CreateType::VmfsRawDeviceMap, "vmfsRDM"),
    (CreateType::VmfsSparse, "vmfsSparse"),
    (CreateType::VmfsThin, "vmfsThin"),
];

impl CreateType {
    /// The type with this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(kind, _)| *kind)
    }

    /// The name that is written.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_name() {
        for (kind, name) in NAMES {
            assert_eq!(CreateType::from_name(&name.to_uppercase()), Some(kind));
            assert_eq!(CreateType::from_name(kind.name()), Some(kind));
        }
        assert_eq!(CreateType::from_name("fluffy"), None);
    }
}
