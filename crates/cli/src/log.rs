//! Errors to stderr and to `--log`, in the forms that containerd and conmon read.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::args::LogFormat;
use crate::error::{CliError, io};

/// Where errors go.
pub struct Logger {
    file: Option<File>,
    format: LogFormat,
}

impl Logger {
    /// Opens `--log`.
    ///
    /// # Errors
    /// Names the file.
    pub fn new(path: Option<&Path>, format: LogFormat) -> Result<Logger, CliError> {
        let open = |p: &Path| File::options().create(true).append(true).open(p).map_err(io("open the log", p));
        Ok(Logger { file: path.map(open).transpose()?, format })
    }

    /// Tells of the command's failure.
    pub fn error(&self, text: &str) {
        let line = match self.format {
            LogFormat::Json => {
                let line = serde_json::json!({ "level": "error", "msg": text, "time": now() });
                format!("{line}\n")
            }
            LogFormat::Text => format!("time=\"{}\" level=error msg={}\n", now(), quoted(text)),
        };
        if let Some(mut file) = self.file.as_ref() {
            // Nothing better is left than stderr, which is written below.
            drop(file.write_all(line.as_bytes()));
        }
        eprintln!("kata-runtime: {text}");
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| format!("{text:?}"))
}

/// RFC 3339, in UTC.
pub fn now() -> String {
    rfc3339(SystemTime::now())
}

/// RFC 3339 with nanoseconds, in UTC.
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, rest) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:09}Z", since.subsec_nanos())
}

/// The date of a day since 1970-01-01, counted in eras of 400 years that begin on March 1st.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000000000Z");
        let t = UNIX_EPOCH + Duration::new(1_709_210_096, 5);
        assert_eq!(rfc3339(t), "2024-02-29T12:34:56.000000005Z");
    }
}
