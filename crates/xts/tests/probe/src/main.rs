//! `probe memcheck KERNEL`: uses the kernel with keys and data that valgrind's memcheck knows as undefined, so that every branch and
//! every address that depends on one is an error. `probe timing KERNEL`: prints how far apart the times of two classes of secrets are.

mod memcheck;
mod timing;

use std::process::ExitCode;

use vmseal_xts::Kernel;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, name] = arguments.as_slice() else {
        eprintln!("probe memcheck|timing KERNEL");
        return ExitCode::from(2);
    };
    let Some(kernel) = Kernel::ALL.into_iter().find(|kernel| kernel.name() == name && kernel.is_available()) else {
        println!("NOT RUN: kernel {name}");
        return ExitCode::from(3);
    };
    match what.as_str() {
        "memcheck" => memcheck::run(kernel),
        "branch" => memcheck::branch_on_a_secret(),
        "timing" => timing::run(kernel),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}
