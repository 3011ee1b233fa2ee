//! `vmseal serve` over TLS, with certificates that OpenSSL made and clients that use GnuTLS.

use std::path::Path;
use std::process::Command;

use crate::served::{Served, disk, inside, run_peer, text, try_peer};
use crate::testing::{DISKS, TestVm};

#[track_caller]
fn openssl(folder: &Path, args: &str) {
    let output = Command::new("openssl").current_dir(folder).args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A CA, a certificate of it for a server and one for a client, as `tls-certificates=` wants them.
fn make_certificates(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(folder, &format!("req -x509 {key} -keyout ca-key.pem -out ca-cert.pem -subj /CN=ca -days 30"));
    for (name, use_, more) in [
        ("server", "serverAuth", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ("client", "clientAuth", "basicConstraints=CA:FALSE"),
    ] {
        std::fs::write(folder.join("ext"), format!("extendedKeyUsage={use_}\n{more}\n")).unwrap();
        openssl(folder, &format!("req {key} -keyout {name}-key.pem -out {name}.csr -subj /CN={name}"));
        let ca = "-CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 30 -extfile ext";
        openssl(folder, &format!("x509 -req -in {name}.csr {ca} -out {name}-cert.pem"));
    }
}

/// Certificates as one kind of client has them: with or without one of its own.
fn client_folder(from: &Path, to: &Path, files: &[&str]) {
    std::fs::create_dir(to).unwrap();
    for file in files {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

#[test]
fn clients_are_served_over_tls_and_not_without() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    vm.ok(&["encrypt", "VM", "--provider", "house"]);
    let all = inside(&vm, "pki");
    make_certificates(&all);
    let (known, unknown, strangers) = (inside(&vm, "known"), inside(&vm, "unknown"), inside(&vm, "strangers"));
    client_folder(&all, &known, &["ca-cert.pem", "client-cert.pem", "client-key.pem"]);
    client_folder(&all, &unknown, &["ca-cert.pem"]);
    // One with a certificate of a CA of its own, who trusts the server's.
    let other = inside(&vm, "other");
    make_certificates(&other);
    client_folder(&other, &strangers, &["client-cert.pem", "client-key.pem"]);
    std::fs::copy(all.join("ca-cert.pem"), strangers.join("ca-cert.pem")).unwrap();

    let pem = |name: &str| all.join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (pem("server-cert.pem"), pem("server-key.pem"), pem("ca-cert.pem"));
    let disk = disk(&vm, "flat.vmdk");
    for (client_ca, may) in [(false, [true, true, true]), (true, [true, false, false])] {
        let mut args = vec![&*disk, "--tcp", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
        if client_ca {
            args.extend(["--tls-client-ca", &ca]);
        }
        let served = Served::start(&vm, &args);
        assert_eq!(served.ready["tls"], true);
        let uri = served.uri.clone();
        assert!(uri.starts_with("nbds://127.0.0.1:"));
        let (host, port) = uri.trim_start_matches("nbds://").trim_end_matches('/').split_once(':').unwrap();
        for (folder, may) in [&known, &unknown, &strangers].into_iter().zip(may) {
            let with = format!("{uri}?tls-certificates={}", folder.display());
            let raw = inside(&vm, "disk.raw");
            let _ = std::fs::remove_file(&raw);
            let output = try_peer("nbdcopy", &["--connections=3", &with, text(&raw)]);
            assert_eq!(output.status.success(), may, "{folder:?}: {}", String::from_utf8_lossy(&output.stderr));
            assert!(!may || std::fs::read(&raw).unwrap() == vm.disks["flat.vmdk"]);
        }
        // QEMU, with the certificate that every server here accepts.
        let creds = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", known.display());
        let image = format!("driver=nbd,host={host},port={port},tls-creds=tls");
        let commands = ["write -P 0x11 3000 100000", "read -P 0x11 3000 100000", "flush"];
        let mut args = vec!["--object", &creds, "--image-opts", &image];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        let output = run_peer("qemu-io", &args);
        assert!(!output.contains("rror"), "{output}");
        run_peer("qemu-io", &["--object", &creds, "--image-opts", &image, "-c", "read -P 0x11 3000 100000"]);

        // In the clear nothing is told but that TLS is required.
        let plain = try_peer("nbdinfo", &[&uri.replace("nbds:", "nbd:")]);
        assert!(!plain.status.success());
        let plain = try_peer("qemu-img", &["info", &uri.replace("nbds:", "nbd:")]);
        let told = String::from_utf8_lossy(&plain.stderr).into_owned();
        assert!(!plain.status.success() && told.contains("TLS"), "{told}");
        served.end();
        // As it was, for the next round.
        let raw = inside(&vm, "raw");
        std::fs::write(&raw, &vm.disks["flat.vmdk"]).unwrap();
        let served = Served::socket(&vm, &[&disk]);
        run_peer("nbdcopy", &[text(&raw), &served.uri]);
        served.end();
    }
    vm.assert_whole();
}

#[test]
fn certificates_that_do_not_fit_are_told() {
    let vm = TestVm::with_disks(&DISKS[..1]);
    let all = inside(&vm, "pki");
    make_certificates(&all);
    let pem = |name: &str| all.join(name).to_str().unwrap().to_owned();
    let disk = disk(&vm, "flat.vmdk");
    let serve = |cert: &str, key: &str, message: &str, status: i32| {
        let args = ["serve", &disk, "--tcp", "127.0.0.1:0", "--tls-cert", &pem(cert), "--tls-key", &pem(key)];
        vm.fails(&args, status, message);
    };
    serve("server-cert.pem", "client-key.pem", "the server's certificate and its key", 5);
    serve("server-key.pem", "server-key.pem", "the server's certificate", 5);
    serve("server-cert.pem", "server-cert.pem", "the key of the server's certificate", 5);
    serve("nothing.pem", "server-key.pem", "nothing.pem: it cannot be read", 1);
}
