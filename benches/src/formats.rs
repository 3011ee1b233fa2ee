//! Measures of the formats: VMX text, keys from phrases, and envelopes, each against others in turns.

use std::fmt::Write;
use std::hint::black_box;

use aes_gcm::KeyInit;
use aes_gcm::aead::AeadInOut;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::hash::MessageDigest;
use rustix::time::{ClockId, clock_gettime};
use vmseal_formats::Dictionary;
use vmseal_formats::envelope::{self, Header, Opener};
use vmseal_keys::kdf::{PassKdf, ROUNDS_MAX, derive};
use vmseal_keys::{FileKey, system_rng};

/// A VMX of 4 KiB, as a VM of Workstation has it.
pub fn vmx() -> String {
    let mut text = String::from(".encoding = \"UTF-8\"\nconfig.version = \"8\"\nvirtualHW.version = \"21\"\n");
    let mut index = 0;
    while text.len() < 4000 {
        let _ = write!(
            text,
            "pciBridge{index}.present = \"TRUE\"\npciBridge{index}.virtualDev = \"pcieRootPort\"\nscsi0:{index}.fileName = \"web01_{index}.vmdk\"\n"
        );
        index += 1;
    }
    let fill = 4096 - text.len() - "annotation = \"\"\n".len();
    let _ = writeln!(text, "annotation = \"{}\"", "x".repeat(fill));
    text
}

/// The same text in lines, and each at its `=`: what any parser does at the least.
pub fn split(text: &str) -> Vec<(&str, &str)> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

/// Derives 32 bytes as a key safe's phrase is.
pub fn pbkdf2(kdf: PassKdf, rounds: u32) -> Vec<u8> {
    derive(kdf, black_box(b"correct horse"), &[7; 16], rounds, ROUNDS_MAX, 32).unwrap().to_vec()
}

/// The same by OpenSSL.
pub fn pbkdf2_openssl(kdf: PassKdf, rounds: u32) -> Vec<u8> {
    let hash = if kdf == PassKdf::Pbkdf2HmacSha1 { MessageDigest::sha1() } else { MessageDigest::sha256() };
    let mut key = vec![0; 32];
    openssl::pkcs5::pbkdf2_hmac(black_box(b"correct horse"), &[7; 16], rounds as usize, hash, &mut key).unwrap();
    key
}

const KEY: [u8; 32] = [0x42; 32];
const IV: [u8; 12] = [0x17; 12];
/// As `vmseal envelope extract` reads.
const PIECE_LEN: usize = 256 << 10;

/// An envelope in memory, and the same bytes as each peer takes them.
pub struct Envelope {
    key: FileKey,
    sealed: Vec<u8>,
    header: Header,
    piece: Vec<u8>,
}

impl Envelope {
    pub fn of(len: usize) -> Self {
        let key = FileKey::from_bytes(&KEY).unwrap();
        let sealed = envelope::seal(&key, "bench", b"", &vec![1; len], &mut system_rng()).unwrap();
        let header = envelope::describe(&sealed).unwrap();
        Self { key, sealed, header, piece: vec![0; PIECE_LEN] }
    }

    /// Extracts it in pieces, and verifies its tag.
    pub fn extract(&mut self) -> u64 {
        let mut opener = Opener::new(&self.key, b"", &self.header).unwrap();
        for piece in self.sealed[self.header.raw().len()..].chunks(PIECE_LEN) {
            opener.update(black_box(piece), &mut self.piece).unwrap();
            black_box(&self.piece);
        }
        opener.finish().unwrap()
    }
}

/// AES-256-GCM of a whole message in one call and in place.
pub enum Whole {
    AwsLc(LessSafeKey),
    OpenSsl(CipherCtx),
    RustCrypto(Box<aes_gcm::Aes256Gcm>),
}

impl Whole {
    pub fn all() -> [Self; 3] {
        [
            Self::AwsLc(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).unwrap())),
            Self::OpenSsl(CipherCtx::new().unwrap()),
            Self::RustCrypto(Box::new(aes_gcm::Aes256Gcm::new(&KEY.into()))),
        ]
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::AwsLc(_) => "AWS-LC",
            Self::OpenSsl(_) => "OpenSSL",
            Self::RustCrypto(_) => "RustCrypto",
        }
    }

    pub fn seal(&self, data: &mut [u8]) -> [u8; 16] {
        aes_gcm::Aes256Gcm::new(&KEY.into()).encrypt_inout_detached(&IV.into(), b"", data.into()).unwrap().into()
    }

    /// Decrypts, and verifies the tag.
    pub fn open(&mut self, data: &mut [u8], tag: &[u8; 16]) {
        match self {
            Self::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(IV);
                key.open_in_place_separate_tag(nonce, Aad::empty(), tag, data).unwrap();
            }
            Self::OpenSsl(context) => {
                context.decrypt_init(Some(Cipher::aes_256_gcm()), Some(&KEY), Some(&IV)).unwrap();
                let len = data.len();
                context.cipher_update_inplace(data, len).unwrap();
                context.set_tag(tag).unwrap();
                context.cipher_final(&mut []).unwrap();
            }
            Self::RustCrypto(gcm) => {
                gcm.decrypt_inout_detached(&IV.into(), b"", data.into(), tag.into()).unwrap();
            }
        }
    }
}

/// The lengths of the messages: one for the cache, one for memory.
pub const LENS: [usize; 2] = [1 << 20, 64 << 20];

/// Nanoseconds that `work` takes on the processor, over `passes`: what others run in between does not count.
fn time(passes: usize, mut work: impl FnMut()) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let start = now();
    (0..passes).for_each(|_| work());
    (now() - start) / passes as f64
}

/// The median of the five shortest: whatever else runs on the machine only ever makes one longer.
fn typical(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len().min(5) / 2]
}

/// Takes turns, a sample each.
fn in_turns<const N: usize>(rounds: usize, mut sample: impl FnMut(usize) -> f64) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (index, times) in times.iter_mut().enumerate() {
            times.push(sample(index));
        }
    }
    times.map(typical)
}

struct Goal {
    name: String,
    wanted: f64,
    found: f64,
    at_most: bool,
}

/// The goals and their figures, as Markdown.
pub fn tables() -> String {
    let mut goals = Vec::new();
    let mut text = String::new();
    vmx_figures(&mut goals, &mut text);
    pbkdf2_figures(&mut goals, &mut text);
    envelope_figures(&mut goals, &mut text);
    let mut page = String::from("| goal | wanted | found | |\n|---|---|---|---|\n");
    for Goal { name, wanted, found, at_most } in goals {
        let is_reached = if at_most { found <= wanted } else { found >= wanted };
        let (how, mark) = (if at_most { "at most " } else { "" }, if is_reached { "reached" } else { "not reached" });
        let _ = writeln!(page, "| {name} | {how}{wanted:.2} x | {found:.2} x | {mark} |");
    }
    page + &text
}

fn vmx_figures(goals: &mut Vec<Goal>, text: &mut String) {
    let vmx = vmx();
    let [parsed, lines] = in_turns(25, |index| match index {
        0 => time(500, || drop(black_box(Dictionary::parse(black_box(vmx.as_bytes()))))),
        _ => time(500, || drop(black_box(split(black_box(&vmx))))),
    });
    let name = "VMX of 4 KiB: parsed, against split into lines and at `=`".into();
    goals.push(Goal { name, wanted: 10.0, found: parsed / lines, at_most: true });
    let _ = write!(
        text,
        "\n| VMX of {} bytes, {} lines | microseconds |\n|---|---|\n| `Dictionary::parse` | {:.2} |\n| lines, and each split at `=` | {:.2} |\n",
        vmx.len(),
        vmx.lines().count(),
        parsed / 1e3,
        lines / 1e3
    );
}

fn pbkdf2_figures(goals: &mut Vec<Goal>, text: &mut String) {
    const ROUNDS: u32 = 10_000;
    text.push_str("\n| key of 32 bytes from a phrase, 10 000 rounds | vmseal ms | OpenSSL ms |\n|---|---|---|\n");
    for kdf in [PassKdf::Pbkdf2HmacSha1, PassKdf::Pbkdf2HmacSha256] {
        let [ours, openssl] = in_turns(25, |index| match index {
            0 => time(1, || drop(black_box(pbkdf2(kdf, ROUNDS)))),
            _ => time(1, || drop(black_box(pbkdf2_openssl(kdf, ROUNDS)))),
        });
        goals.push(Goal {
            name: format!("{}: OpenSSL", kdf.name()),
            wanted: 1.0,
            found: openssl / ours,
            at_most: false,
        });
        let _ = writeln!(text, "| {} | {:.2} | {:.2} |", kdf.name(), ours / 1e6, openssl / 1e6);
    }
}

fn envelope_figures(goals: &mut Vec<Goal>, text: &mut String) {
    text.push_str("\n| decrypted and verified, GB/s | envelope, in pieces | AWS-LC | OpenSSL | RustCrypto |\n|---|---|---|---|---|\n");
    for len in LENS {
        let mut envelope = Envelope::of(len);
        let mut peers = Whole::all();
        let mut sealed = vec![1; len];
        let tag = peers[0].seal(&mut sealed);
        let mut data = sealed.clone();
        let passes = (16 << 20) / len.min(16 << 20);
        let [ours, rest @ ..]: [f64; 4] = in_turns(25, |index| {
            if index == 0 {
                return time(passes, || assert_eq!(envelope.extract(), len as u64));
            }
            // Decrypted in place: laid out anew before each pass, which is not counted.
            let times = (0..passes).map(|_| {
                data.copy_from_slice(&sealed);
                time(1, || peers[index - 1].open(black_box(&mut data), &tag))
            });
            times.sum::<f64>() / passes as f64
        });
        let best = rest.into_iter().fold(f64::INFINITY, f64::min);
        let size = len >> 20;
        let name = format!("envelope of {size} MiB extracted in pieces: best AES-256-GCM in one call");
        goals.push(Goal { name, wanted: 0.8, found: best / ours, at_most: false });
        let speeds =
            [ours].into_iter().chain(rest).map(|time| format!(" {:.2} |", len as f64 / time)).collect::<String>();
        let _ = writeln!(text, "| {size} MiB |{speeds}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_contestants_do_the_same_work() {
        let text = vmx();
        assert_eq!(text.len(), 4096);
        let parsed = Dictionary::parse(text.as_bytes());
        for (name, value) in split(&text) {
            assert_eq!(parsed.text(name.trim()).unwrap().unwrap(), value.trim().trim_matches('"'));
        }
        for kdf in [PassKdf::Pbkdf2HmacSha1, PassKdf::Pbkdf2HmacSha256] {
            assert_eq!(pbkdf2(kdf, 100), pbkdf2_openssl(kdf, 100));
        }
        assert_eq!(Envelope::of(1_000_000).extract(), 1_000_000);
        let mut sealed = vec![1; 100_000];
        let tag = Whole::all()[0].seal(&mut sealed);
        for mut peer in Whole::all() {
            let mut data = sealed.clone();
            peer.open(&mut data, &tag);
            assert!(data.iter().all(|byte| *byte == 1), "{}", peer.name());
        }
    }
}
