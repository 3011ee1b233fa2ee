//! XTS-AES-256 as each peer offers it, a data unit at a time where it knows no more. A key is set up once; every unit pays for its
//! own tweak, as a disk does.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr;

use aes::cipher::KeyInit;
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use vmseal_xts::{Kernel, XtsAes256};
use xts_mode::{Xts128, get_tweak_default};

/// XTS-AES-256 over a run of data units in place.
pub trait Peer {
    fn encrypt(&mut self, data: &mut [u8], unit_size: usize);
    fn decrypt(&mut self, data: &mut [u8], unit_size: usize);

    /// Decrypts, and encrypts under the key of `to`: unit by unit, the best that can be done from outside.
    fn transcrypt(&mut self, to: &mut Self, data: &mut [u8], unit_size: usize)
    where
        Self: Sized,
    {
        for block in data.chunks_mut(unit_size.max(16 << 10)) {
            self.decrypt(block, unit_size);
            to.encrypt(block, unit_size);
        }
    }
}

pub struct Vmseal(pub XtsAes256);

impl Vmseal {
    pub fn new(key: &[u8; 64]) -> Self {
        Self(XtsAes256::new(key).unwrap())
    }

    /// Forced to a kernel, where the CPU runs it.
    pub fn on(kernel: Kernel, key: &[u8; 64]) -> Option<Self> {
        XtsAes256::with_kernel(kernel, key).map(|xts| Self(xts.unwrap()))
    }
}

impl Peer for Vmseal {
    fn encrypt(&mut self, data: &mut [u8], unit_size: usize) {
        self.0.encrypt_units(data, unit_size, 0).unwrap();
    }

    fn decrypt(&mut self, data: &mut [u8], unit_size: usize) {
        self.0.decrypt_units(data, unit_size, 0).unwrap();
    }

    fn transcrypt(&mut self, to: &mut Self, data: &mut [u8], unit_size: usize) {
        self.0.transcrypt_units(&to.0, data, unit_size, 0).unwrap();
    }
}

/// `vmseal-xts` called once for each unit.
pub struct OneUnitACall(pub Vmseal);

impl Peer for OneUnitACall {
    fn encrypt(&mut self, data: &mut [u8], unit_size: usize) {
        for (index, unit) in data.chunks_mut(unit_size).enumerate() {
            self.0.0.encrypt_units(unit, unit_size, index as u128).unwrap();
        }
    }

    fn decrypt(&mut self, data: &mut [u8], unit_size: usize) {
        for (index, unit) in data.chunks_mut(unit_size).enumerate() {
            self.0.0.decrypt_units(unit, unit_size, index as u128).unwrap();
        }
    }
}

/// OpenSSL's EVP, the IV set anew for each unit.
pub struct OpenSsl {
    encrypt: CipherCtx,
    decrypt: CipherCtx,
}

impl OpenSsl {
    pub fn new(key: &[u8; 64]) -> Self {
        let (mut encrypt, mut decrypt) = (CipherCtx::new().unwrap(), CipherCtx::new().unwrap());
        encrypt.encrypt_init(Some(Cipher::aes_256_xts()), Some(key), Some(&[0; 16])).unwrap();
        decrypt.decrypt_init(Some(Cipher::aes_256_xts()), Some(key), Some(&[0; 16])).unwrap();
        Self { encrypt, decrypt }
    }

    pub fn version() -> &'static str {
        openssl::version::version()
    }
}

impl Peer for OpenSsl {
    fn encrypt(&mut self, data: &mut [u8], unit_size: usize) {
        for (index, unit) in data.chunks_mut(unit_size).enumerate() {
            self.encrypt.encrypt_init(None, None, Some(&(index as u128).to_le_bytes())).unwrap();
            self.encrypt.cipher_update_inplace(unit, unit_size).unwrap();
        }
    }

    fn decrypt(&mut self, data: &mut [u8], unit_size: usize) {
        for (index, unit) in data.chunks_mut(unit_size).enumerate() {
            self.decrypt.decrypt_init(None, None, Some(&(index as u128).to_le_bytes())).unwrap();
            self.decrypt.cipher_update_inplace(unit, unit_size).unwrap();
        }
    }
}

/// AWS-LC's EVP, the IV set anew for each unit.
pub struct AwsLc {
    encrypt: *mut aws_lc_sys::EVP_CIPHER_CTX,
    decrypt: *mut aws_lc_sys::EVP_CIPHER_CTX,
}

// SAFETY: a context belongs to no thread; one thread at a time uses it.
unsafe impl Send for AwsLc {}

impl AwsLc {
    pub fn new(key: &[u8; 64]) -> Self {
        // SAFETY: the contexts are made, checked and given a key of the cipher's length.
        unsafe {
            let (encrypt, decrypt) = (aws_lc_sys::EVP_CIPHER_CTX_new(), aws_lc_sys::EVP_CIPHER_CTX_new());
            assert!(!encrypt.is_null() && !decrypt.is_null());
            let cipher = aws_lc_sys::EVP_aes_256_xts();
            let iv = [0u8; 16];
            let none = ptr::null_mut();
            assert_eq!(aws_lc_sys::EVP_EncryptInit_ex(encrypt, cipher, none, key.as_ptr(), iv.as_ptr()), 1);
            assert_eq!(aws_lc_sys::EVP_DecryptInit_ex(decrypt, cipher, none, key.as_ptr(), iv.as_ptr()), 1);
            Self { encrypt, decrypt }
        }
    }
}

impl Peer for AwsLc {
    fn encrypt(&mut self, data: &mut [u8], unit_size: usize) {
        for (index, unit) in data.chunks_mut(unit_size).enumerate() {
            let iv = (index as u128).to_le_bytes();
            let (mut len, at) = (0, unit.as_mut_ptr());
            // SAFETY: the context has its key; input and output are `unit`, in place.
            let ok = unsafe {
                aws_lc_sys::EVP_EncryptInit_ex(self.encrypt, ptr::null(), ptr::null_mut(), ptr::null(), iv.as_ptr())
                    & aws_lc_sys::EVP_EncryptUpdate(self.encrypt, at, &mut len, at, unit_size as c_int)
            };
            assert!(ok == 1 && len as usize == unit_size);
        }
    }

    fn decrypt(&mut self, data: &mut [u8], unit_size: usize) {
        for (index, unit) in data.chunks_mut(unit_size).enumerate() {
            let iv = (index as u128).to_le_bytes();
            let (mut len, at) = (0, unit.as_mut_ptr());
            // SAFETY: as in `encrypt`.
            let ok = unsafe {
                aws_lc_sys::EVP_DecryptInit_ex(self.decrypt, ptr::null(), ptr::null_mut(), ptr::null(), iv.as_ptr())
                    & aws_lc_sys::EVP_DecryptUpdate(self.decrypt, at, &mut len, at, unit_size as c_int)
            };
            assert!(ok == 1 && len as usize == unit_size);
        }
    }
}

impl Drop for AwsLc {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe {
            aws_lc_sys::EVP_CIPHER_CTX_free(self.encrypt);
            aws_lc_sys::EVP_CIPHER_CTX_free(self.decrypt);
        }
    }
}

unsafe extern "C" {
    fn gcry_check_version(required: *const c_char) -> *const c_char;
    fn gcry_control(command: c_int, ...) -> c_uint;
    fn gcry_cipher_open(handle: *mut *mut c_void, algorithm: c_int, mode: c_int, flags: c_uint) -> c_uint;
    fn gcry_cipher_close(handle: *mut c_void);
    fn gcry_cipher_setkey(handle: *mut c_void, key: *const c_void, len: usize) -> c_uint;
    fn gcry_cipher_setiv(handle: *mut c_void, iv: *const c_void, len: usize) -> c_uint;
    fn gcry_cipher_encrypt(
        handle: *mut c_void,
        to: *mut c_void,
        to_len: usize,
        from: *const c_void,
        len: usize,
    ) -> c_uint;
    fn gcry_cipher_decrypt(
        handle: *mut c_void,
        to: *mut c_void,
        to_len: usize,
        from: *const c_void,
        len: usize,
    ) -> c_uint;
}

// gcrypt.h
const GCRYCTL_INITIALIZATION_FINISHED: c_int = 38;
const GCRY_CIPHER_AES256: c_int = 9;
const GCRY_CIPHER_MODE_XTS: c_int = 13;

/// libgcrypt, the IV set anew for each unit.
pub struct Gcrypt(*mut c_void);

// SAFETY: a handle belongs to no thread; one thread at a time uses it.
unsafe impl Send for Gcrypt {}

impl Gcrypt {
    pub fn new(key: &[u8; 64]) -> Self {
        let mut handle = ptr::null_mut();
        // SAFETY: the library is initialised as its manual says; the handle is checked, the key is of the length of the mode.
        unsafe {
            gcry_check_version(ptr::null());
            gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0 as c_int);
            assert_eq!(gcry_cipher_open(&mut handle, GCRY_CIPHER_AES256, GCRY_CIPHER_MODE_XTS, 0), 0);
            assert_eq!(gcry_cipher_setkey(handle, key.as_ptr().cast(), key.len()), 0);
        }
        Self(handle)
    }

    pub fn version() -> String {
        // SAFETY: the library returns a constant text.
        unsafe { std::ffi::CStr::from_ptr(gcry_check_version(ptr::null())) }.to_string_lossy().into_owned()
    }
}

impl Peer for Gcrypt {
    fn encrypt(&mut self, data: &mut [u8], unit_size: usize) {
        for (index, unit) in data.chunks_mut(unit_size).enumerate() {
            let iv = (index as u128).to_le_bytes();
            // SAFETY: without input the output is enciphered in place.
            let failed = unsafe {
                gcry_cipher_setiv(self.0, iv.as_ptr().cast(), iv.len())
                    | gcry_cipher_encrypt(self.0, unit.as_mut_ptr().cast(), unit.len(), ptr::null(), 0)
            };
            assert_eq!(failed, 0);
        }
    }

    fn decrypt(&mut self, data: &mut [u8], unit_size: usize) {
        for (index, unit) in data.chunks_mut(unit_size).enumerate() {
            let iv = (index as u128).to_le_bytes();
            // SAFETY: as in `encrypt`.
            let failed = unsafe {
                gcry_cipher_setiv(self.0, iv.as_ptr().cast(), iv.len())
                    | gcry_cipher_decrypt(self.0, unit.as_mut_ptr().cast(), unit.len(), ptr::null(), 0)
            };
            assert_eq!(failed, 0);
        }
    }
}

impl Drop for Gcrypt {
    fn drop(&mut self) {
        // SAFETY: made by `new`, closed once.
        unsafe { gcry_cipher_close(self.0) }
    }
}

pub struct XtsMode(Xts128<aes::Aes256>);

impl XtsMode {
    pub fn new(key: &[u8; 64]) -> Self {
        let aes = |key: &[u8]| aes::Aes256::new_from_slice(key).unwrap();
        Self(Xts128::new(aes(&key[..32]), aes(&key[32..])))
    }
}

impl Peer for XtsMode {
    fn encrypt(&mut self, data: &mut [u8], unit_size: usize) {
        self.0.encrypt_area(data, unit_size, 0, get_tweak_default);
    }

    fn decrypt(&mut self, data: &mut [u8], unit_size: usize) {
        self.0.decrypt_area(data, unit_size, 0, get_tweak_default);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mut peer: impl Peer, key: &[u8; 64]) {
        let plain: Vec<u8> = (0..64 << 10).map(|index| (index * 7 + index / 256) as u8).collect();
        for unit_size in [512, 4096] {
            let (mut wanted, mut found) = (plain.clone(), plain.clone());
            Vmseal::new(key).encrypt(&mut wanted, unit_size);
            peer.encrypt(&mut found, unit_size);
            assert!(found == wanted);
            peer.decrypt(&mut found, unit_size);
            assert!(found == plain);
        }
    }

    #[test]
    fn all_make_the_same_of_it() {
        let key = std::array::from_fn(|index| index as u8);
        for kernel in Kernel::ALL {
            if let Some(vmseal) = Vmseal::on(kernel, &key) {
                check(vmseal, &key);
            }
        }
        check(OneUnitACall(Vmseal::new(&key)), &key);
        check(OpenSsl::new(&key), &key);
        check(AwsLc::new(&key), &key);
        check(Gcrypt::new(&key), &key);
        check(XtsMode::new(&key), &key);
    }
}
