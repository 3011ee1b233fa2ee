//! The command by transcripts: arguments, exit status, exact output. Each runs in a copy of its `.in` folder.

#[test]
fn transcripts() {
    trycmd::TestCases::new()
        .case("tests/cmd/*.toml")
        .case("tests/cmd/*.md")
        .env("VMSEAL_HOME", "state")
        .env("COLUMNS", "100");
}
