//! LUKS headers of `cryptsetup` and QEMU open here, those written here open there, and what must not be read is refused.
//!
//! Needs `cryptsetup` (Debian: cryptsetup-bin), `qemu-img` and `qemu-io` (qemu-utils).

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

use vmseal_formats::{Error, LuksHash, LuksHeader, LuksKdf, luks};
use vmseal_keys::{Dek, system_rng};

const PASSPHRASE: &[u8] = b"correct horse \xff\0 battery";
const SECTOR: usize = 512;

fn run(program: &str, arguments: &[&str], folder: &Path) -> (bool, String) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("PATH", path)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed (`./test` installs it): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

#[track_caller]
fn ok(program: &str, arguments: &str, folder: &Path) -> String {
    let (ok, text) = run(program, &arguments.split(' ').collect::<Vec<_>>(), folder);
    assert!(ok, "{program} {arguments}: {text}");
    text
}

/// A folder with a passphrase, a master key, and room for data.
fn folder() -> (tempfile::TempDir, Dek) {
    let folder = tempfile::tempdir().unwrap();
    let dek = Dek::generate(&mut system_rng()).unwrap();
    std::fs::write(folder.path().join("pw"), PASSPHRASE).unwrap();
    std::fs::write(folder.path().join("other"), b"wrong").unwrap();
    std::fs::write(folder.path().join("mk"), dek.expose()).unwrap();
    std::fs::File::create(folder.path().join("data")).unwrap().set_len(32 << 20).unwrap();
    (folder, dek)
}

fn open(file: &[u8], slot: usize, passphrase: &[u8]) -> Result<Dek, Error> {
    let header = LuksHeader::parse(&file[..LuksHeader::len_of(&file[..LuksHeader::START_LEN])?])?;
    let area = header.slots()[slot].area_bytes();
    header.slots()[slot].open(&file[area.start as usize..area.end as usize], passphrase)
}

const FORMAT: &str = "luksFormat -q --cipher aes-xts-plain64 --key-size 512 --key-file pw --volume-key-file mk";

#[test]
fn headers_of_cryptsetup_open_with_their_passphrase_alone() {
    let (folder, dek) = folder();
    let folder = folder.path();
    let pbkdf2 = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    for (name, options, kdf) in [
        ("luks1 sha1", "--type luks1 --hash sha1 --pbkdf-force-iterations 1000", "pbkdf2"),
        ("luks1 sha256", "--type luks1 --hash sha256 --pbkdf-force-iterations 1000", "pbkdf2"),
        ("luks1 sha512", "--type luks1 --hash sha512 --pbkdf-force-iterations 1001", "pbkdf2"),
        ("luks2 sha1", &format!("--type luks2 --sector-size 512 --hash sha1 {pbkdf2}"), "pbkdf2"),
        ("luks2 sha512", &format!("--type luks2 --sector-size 512 --hash sha512 {pbkdf2}"), "pbkdf2"),
        (
            "luks2 argon2id",
            "--type luks2 --sector-size 512 --pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 1024 --pbkdf-parallel 3",
            "argon2",
        ),
        (
            "luks2 argon2i",
            "--type luks2 --sector-size 512 --pbkdf argon2i --pbkdf-force-iterations 5 --pbkdf-memory 64",
            "argon2",
        ),
    ] {
        for (file, where_) in [("data", "data"), ("header", "--header header data")] {
            ok("cryptsetup", &format!("{FORMAT} {options} {where_}"), folder);
            let bytes = std::fs::read(folder.join(file)).unwrap();
            let header = LuksHeader::parse(&bytes).unwrap();
            assert_eq!(header.slots().len(), 1, "{name}");
            assert_eq!(matches!(header.slots()[0].kdf(), LuksKdf::Argon2 { .. }), kdf == "argon2", "{name}");
            assert_eq!(header.payload_offset_bytes() == 0, file == "header", "{name}");
            let uuid = ok("cryptsetup", &format!("luksUUID {file}"), folder);
            assert_eq!(header.uuid(), uuid.trim(), "{name}");
            assert!(open(&bytes, 0, PASSPHRASE).unwrap() == dek, "{name}");
            assert!(matches!(open(&bytes, 0, b"wrong").unwrap_err(), Error::WrongKey { .. }), "{name}");
            std::fs::remove_file(folder.join("header")).ok();
        }
    }
}

#[test]
fn every_slot_of_cryptsetup_opens_with_its_own_passphrase() {
    let (folder, dek) = folder();
    let folder = folder.path();
    for kind in ["luks1", "luks2 --sector-size 512 --pbkdf pbkdf2"] {
        ok("cryptsetup", &format!("{FORMAT} --type {kind} --pbkdf-force-iterations 1000 data"), folder);
        let add = "--key-slot 6 --key-file pw --pbkdf-force-iterations 1000 data other";
        let pbkdf = if kind == "luks1" { "" } else { "--pbkdf pbkdf2 " };
        ok("cryptsetup", &format!("luksAddKey -q {pbkdf}{add}"), folder);
        let bytes = std::fs::read(folder.join("data")).unwrap();
        assert_eq!(LuksHeader::parse(&bytes).unwrap().slots()[1].number(), 6);
        assert!(open(&bytes, 1, b"wrong").unwrap() == dek);
        assert!(open(&bytes, 0, b"wrong").is_err());
    }
}

#[test]
fn the_second_copy_of_a_luks2_header_stands_in_for_a_damaged_first() {
    let (folder, dek) = folder();
    let folder = folder.path();
    let options = "--type luks2 --sector-size 512 --pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    ok("cryptsetup", &format!("{FORMAT} {options} data"), folder);
    let mut bytes = std::fs::read(folder.join("data")).unwrap();
    bytes[5000] ^= 1;
    assert!(open(&bytes, 0, PASSPHRASE).unwrap() == dek);
    bytes[(16 << 10) + 5000] ^= 1;
    let error = open(&bytes, 0, PASSPHRASE).unwrap_err();
    assert!(error.to_string().starts_with("byte 448: the checksum"), "{error}");
}

#[test]
fn a_header_of_qemu_opens() {
    let (folder, _) = folder();
    let folder = folder.path();
    // QEMU takes UTF-8 alone.
    let text = "Z\u{fc}rich";
    std::fs::write(folder.join("text"), text).unwrap();
    let secret = "--object secret,id=s,file=text";
    ok("qemu-img", &format!("create -q -f luks {secret} -o key-secret=s,iter-time=10 disk.luks 1M"), folder);
    let bytes = std::fs::read(folder.join("disk.luks")).unwrap();
    let dek = open(&bytes, 0, text.as_bytes()).unwrap();
    let plain: Vec<u8> = (0..1 << 20).map(|index: u32| (index / 512 * 7 + index % 251) as u8).collect();
    std::fs::write(folder.join("plain"), &plain).unwrap();
    let target = "driver=luks,file.filename=disk.luks,key-secret=s";
    ok("qemu-img", &format!("convert -n -f raw {secret} --target-image-opts plain {target}"), folder);
    let mut data = std::fs::read(folder.join("disk.luks")).unwrap();
    let offset = LuksHeader::parse(&data).unwrap().payload_offset_bytes() as usize;
    let xts = vmseal_xts::XtsAes256::new(dek.expose()).unwrap();
    xts.decrypt_units(&mut data[offset..], SECTOR, 0).unwrap();
    assert!(data[offset..] == plain);
}

#[test]
fn headers_written_here_open_in_cryptsetup_and_qemu() {
    let (folder, dek) = folder();
    let folder = folder.path();
    let argon2 = LuksKdf::Argon2 { is_id: true, memory_kib: 2048, passes: 4, lanes: 2 };
    let pbkdf2 = LuksKdf::Pbkdf2 { hash: LuksHash::Sha256, iterations: 1000 };
    let rng = &mut system_rng();
    for (name, bytes) in [
        ("luks1", luks::write_luks1(&dek, PASSPHRASE, 1000, rng).unwrap()),
        ("luks2", luks::write_luks2(&dek, PASSPHRASE, argon2, rng).unwrap()),
        ("luks2-pbkdf2", luks::write_luks2(&dek, PASSPHRASE, pbkdf2, rng).unwrap()),
    ] {
        assert!(open(&bytes, 0, PASSPHRASE).unwrap() == dek, "{name}");
        std::fs::write(folder.join("header"), bytes.as_slice()).unwrap();
        let dump = ok("cryptsetup", "luksDump header", folder);
        assert!(dump.contains("aes") && dump.contains("xts-plain64"), "{dump}");
        ok("cryptsetup", "open --test-passphrase --key-file pw --header header data", folder);
        assert!(
            !run(
                "cryptsetup",
                &["open", "--test-passphrase", "--key-file", "other", "--header", "header", "data"],
                folder
            )
            .0
        );
        let dumped = "luksDump -q --dump-volume-key --key-file pw --volume-key-file out header";
        ok("cryptsetup", dumped, folder);
        assert_eq!(std::fs::read(folder.join("out")).unwrap(), dek.expose(), "{name}");
        std::fs::remove_file(folder.join("out")).unwrap();
        // Further passphrases have room.
        let pbkdf = if name == "luks1" { "" } else { "--pbkdf pbkdf2 " };
        let add = format!("luksAddKey -q {pbkdf}--pbkdf-force-iterations 1000 --key-slot 7 --key-file pw header other");
        ok("cryptsetup", &add, folder);
        assert!(open(&std::fs::read(folder.join("header")).unwrap(), 1, b"wrong").unwrap() == dek, "{name}");
    }
}

#[test]
fn the_same_random_bytes_make_the_same_header() {
    let (_, dek) = folder();
    let header = || luks::write_luks1(&dek, PASSPHRASE, 1000, &mut Counter(0)).unwrap();
    assert_eq!(header(), header());
    let kdf = LuksKdf::Pbkdf2 { hash: LuksHash::Sha512, iterations: 1 };
    let header = || luks::write_luks2(&dek, PASSPHRASE, kdf, &mut Counter(0)).unwrap();
    assert_eq!(header(), header());
}

/// A generator for tests: a counter.
struct Counter(u64);

impl rand_core::TryRng for Counter {
    type Error = core::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        self.try_next_u64().map(|word| word as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        self.0 += 1;
        Ok(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        for byte in bytes {
            *byte = self.try_next_u64()? as u8;
        }
        Ok(())
    }
}

impl rand_core::TryCryptoRng for Counter {}

#[test]
fn what_is_enciphered_otherwise_is_refused_with_its_reason() {
    let (folder, _) = folder();
    let folder = folder.path();
    let luks1 = "--type luks1 --pbkdf-force-iterations 1000";
    let luks2 = "--type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    let format = |options: &str| format!("luksFormat -q --key-file pw {options} data");
    for (options, reason) in [
        (format!("{luks1} --cipher aes-cbc-essiv:sha256 --key-size 256"), "\"aes-cbc-essiv:sha256\" is not known"),
        (format!("{luks1} --cipher aes-xts-plain64 --key-size 256"), "another length than 512 bits"),
        (format!("{luks1} --cipher aes-xts-plain64 --key-size 512 --hash ripemd160"), "\"ripemd160\" is not known"),
        (format!("{luks2} --cipher serpent-xts-plain64 --key-size 512 --sector-size 512"), "\"serpent-xts-plain64\""),
        (format!("{luks2} --cipher aes-xts-plain64 --key-size 256 --sector-size 512"), "another length than 512 bits"),
        (format!("{luks2} --cipher aes-xts-plain64 --key-size 512 --sector-size 4096"), "in steps of 512"),
    ] {
        // Without a kernel that has the cipher, cryptsetup cannot make it; the others are made everywhere.
        let (made, text) = run("cryptsetup", &format(&options).split(' ').collect::<Vec<_>>(), folder);
        if !made {
            assert!(options.contains("serpent") || options.contains("ripemd"), "{options}: {text}");
            continue;
        }
        let error = LuksHeader::parse(&std::fs::read(folder.join("data")).unwrap()).unwrap_err().to_string();
        assert!(error.contains(reason), "{options}: {error}");
    }
}

#[test]
fn damage_and_greed_are_refused_before_any_work() {
    let dek = Dek::generate(&mut system_rng()).unwrap();
    let good = luks::write_luks1(&dek, b"p", 1000, &mut system_rng()).unwrap();
    for (offset, bytes, place) in [
        (0, b"SKUL".as_slice(), "byte 0:"),
        (6, &[0, 3], "version 3"),
        (40, b"\xff", "byte 40:"),
        (8, b"des", "byte 8:"),
        (72, b"md5\0", "byte 72:"),
        (208, &[0, 0, 0, 1], "byte 208:"),
        (248, &[0, 0, 0, 0], "byte 248:"),
        (252, &[0, 0, 0x0f, 0xa1], "byte 252:"),
        (104, &[0, 0, 1, 0], "byte 248:"),
    ] {
        let mut bad = good.to_vec();
        bad[offset..offset + bytes.len()].copy_from_slice(bytes);
        let error = LuksHeader::parse(&bad).unwrap_err().to_string();
        assert!(error.contains(place), "{offset}: {error}");
    }
    assert!(matches!(LuksHeader::parse(&good[..591]), Err(Error::Truncated { .. })));
    assert!(matches!(LuksHeader::len_of(&good[..7]), Err(Error::Truncated { .. })));
    for offset in [164, 212] {
        let mut greedy = good.to_vec();
        greedy[offset..offset + 4].fill(0xff);
        assert!(matches!(open(&greedy, 0, b"p").unwrap_err(), Error::Limit { .. }), "{offset}");
    }
    let header = LuksHeader::parse(&good).unwrap();
    assert!(matches!(header.slots()[0].open(&good[..1000], b"p"), Err(Error::Length { .. })));
}

#[test]
fn metadata_of_luks2_that_contradicts_itself_is_refused() {
    let dek = Dek::generate(&mut system_rng()).unwrap();
    let kdf = LuksKdf::Argon2 { is_id: true, memory_kib: 64, passes: 4, lanes: 1 };
    let good = luks::write_luks2(&dek, b"p", kdf, &mut system_rng()).unwrap();
    let json_end = 4096 + good[4096..].iter().position(|byte| *byte == 0).unwrap();
    let json = std::str::from_utf8(&good[4096..json_end]).unwrap();
    // The checksums are made anew, so that what is tested is the metadata.
    let with = |json: &str| {
        use sha2::Digest;
        let mut file = good.to_vec();
        for start in [0, 16 << 10] {
            let copy = &mut file[start..start + (16 << 10)];
            copy[4096..].fill(0);
            copy[4096..4096 + json.len()].copy_from_slice(json.as_bytes());
            copy[448..512].fill(0);
            let digest = sha2::Sha256::digest(&*copy);
            copy[448..480].copy_from_slice(&digest);
        }
        file
    };
    assert!(open(&with(json), 0, b"p").unwrap() == dek);
    for (from, to, message) in [
        ("\"memory\":64", "\"memory\":4294967295", "memory of Argon2 in KiB: 4294967295"),
        ("\"time\":4", "\"time\":4294967295", "memory times passes"),
        ("\"time\":4", "\"time\":42949672950", "time cannot be"),
        ("\"cpus\":1", "\"cpus\":0", "lanes of Argon2"),
        ("\"stripes\":4000", "\"stripes\":1", "stripes cannot be"),
        ("\"offset\":\"32768\"", "\"offset\":\"0\"", "offset cannot be"),
        ("\"offset\":\"32768\"", "\"offset\":\"18446744073709551615\"", "offset cannot be"),
        ("\"json_size\":\"12288\"", "\"json_size\":\"1\"", "json_size cannot be"),
        ("\"keyslots_size\":\"2064384\"", "\"keyslots_size\":\"18446744073709551615\"", "keyslots_size cannot be"),
        ("\"size\":\"dynamic\"", "\"size\":\"513\"", "size cannot be"),
        ("\"iv_tweak\":\"0\"", "\"iv_tweak\":\"8\"", "not numbered from 0"),
        ("\"type\":\"crypt\"", "\"type\":\"linear\"", "under one cipher alone"),
        ("\"type\":\"crypt\"", "\"type\":\"crypt\",\"integrity\":{}", "integrity tags"),
        ("\"type\":\"crypt\"", "\"type\":\"crypt\",\"flags\":[\"in-reencryption\"]", "reencryption"),
        ("\"type\":\"luks2\"", "\"type\":\"reencrypt\"", "reencryption"),
        ("\"json_size\"", "\"requirements\":{\"mandatory\":[\"online-reencrypt\"]},\"json_size\"", "reencryption"),
        ("\"segments\":[\"0\"]", "\"segments\":[]", "no digest of the data's key"),
        ("\"segments\":{\"0\"", "\"segments\":{\"1\":{},\"0\"", "several segments"),
        ("\"type\":\"argon2id\"", "\"type\":\"scrypt\"", "\"scrypt\" is not known"),
        ("\"tokens\":{}", "\"tokens\":{", "no whole JSON"),
    ] {
        assert!(json.contains(from), "{from}");
        let error = open(&with(&json.replacen(from, to, 1)), 0, b"p").unwrap_err().to_string();
        assert!(error.contains(message), "{to}: {error}");
    }
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    assert!(open(&with(&json.replacen("{}", &deep, 1)), 0, b"p").unwrap_err().to_string().contains("no whole JSON"));
}
