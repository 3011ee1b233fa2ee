//! A whole image file under one key.

use std::path::Path;

use crate::testing::{TestVm, content, qemu};

#[test]
fn an_image_file_is_encrypted_recrypted_and_decrypted_as_a_whole() {
    let vm = TestVm::with_disks(&[]);
    let folder = vm.root.path().join("store");
    std::fs::create_dir(&folder).unwrap();
    let (image, header, disk) = (folder.join("pool.img"), folder.join("pool.vmx"), folder.join("pool.vmdk"));
    let plain = content(7);
    std::fs::write(&image, &plain).unwrap();
    let [image_name, header_name, disk_name] = [&image, &header, &disk].map(|path| path.to_str().unwrap());
    vm.ok(&["datastore", "create", image_name]);
    assert!(std::fs::read(&image).unwrap() == plain, "nothing of it changes");
    vm.fails(&["datastore", "create", image_name], 3, "is there already");
    // Until it is encrypted others read it by its descriptor.
    assert!(qemu("qemu-img", &["compare"], &[&disk, &image]).contains("identical"));
    vm.ok(&["encrypt", header_name, "--provider", "house", "--strategy", "in-place"]);
    let encrypted = std::fs::read(&image).unwrap();
    assert_eq!(encrypted.len(), plain.len());
    assert!(!encrypted.chunks(512).zip(plain.chunks(512)).any(|(new, old)| new == old));
    vm.ok(&["recrypt", header_name, "--deep", "--strategy", "in-place"]);
    vm.ok(&["recrypt", header_name]);
    vm.ok(&["verify", header_name]);
    let raw = folder.join("out.raw");
    vm.ok(&["disk", "export", disk_name, "-o", raw.to_str().unwrap()]);
    assert!(std::fs::read(&raw).unwrap() == plain);
    vm.ok(&["decrypt", header_name, "--strategy", "in-place"]);
    assert!(std::fs::read(&image).unwrap() == plain);
}

#[test]
fn an_image_that_is_no_disk_is_refused() {
    let vm = TestVm::with_disks(&[]);
    let odd = vm.root.path().join("odd.img");
    std::fs::write(&odd, [1; 1000]).unwrap();
    vm.fails(&["datastore", "create", odd.to_str().unwrap()], 5, "multiple of 512");
    vm.fails(&["datastore", "create", "/nowhere/pool.img"], 1, "nowhere");
    assert!(!Path::new("/nowhere").exists());
    assert!(!vm.root.path().join("odd.vmdk").exists());
}
