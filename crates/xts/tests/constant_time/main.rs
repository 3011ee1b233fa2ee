//! No branch and no address depends on a key, a tweak or data: valgrind's memcheck with the secrets marked as undefined, where valgrind
//! knows the instructions (portable, AES-NI); the release build taken apart, where it does not (VAES); and a statistical test of the times.
//!
//! `tests/probe` is what is run, and taken apart.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::unwrap_used, reason = "a failing test")]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod disassembly;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vmseal_xts::Kernel;

/// Builds the probe in release mode; `soft` with the `aes` crate kept from using instructions for AES.
fn probe(soft: bool) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/probe/Cargo.toml");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(if soft { "probe-soft" } else { "probe" });
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--release", "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(&target);
    // What the tests around are built with (coverage, sanitizers) is not wanted in here.
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR", "LLVM_PROFILE_FILE"]
    {
        cargo.env_remove(name);
    }
    if soft {
        cargo.env("RUSTFLAGS", "--cfg aes_backend=\"soft\"");
    }
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "the probe was not built:\n{}", String::from_utf8_lossy(&output.stderr));
    target.join("release/vmseal-xts-probe")
}

fn memcheck(probe: &Path, arguments: [&str; 2]) -> Output {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--error-exitcode=9"]).arg(probe).args(arguments);
    valgrind.output().expect("valgrind is needed for this test: apt-get install valgrind")
}

fn passes_memcheck(probe: &Path, kernel: Kernel) {
    let output = memcheck(probe, ["memcheck", kernel.name()]);
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) {
        eprintln!("NOT RUN: kernel {} under valgrind", kernel.name());
        assert!(!kernel.is_available(), "valgrind does not run the kernel {}, and this CPU does", kernel.name());
        return;
    }
    assert!(output.status.success(), "kernel {}: {text}", kernel.name());
}

#[test]
fn memcheck_finds_a_branch_on_a_secret() {
    let output = memcheck(&probe(false), ["branch", "portable"]);
    assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn aes_ni_passes_memcheck() {
    passes_memcheck(&probe(false), Kernel::AesNi);
}

/// With the instructions for AES that valgrind knows.
#[test]
fn portable_passes_memcheck() {
    passes_memcheck(&probe(false), Kernel::Portable);
}

/// As on a CPU that has none.
#[test]
fn portable_without_instructions_for_aes_passes_memcheck() {
    passes_memcheck(&probe(true), Kernel::Portable);
}

#[test]
fn no_kernel_branches_or_indexes_by_a_secret() {
    let output = Command::new("objdump")
        .args(["--disassemble", "--demangle", "--no-show-raw-insn", "-M", "intel"])
        .arg(probe(false))
        .output()
        .expect("objdump is needed for this test: apt-get install binutils");
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout);
    for (kernel, widest) in [("vaes512", "zmm"), ("vaes256", "ymm"), ("aesni", "xmm")] {
        let functions = disassembly::functions(&text, &format!("vmseal_xts::kernels::{kernel}::"));
        // Encrypting and decrypting, with 11 round keys and with 15, where the compiler has not made one of them part of another.
        assert!(functions.len() >= 3, "{kernel}: only {} functions found", functions.len());
        let rounds = functions.iter().flat_map(|function| &function.instructions);
        let rounds = rounds.filter(|line| line.mnemonic.contains("aes") && line.operands.contains(widest)).count();
        assert!(rounds > 100, "{kernel}: only {rounds} AES instructions on {widest}");
        let secrets: usize = functions.iter().map(disassembly::check).sum();
        assert!(secrets > 0, "{kernel}: no tweak was seen in a general register; this test has become blind");
    }
}

/// Times on a machine that has other work to do are noisy, and noise is not alike twice: a secret that shows does so every time.
#[test]
fn times_tell_nothing_of_secrets() {
    const BOUND: f64 = 10.0; // dudect's, for "definitely not constant time"
    let probe = probe(false);
    for kernel in Kernel::ALL {
        let mut seen = String::new();
        let quiet = (0..5).any(|_| {
            let output = Command::new(&probe).args(["timing", kernel.name()]).output().unwrap();
            seen = String::from_utf8(output.stdout).unwrap();
            if output.status.code() == Some(3) {
                eprint!("{seen}");
                return true;
            }
            assert!(output.status.success());
            let values: Vec<(&str, f64)> = seen
                .lines()
                .filter_map(|line| line.split_once(' ').map(|(name, t)| (name, t.parse().unwrap())))
                .collect();
            assert_eq!(values.len(), 4, "{seen}");
            values.iter().all(|(name, t)| if *name == "leak" { t.abs() > BOUND } else { t.abs() < BOUND })
        });
        assert!(
            quiet,
            "kernel {}: five times in a row the times of two classes of secrets differ:\n{seen}",
            kernel.name()
        );
    }
}

#[test]
fn a_branch_an_address_and_a_division_are_found_in_a_disassembly() {
    let found = |instructions: &str| {
        let text = format!("0000000000000010 <kernel::process<15>>:\n{instructions}  99:\tret\n");
        let functions = disassembly::functions(&text, "kernel::");
        assert_eq!(functions.len(), 1);
        std::panic::catch_unwind(|| disassembly::check(&functions[0])).is_err()
    };
    let harmless = [
        "  10:\tmov    r9,QWORD PTR [rsi+0x10]\n  14:\tcmp    r9,rdx\n  18:\tje     10 <kernel>\n",
        "  10:\tmov    rax,QWORD PTR [rcx]\n  14:\txor    eax,eax\n  18:\ttest   rax,rax\n  1c:\tje     10 <kernel>\n",
        "  10:\tmov    QWORD PTR [rsp+0x8],rdx\n  14:\tdec    QWORD PTR [rsp+0x8]\n  18:\tjne    10 <kernel>\n",
    ];
    let harmful = [
        "  10:\tmov    rax,QWORD PTR [rcx]\n  14:\tadd    rax,rax\n  18:\tjb     10 <kernel>\n",
        "  10:\tvmovq  rax,xmm3\n  14:\tmov    bl,BYTE PTR [rdi+rax*1]\n",
        "  10:\tvmovdqu xmm1,XMMWORD PTR [rdx]\n  14:\tvmovdqu XMMWORD PTR [rsp],xmm1\n  18:\tmov    rax,QWORD PTR [rsp+0x8]\n  1c:\ttest   al,0x1\n  20:\tjne    10 <kernel>\n",
        "  10:\tvpgatherdd zmm1{k1},DWORD PTR [rdi+zmm2*4]\n",
        "  10:\tmov    rax,QWORD PTR [rcx]\n  14:\tdiv    rax\n",
        "  10:\tvptest ymm1,YMMWORD PTR [rdi]\n  14:\tje     10 <kernel>\n",
    ];
    for instructions in harmless {
        assert!(!found(instructions), "{instructions}");
    }
    for instructions in harmful {
        assert!(found(instructions), "{instructions}");
    }
}
