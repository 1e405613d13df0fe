//! Kernel configuration fragments: what they ask for, and what of that Kconfig dropped.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// What a fragment says about options: `CONFIG_X=value`, or `n` for `# CONFIG_X is not set`.
pub type Options = BTreeMap<String, String>;

/// Reads a fragment or a `.config`. Comments and empty lines are skipped.
///
/// # Errors
/// A line that is neither, or an option set twice to different values: names file and line.
pub fn parse(name: &str, text: &str) -> Result<Options> {
    let mut options = Options::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        let (option, value) = if let Some(rest) = line.strip_prefix("# CONFIG_") {
            match rest.strip_suffix(" is not set") {
                Some(option) => (format!("CONFIG_{option}"), "n".to_owned()),
                None => continue,
            }
        } else if line.is_empty() || line.starts_with('#') {
            continue;
        } else {
            match line.split_once('=') {
                Some((option, value)) if option.starts_with("CONFIG_") => (option.to_owned(), value.to_owned()),
                _ => bail!("{name}:{}: neither an option nor a comment: {line}", at + 1),
            }
        };
        if options.get(&option).is_some_and(|old| *old != value) {
            bail!("{name}:{}: {option} is set to {value} and, further up, to {}", at + 1, options[&option]);
        }
        options.insert(option, value);
    }
    Ok(options)
}

/// What was asked for and is not so: one line each, naming option, wish and result.
pub fn lost(wanted: &Options, got: &Options) -> Vec<String> {
    let value_of = |option: &str| got.get(option).map_or("n", String::as_str);
    wanted
        .iter()
        .filter(|(option, value)| value_of(option) != value.as_str())
        .map(|(option, value)| format!("{option}={value} became {}", value_of(option)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kconfig_dropped_is_named() {
        let wanted = parse("f", "# why\nCONFIG_A=y\n\n# CONFIG_B is not set\nCONFIG_C=\"x=y\"\nCONFIG_D=y\n").unwrap();
        let got = parse(".config", "CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=\"x=y\"\n# CONFIG_D is not set\n").unwrap();
        assert_eq!(lost(&wanted, &got), ["CONFIG_B=n became m", "CONFIG_D=y became n"]);
        assert!(lost(&wanted, &Options::new()).iter().any(|l| l == "CONFIG_A=y became n"));
        assert!(lost(&parse("f", "# CONFIG_Z is not set").unwrap(), &got).is_empty());
    }

    #[test]
    fn nonsense_and_contradictions_are_refused_with_their_line() {
        assert!(parse("f", "CONFIG_A=y\nA=y").unwrap_err().to_string().contains("f:2"));
        assert!(parse("f", "CONFIG_A=y\n# CONFIG_A is not set").unwrap_err().to_string().contains("CONFIG_A"));
        assert_eq!(parse("f", "CONFIG_A=y\nCONFIG_A=y").unwrap().len(), 1);
    }

    #[test]
    fn our_fragments_agree_with_each_other_and_have_what_is_required() {
        let dir = crate::paths::repo_root().join("guest/kernel");
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        let all = parse("fragments", &format!("{}{}", read("common.config"), read("x86_64.config"))).unwrap();
        let required = read("required.txt");
        let names: Vec<&str> = required.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
        assert!(names.len() > 50);
        for name in names {
            assert_eq!(all.get(name).map(String::as_str), Some("y"), "{name} is required and not in a fragment");
        }
    }
}
