//! Published known answers: IEEE 1619-2007 Annex B and NIST CAVP.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a failing test")]

use vmseal_xts::{Error, Kernel, XtsAes128, XtsAes256};

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|index| u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).unwrap()).collect()
}

/// Encrypts or decrypts one unit, whatever its length, under a key of either length, with every kernel that runs here.
fn one_unit(key: &[u8], unit: u128, data: &[u8], encrypt: bool) -> Vec<u8> {
    let unit_size = data.len().next_multiple_of(16);
    let mut found = Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()).map(|kernel| {
        let mut data = data.to_vec();
        if key.len() == 32 {
            let xts = XtsAes128::with_kernel(kernel, key.try_into().unwrap()).unwrap().unwrap();
            let work = if encrypt { XtsAes128::encrypt_units } else { XtsAes128::decrypt_units };
            work(&xts, &mut data, unit_size, unit).unwrap();
        } else {
            let xts = XtsAes256::with_kernel(kernel, key.try_into().unwrap()).unwrap().unwrap();
            let work = if encrypt { XtsAes256::encrypt_units } else { XtsAes256::decrypt_units };
            work(&xts, &mut data, unit_size, unit).unwrap();
        }
        data
    });
    let first = found.next().unwrap();
    assert!(found.all(|other| other == first), "kernels differ");
    first
}

#[test]
fn the_vectors_of_ieee_1619() {
    let counting: Vec<u8> = (0..512u32).map(|index| index as u8).collect();
    let cases: [(&str, u128, &[u8], &str); 7] = [
        // 2 and 3; vector 1 has two equal halves, which are refused.
        (
            "1111111111111111111111111111111122222222222222222222222222222222",
            0x33_3333_3333,
            &[0x44; 32],
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        ),
        (
            "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f022222222222222222222222222222222",
            0x33_3333_3333,
            &[0x44; 32],
            "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89",
        ),
        // 10
        (
            "27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592",
            0xff,
            &counting,
            "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7de8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151",
        ),
        // 15 to 18: ciphertext stealing
        (
            "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0bfbebdbcbbbab9b8b7b6b5b4b3b2b1b0",
            0x12_3456_789a,
            &counting[..17],
            "6c1625db4671522d3d7599601de7ca09ed",
        ),
        (
            "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0bfbebdbcbbbab9b8b7b6b5b4b3b2b1b0",
            0x12_3456_789a,
            &counting[..18],
            "d069444b7a7e0cab09e24447d24deb1fedbf",
        ),
        (
            "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0bfbebdbcbbbab9b8b7b6b5b4b3b2b1b0",
            0x12_3456_789a,
            &counting[..19],
            "e5df1351c0544ba1350b3363cd8ef4beedbf9d",
        ),
        (
            "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0bfbebdbcbbbab9b8b7b6b5b4b3b2b1b0",
            0x12_3456_789a,
            &counting[..20],
            "9d84c813f719aa2c7be3f66171c7c5c2edbf9dac",
        ),
    ];
    for (key, unit, plain, sealed) in cases {
        assert_eq!(one_unit(&hex(key), unit, plain, true), hex(sealed));
        assert_eq!(one_unit(&hex(key), unit, &hex(sealed), false), plain);
    }
    assert_eq!(XtsAes128::new(&[0; 32]).unwrap_err(), Error::EqualHalves);
}

#[test]
fn the_vectors_of_nist_cavp() {
    let files = [
        include_str!("vectors/hexstr-128.rsp"),
        include_str!("vectors/hexstr-256.rsp"),
        include_str!("vectors/seqno-128.rsp"),
        include_str!("vectors/seqno-256.rsp"),
    ];
    let (mut checked, mut parts_of_bytes) = (0, 0);
    for file in files {
        let (mut encrypt, mut bits, mut key, mut unit, mut plain) = (true, 0, Vec::new(), 0u128, Vec::new());
        for line in file.lines() {
            match line.trim() {
                "[ENCRYPT]" => encrypt = true,
                "[DECRYPT]" => encrypt = false,
                line => {
                    let Some((name, value)) = line.split_once(" = ") else { continue };
                    match name {
                        "DataUnitLen" => bits = value.parse().unwrap(),
                        "Key" => key = hex(value),
                        "i" => unit = u128::from_le_bytes(hex(value).try_into().unwrap()),
                        "DataUnitSeqNumber" => unit = value.parse().unwrap(),
                        "PT" if encrypt => plain = hex(value),
                        "CT" if !encrypt => plain = hex(value),
                        "PT" | "CT" if bits % 8 != 0 => parts_of_bytes += 1,
                        "PT" | "CT" => {
                            assert_eq!(one_unit(&key, unit, &plain, encrypt), hex(value), "{line}");
                            checked += 1;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    assert_eq!((checked, parts_of_bytes), (2800, 1200));
}
