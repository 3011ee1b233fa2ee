//! Links libgcrypt, the one peer without a crate of its own.

fn main() {
    println!("cargo::rustc-link-lib=dylib=gcrypt");
}
