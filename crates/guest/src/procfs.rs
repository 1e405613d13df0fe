//! What /proc tells about processes and interfaces (proc(5)).

use std::fmt::Write;
use std::fs;

use kata_proto::agent::NetworkStats;

use crate::failure::Failure;
use crate::json::push_string;

/// A process as `ps` shows it.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    pid: i32,
    ppid: i32,
    uid: u32,
    /// The kernel's short name of it.
    comm: String,
    /// Its arguments, or the short name in brackets when it has none.
    cmd: String,
}

/// The columns of a table, by the names that `ps -o` uses.
const COLUMNS: &[&str] = &["pid", "ppid", "uid", "user", "comm", "cmd", "args", "command"];

/// Lists processes: `"json"` is a list of objects with pid, ppid, uid and cmd, `"table"` is text as `ps` prints. `args`
/// are those of `ps`, of which this knows `-e`, `-f`, `-ef`, `aux`, which change nothing, and `-o`.
///
/// # Errors
/// [`Failure::Unsupported`] for other arguments, [`Failure::Invalid`] for another format.
pub fn list(pids: &[i32], format: &str, args: &[String]) -> Result<Vec<u8>, Failure> {
    // A process may end at any time, then it is not in the list.
    let rows: Vec<Row> = pids.iter().filter_map(|pid| row(*pid)).collect();
    match format {
        "json" => Ok(json(&rows).into_bytes()),
        "table" | "" => Ok(table(&rows, &columns(args)?).into_bytes()),
        other => Err(Failure::Invalid(format!("process lists have the formats json and table, not {other:?}"))),
    }
}

fn row(pid: i32) -> Option<Row> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    parse(pid, &status, &cmdline)
}

fn parse(pid: i32, status: &str, cmdline: &[u8]) -> Option<Row> {
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let comm = field("Name:")?.to_owned();
    let ppid = field("PPid:")?.parse().ok()?;
    // Real, effective, saved, file system.
    let uid = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    let words: Vec<_> = cmdline.split(|b| *b == 0).filter(|w| !w.is_empty()).map(String::from_utf8_lossy).collect();
    let cmd = if words.is_empty() { format!("[{comm}]") } else { words.join(" ") };
    Some(Row { pid, ppid, uid, comm, cmd })
}

fn json(rows: &[Row]) -> String {
    let mut out = String::from("[");
    for (n, row) in rows.iter().enumerate() {
        let comma = if n == 0 { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = write!(out, "{comma}{{\"pid\":{},\"ppid\":{},\"uid\":{},\"cmd\":", row.pid, row.ppid, row.uid);
        push_string(&mut out, &row.cmd);
        out.push('}');
    }
    out.push(']');
    out
}

fn columns(args: &[String]) -> Result<Vec<String>, Failure> {
    let mut chosen: Vec<String> = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let list = match arg.as_str() {
            "-e" | "-f" | "-ef" | "aux" | "-A" => continue,
            "-o" => args.next().map(String::as_str).unwrap_or_default(),
            other => match other.strip_prefix("-o").or_else(|| other.strip_prefix("-eo")) {
                Some(list) if !list.is_empty() => list,
                Some(_) => args.next().map(String::as_str).unwrap_or_default(),
                None => return Err(Failure::Unsupported(format!("the argument {other:?} of ps"))),
            },
        };
        for column in list.split(',') {
            if !COLUMNS.contains(&column) {
                return Err(Failure::Unsupported(format!("the column {column:?} of ps; known are {COLUMNS:?}")));
            }
            chosen.push(column.to_owned());
        }
    }
    if chosen.is_empty() {
        chosen = ["pid", "ppid", "uid", "cmd"].map(str::to_owned).to_vec();
    }
    Ok(chosen)
}

fn table(rows: &[Row], columns: &[String]) -> String {
    let cell = |row: &Row, column: &str| match column {
        "pid" => row.pid.to_string(),
        "ppid" => row.ppid.to_string(),
        "comm" => row.comm.clone(),
        "cmd" | "args" | "command" => row.cmd.clone(),
        // The guest knows no names of users.
        _ => row.uid.to_string(),
    };
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|c| c.to_uppercase()).collect()];
    lines.extend(rows.iter().map(|row| columns.iter().map(|c| cell(row, c)).collect()));
    let width = |n: usize| lines.iter().map(|l| l[n].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        for (n, cell) in line.iter().enumerate() {
            if n + 1 == line.len() {
                out.push_str(cell);
            } else {
                // Writing to a String cannot fail.
                let _ = write!(out, "{cell:<width$} ", width = widths[n]);
            }
        }
        out.push('\n');
    }
    out
}

/// The counters of every interface but the loopback, as the process sees them.
///
/// # Errors
/// When /proc has no such file.
pub fn network(pid: i32) -> std::io::Result<Vec<NetworkStats>> {
    Ok(interfaces(&fs::read_to_string(format!("/proc/{pid}/net/dev"))?))
}

fn interfaces(text: &str) -> Vec<NetworkStats> {
    let line = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let c: Vec<u64> = counters.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let name = name.trim();
        if c.len() < 12 || name == "lo" {
            return None;
        }
        Some(NetworkStats {
            name: name.to_owned(),
            rx_bytes: c[0],
            rx_packets: c[1],
            rx_errors: c[2],
            rx_dropped: c[3],
            tx_bytes: c[8],
            tx_packets: c[9],
            tx_errors: c[10],
            tx_dropped: c[11],
            ..Default::default()
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<Row> {
        let status = "Name:\tsleep\nUmask:\t0022\nPPid:\t1\nUid:\t0\t33\t0\t0\n";
        vec![
            parse(7, status, b"sleep\x001\x00").unwrap(),
            parse(1234, "Name:\tkworker\nPPid:\t2\nUid:\t0\t0\t0\t0\n", b"").unwrap(),
        ]
    }

    #[test]
    fn a_table_is_aligned_and_names_its_columns() {
        let all = columns(&[]).unwrap();
        let text = table(&sample(), &all);
        assert_eq!(text, "PID  PPID UID CMD\n7    1    33  sleep 1\n1234 2    0   [kworker]\n");
        let some = columns(&["-e".into(), "-o".into(), "comm,pid".into()]).unwrap();
        assert_eq!(table(&sample()[..1], &some), "COMM  PID\nsleep 7\n");
        assert!(columns(&["--forest".into()]).is_err() && columns(&["-o".into(), "wchan".into()]).is_err());
    }

    #[test]
    fn json_has_one_object_a_process() {
        assert_eq!(
            json(&sample()),
            r#"[{"pid":7,"ppid":1,"uid":33,"cmd":"sleep 1"},{"pid":1234,"ppid":2,"uid":0,"cmd":"[kworker]"}]"#
        );
        assert_eq!(list(&[], "json", &[]).unwrap(), b"[]");
        assert!(list(&[], "xml", &[]).is_err());
    }

    #[test]
    fn interfaces_are_counted_without_the_loopback() {
        let text = "Inter-| Receive | Transmit\n face |bytes ...\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                    eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let all = interfaces(text);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].name.as_str(), all[0].rx_bytes, all[0].tx_bytes, all[0].tx_dropped), ("eth0", 10, 50, 8));
    }
}
