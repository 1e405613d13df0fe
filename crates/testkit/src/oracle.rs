//! The same tests with another runtime, to see that they are right: `KATA_TEST_ORACLE=runc`.

/// The environment variable that names it.
const ORACLE: &str = "KATA_TEST_ORACLE";

/// What engines call the runtime under test: `kata`, or what `KATA_TEST_ORACLE` names (`runc`).
pub fn handler() -> String {
    std::env::var(ORACLE).unwrap_or_else(|_| "kata".into())
}

/// Whether the runtime under test is ours.
pub fn is_kata() -> bool {
    handler() == "kata"
}
