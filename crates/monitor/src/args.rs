//! The flags, which are upstream's: Go's flag package takes one dash or two.

use std::ffi::OsString;

use tracing_subscriber::filter::LevelFilter;

/// What `--help` prints.
pub const USAGE: &str = "\
usage: kata-monitor [flags]
  --listen-address ADDRESS    where to serve HTTP (default 127.0.0.1:8090)
  --log-level LEVEL           trace, debug, info, warn or error (default info)
  --runtime-endpoint ENDPOINT taken for upstream's sake: sandboxes are found without a CRI socket
  --version
";

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    pub listen: String,
    pub level: LevelFilter,
    pub version: bool,
    pub help: bool,
}

impl Args {
    /// Reads it.
    ///
    /// # Errors
    /// A sentence about the word that is wrong.
    pub fn parse(args: Vec<OsString>) -> Result<Args, String> {
        let mut out = Args { listen: "127.0.0.1:8090".into(), level: LevelFilter::INFO, version: false, help: false };
        let mut args = args.into_iter().map(|a| a.to_string_lossy().into_owned());
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                return Err(format!("{arg:?} is no flag\n{USAGE}"));
            };
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "version" | "v" => out.version = true,
                "help" | "h" => out.help = true,
                "listen-address" | "log-level" | "runtime-endpoint" => {
                    let value = inline.or_else(|| args.next()).ok_or_else(|| format!("--{name} needs a value"))?;
                    match name {
                        "listen-address" => out.listen = address(&value),
                        "log-level" => out.level = level(&value)?,
                        _ => {}
                    }
                }
                _ => return Err(format!("unknown flag --{name}\n{USAGE}")),
            }
        }
        Ok(out)
    }
}

/// Go takes ":8090" for every address of the host.
fn address(text: &str) -> String {
    if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() }
}

fn level(text: &str) -> Result<LevelFilter, String> {
    // Upstream's logger has more names.
    match text {
        "warning" => Ok(LevelFilter::WARN),
        "fatal" | "panic" => Ok(LevelFilter::ERROR),
        other => other.parse().map_err(|_| format!("--log-level {other:?}: trace, debug, info, warn or error")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args, String> {
        Args::parse(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn flags_as_upstream_has_them() {
        assert_eq!(parse(&[]).unwrap().listen, "127.0.0.1:8090");
        let a =
            parse(&["-listen-address=:9000", "--log-level", "warning", "--runtime-endpoint", "/run/x.sock"]).unwrap();
        assert_eq!((a.listen.as_str(), a.level), ("[::]:9000", LevelFilter::WARN));
        assert!(parse(&["--version"]).unwrap().version && parse(&["-h"]).unwrap().help);
        for (bad, part) in [("--frob", "--frob"), ("--log-level=loud", "loud"), ("--log-level", "value"), ("x", "x")] {
            assert!(parse(&[bad]).unwrap_err().contains(part), "{bad}");
        }
    }
}
