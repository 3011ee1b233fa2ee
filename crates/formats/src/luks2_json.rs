//! The JSON area of a LUKS2 header (LUKS2 On-Disk Format Specification 1.1.x, 3): which key opens which data.

use base64ct::{Base64, Encoding};
use serde_json::{Map, Value};
use vmseal_keys::Dek;

use crate::error::{Error, Kind, Place};
use crate::luks::{CIPHER, LuksHeader, SECTOR_LEN, not_ours};
use crate::luks_af::STRIPES;
use crate::luks_kdf::{LuksHash, LuksKdf};
use crate::luks_slot::{AREA_LEN, LuksSlot, MATERIAL_LEN, MasterDigest};

/// Key slots of a header at most (`LUKS2_KEYSLOTS_MAX`).
const SLOTS_MAX: usize = 32;
/// No salt or digest is longer.
const BYTES_MAX: usize = 256;

/// Reads the JSON of a header whose two copies have `size` bytes each; `offset` is where it lies, for messages.
pub(crate) fn parse(json: &[u8], offset: usize, size: usize) -> Result<LuksHeader, Error> {
    // Nesting is limited by the parser (128 levels), length by the size of the header (4 MiB).
    let metadata: Value = serde_json::from_slice(json).map_err(|error| Error::Syntax {
        what: "the metadata is no whole JSON; the file is damaged, restore it from a copy",
        place: Place::Byte((offset + byte_of(json, error.line(), error.column())) as u64),
    })?;
    let root = Object { map: map(&metadata, "metadata")?, part: "metadata", offset };
    let config = root.object("config")?;
    if let Some(requirements) = config.map.get("requirements") {
        let mandatory = requirements.get("mandatory").and_then(Value::as_array);
        if mandatory.is_none_or(|mandatory| !mandatory.is_empty()) {
            return Err(not_ours("a LUKS2 disk in the middle of a reencryption, or with other requirements"));
        }
    }
    let json_size = config.number("json_size")?;
    let areas_size = config.number("keyslots_size")?;
    let areas_start = 2 * size as u64;
    // The size of the JSON area is that of the header without its binary part.
    if json_size != size as u64 - 4096 {
        return Err(root.value("json_size", json_size));
    }
    let areas_end = areas_start.checked_add(areas_size).ok_or_else(|| root.value("keyslots_size", areas_size))?;
    let (segment, payload_offset_bytes, payload_len_bytes) = segment(&root.object("segments")?)?;
    if payload_offset_bytes != 0 && payload_offset_bytes < areas_end {
        return Err(root.value("offset", payload_offset_bytes));
    }
    let (digest, numbers) = digest(&root.object("digests")?, segment)?;
    let all = root.object("keyslots")?;
    if all.map.len() > SLOTS_MAX {
        let (what, max) = ("key slots", SLOTS_MAX as u64);
        return Err(Error::Limit { what, found: all.map.len().to_string(), max });
    }
    let mut slots = Vec::new();
    for (name, _) in all.map {
        let object = all.object_of(name, "keyslot")?;
        if object.text("type")? == "reencrypt" {
            return Err(not_ours("a LUKS2 disk in the middle of a reencryption"));
        }
        if numbers.iter().any(|number| number == name) {
            slots.push(slot(&object, name, digest.clone(), areas_start..areas_end)?);
        }
    }
    slots.sort_by_key(|slot| slot.number);
    Ok(LuksHeader {
        version: 2,
        uuid: String::new(),
        payload_offset_bytes,
        payload_len_bytes,
        header_end_bytes: areas_end,
        slots,
    })
}

/// The one segment: its name, where it begins, and its length where it does not go to the end.
fn segment<'a>(segments: &Object<'a>) -> Result<(&'a str, u64, Option<u64>), Error> {
    let mut names = segments.map.keys();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(not_ours("a LUKS2 disk of several segments, or of none"));
    };
    let segment = segments.object_of(name, "segment")?;
    if segment.text("type")? != "crypt" {
        return Err(not_ours("a LUKS2 disk whose data is not in the clear under one cipher alone"));
    }
    if segment.map.contains_key("integrity") {
        return Err(not_ours("a LUKS2 disk with integrity tags"));
    }
    if segment.map.get("flags").is_some_and(|flags| flags.as_array().is_none_or(|flags| !flags.is_empty())) {
        return Err(not_ours("a LUKS2 disk in the middle of a reencryption"));
    }
    let cipher = segment.text("encryption")?;
    if cipher != CIPHER {
        return Err(segment.unknown(Kind::Cipher, cipher));
    }
    if segment.number("sector_size")? != SECTOR_LEN {
        return Err(not_ours("a LUKS2 disk with sectors of more than 512 bytes, which count in steps of 512,"));
    }
    if segment.number("iv_tweak")? != 0 {
        return Err(not_ours("a LUKS2 disk whose sectors are not numbered from 0"));
    }
    let whole = |name: &'static str, bytes: u64| match bytes.is_multiple_of(SECTOR_LEN) {
        true => Ok(bytes),
        false => Err(segment.value(name, bytes)),
    };
    let offset_bytes = whole("offset", segment.number("offset")?)?;
    let len_bytes = match segment.text("size")? {
        "dynamic" => None,
        _ => Some(whole("size", segment.number("size")?)?),
    };
    Ok((name, offset_bytes, len_bytes))
}

/// The digest of the key of a segment, and the names of the slots that hold that key.
fn digest<'a>(digests: &Object<'a>, segment: &str) -> Result<(MasterDigest, Vec<&'a str>), Error> {
    for name in digests.map.keys() {
        let digest = digests.object_of(name, "digest")?;
        if !digest.names("segments")?.contains(&segment) {
            continue;
        }
        let kind = digest.text("type")?;
        if kind != "pbkdf2" {
            return Err(digest.unknown(Kind::Kdf, kind));
        }
        let kdf = LuksKdf::Pbkdf2 { hash: digest.hash("hash")?, iterations: digest.count("iterations")? };
        let master = MasterDigest { kdf, salt: digest.bytes("salt")?, digest: digest.bytes("digest")? };
        // A shorter one would let a wrong key pass.
        if master.digest.len() < 20 {
            return Err(digest.value("digest", master.digest.len() as u64));
        }
        return Ok((master, digest.names("keyslots")?));
    }
    Err(Error::Missing { name: "digest of the data's key", part: "metadata" })
}

fn slot(slot: &Object, name: &str, digest: MasterDigest, areas: core::ops::Range<u64>) -> Result<LuksSlot, Error> {
    let number = name.parse().map_err(|_| Error::Syntax {
        what: "the name of a key slot is no number",
        place: Place::Byte(slot.offset as u64),
    })?;
    let kind = slot.text("type")?;
    if kind != "luks2" {
        return Err(slot.unknown(Kind::KeySlot, kind));
    }
    if slot.number("key_size")? != Dek::LEN as u64 {
        return Err(not_ours("a LUKS2 disk under a key of another length than 512 bits"));
    }
    let af = slot.object("af")?;
    if af.text("type")? != "luks1" || af.number("stripes")? != STRIPES as u64 {
        return Err(af.value("stripes", af.number("stripes")?));
    }
    let area = slot.object("area")?;
    let cipher = area.text("encryption")?;
    if area.text("type")? != "raw" || cipher != CIPHER || area.number("key_size")? != Dek::LEN as u64 {
        return Err(area.unknown(Kind::Cipher, cipher));
    }
    let (area_offset_bytes, area_len) = (area.number("offset")?, area.number("size")?);
    let end = area_offset_bytes.checked_add(area_len).filter(|end| *end <= areas.end);
    if area_len < MATERIAL_LEN as u64 || end.is_none() || area_offset_bytes < areas.start {
        return Err(area.value("offset", area_offset_bytes));
    }
    let kdf = slot.object("kdf")?;
    let salt = kdf.bytes("salt")?;
    let argon2 = |is_id| -> Result<LuksKdf, Error> {
        let (memory_kib, passes, lanes) = (kdf.count("memory")?, kdf.count("time")?, kdf.count("cpus")?);
        Ok(LuksKdf::Argon2 { is_id, memory_kib, passes, lanes })
    };
    let kdf = match kdf.text("type")? {
        "argon2id" => argon2(true)?,
        "argon2i" => argon2(false)?,
        "pbkdf2" => LuksKdf::Pbkdf2 { hash: kdf.hash("hash")?, iterations: kdf.count("iterations")? },
        other => return Err(kdf.unknown(Kind::Kdf, other)),
    };
    Ok(LuksSlot { number, kdf, salt, af_hash: af.hash("hash")?, area_offset_bytes, digest })
}

/// The JSON of a header with one slot and data from byte 0 of its own file.
pub(crate) fn write(slot: &LuksSlot, json_len: usize, areas_len: usize) -> String {
    let base64 = Base64::encode_string;
    let kdf = match slot.kdf {
        LuksKdf::Argon2 { is_id, memory_kib, passes, lanes } => format!(
            r#""type":"{}","time":{passes},"memory":{memory_kib},"cpus":{lanes}"#,
            if is_id { "argon2id" } else { "argon2i" }
        ),
        LuksKdf::Pbkdf2 { hash, iterations } => pbkdf2(hash, iterations),
    };
    let digest_kdf = match slot.digest.kdf {
        LuksKdf::Pbkdf2 { hash, iterations } => pbkdf2(hash, iterations),
        LuksKdf::Argon2 { .. } => String::new(),
    };
    let (key_len, number, area_offset, hash) = (Dek::LEN, slot.number, slot.area_offset_bytes, slot.af_hash.name());
    let (salt, digest_salt, digest) = (base64(&slot.salt), base64(&slot.digest.salt), base64(&slot.digest.digest));
    let keyslot = format!(
        r#""{number}":{{"type":"luks2","key_size":{key_len},"af":{{"type":"luks1","stripes":{STRIPES},"hash":"{hash}"}},"area":{{"type":"raw","offset":"{area_offset}","size":"{AREA_LEN}","encryption":"{CIPHER}","key_size":{key_len}}},"kdf":{{{kdf},"salt":"{salt}"}}}}"#
    );
    let segment = format!(
        r#""0":{{"type":"crypt","offset":"0","size":"dynamic","iv_tweak":"0","encryption":"{CIPHER}","sector_size":{SECTOR_LEN}}}"#
    );
    let digest = format!(
        r#""0":{{{digest_kdf},"keyslots":["{number}"],"segments":["0"],"salt":"{digest_salt}","digest":"{digest}"}}"#
    );
    let config = format!(r#""json_size":"{json_len}","keyslots_size":"{areas_len}""#);
    format!(
        r#"{{"keyslots":{{{keyslot}}},"tokens":{{}},"segments":{{{segment}}},"digests":{{{digest}}},"config":{{{config}}}}}"#
    )
}

fn pbkdf2(hash: LuksHash, iterations: u32) -> String {
    format!(r#""type":"pbkdf2","hash":"{}","iterations":{iterations}"#, hash.name())
}

/// An object of the metadata, with where and what it is for messages.
struct Object<'a> {
    map: &'a Map<String, Value>,
    part: &'static str,
    offset: usize,
}

impl<'a> Object<'a> {
    fn object(&self, name: &'static str) -> Result<Object<'a>, Error> {
        self.object_of(name, name)
    }

    fn object_of(&self, name: &str, part: &'static str) -> Result<Object<'a>, Error> {
        let missing = Error::Missing { name: part, part: self.part };
        Ok(Object { map: map(self.map.get(name).ok_or(missing)?, part)?, part, offset: self.offset })
    }

    fn field(&self, name: &'static str) -> Result<&'a Value, Error> {
        self.map.get(name).ok_or(Error::Missing { name, part: self.part })
    }

    fn text(&self, name: &'static str) -> Result<&'a str, Error> {
        self.field(name)?.as_str().ok_or(Error::Missing { name, part: self.part })
    }

    /// A number, or one in text, as 64-bit numbers are written.
    fn number(&self, name: &'static str) -> Result<u64, Error> {
        let number = match self.field(name)? {
            Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            value => value.as_u64(),
        };
        number.ok_or(Error::Missing { name, part: self.part })
    }

    fn count(&self, name: &'static str) -> Result<u32, Error> {
        let number = self.number(name)?;
        u32::try_from(number).map_err(|_| self.value(name, number))
    }

    fn names(&self, name: &'static str) -> Result<Vec<&'a str>, Error> {
        let names = self.field(name)?.as_array().map(|names| names.iter().filter_map(Value::as_str).collect());
        names.ok_or(Error::Missing { name, part: self.part })
    }

    fn hash(&self, name: &'static str) -> Result<LuksHash, Error> {
        let text = self.text(name)?;
        LuksHash::from_name(text).ok_or_else(|| self.unknown(Kind::Hash, text))
    }

    fn bytes(&self, name: &'static str) -> Result<Vec<u8>, Error> {
        let place = Place::Byte(self.offset as u64);
        let bytes = Base64::decode_vec(self.text(name)?).map_err(|_| Error::Base64 { what: name, place })?;
        if bytes.len() > BYTES_MAX {
            return Err(Error::Limit { what: name, found: bytes.len().to_string(), max: BYTES_MAX as u64 });
        }
        Ok(bytes)
    }

    fn value(&self, what: &'static str, found: u64) -> Error {
        Error::Value { what, found: found.to_string(), place: Place::Byte(self.offset as u64) }
    }

    fn unknown(&self, kind: Kind, name: &str) -> Error {
        Error::Unknown { kind, name: name.to_owned(), place: Place::Byte(self.offset as u64) }
    }
}

fn map<'a>(value: &'a Value, part: &'static str) -> Result<&'a Map<String, Value>, Error> {
    value.as_object().ok_or(Error::Missing { name: part, part: "metadata" })
}

/// The byte at a line and column, both from 1, as the parser tells them.
fn byte_of(json: &[u8], line: usize, column: usize) -> usize {
    let before: usize = json.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    (before + column.saturating_sub(1)).min(json.len())
}
