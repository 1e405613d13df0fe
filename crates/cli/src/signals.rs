//! Signals by name or number.

use nix::sys::signal::Signal;

use crate::error::CliError;

/// "SIGTERM", "TERM", "term", "15", "SIGRTMIN+3".
///
/// # Errors
/// Names what is not a signal.
pub fn parse(text: &str) -> Result<u32, CliError> {
    let unknown = || CliError::Usage(format!("unknown signal {text:?}; give a name (SIGTERM) or a number"));
    if let Ok(number) = text.parse::<u32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    // The guest's real-time signals are the kernel's 32 to 64, of which libcs keep the first two.
    for (base, first, sign) in [("SIGRTMIN", 34u32, 1i64), ("SIGRTMAX", 64, -1)] {
        if let Some(rest) = name.strip_prefix(base) {
            let offset = if rest.is_empty() {
                0
            } else {
                rest.trim_start_matches(['+', '-']).parse::<i64>().map_err(|_| unknown())?
            };
            let number = i64::from(first) + sign * offset.abs();
            return u32::try_from(number).ok().filter(|n| (34..=64).contains(n)).ok_or_else(unknown);
        }
    }
    let signal: Signal = name.parse().map_err(|_| unknown())?;
    Ok((signal as i32).cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [("SIGTERM", 15), ("kill", 9), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("HUP", 1)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "SIGFOO", "SIGRTMIN+99", "SIGRTMINé"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
