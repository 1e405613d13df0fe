//! Resource limits of a process.

use kata_proto::oci;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::error::{JailError, Step};

/// Reads the spec's list (names as in getrlimit(2); `u64::MAX` is no limit).
pub(crate) fn parse(list: &[oci::POSIXRlimit]) -> Result<Vec<(Resource, Rlimit)>, JailError> {
    list.iter()
        .map(|l| {
            let resource =
                resource(&l.Type).ok_or_else(|| JailError::invalid(format!("unknown resource limit {:?}", l.Type)))?;
            if l.Soft > l.Hard {
                return Err(JailError::invalid(format!(
                    "{}: soft limit {} above hard limit {}",
                    l.Type, l.Soft, l.Hard
                )));
            }
            let value = |v: u64| (v != u64::MAX).then_some(v);
            Ok((resource, Rlimit { current: value(l.Soft), maximum: value(l.Hard) }))
        })
        .collect()
}

/// Sets them for the calling process.
pub(crate) fn apply(list: &[(Resource, Rlimit)]) -> Result<(), JailError> {
    for (resource, limit) in list {
        setrlimit(*resource, *limit).step(|| {
            let show = |v: Option<u64>| v.map_or("unlimited".to_owned(), |v| v.to_string());
            format!("setting the limit {resource:?} to {}:{}", show(limit.current), show(limit.maximum))
        })?;
    }
    Ok(())
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, soft: u64, hard: u64) -> oci::POSIXRlimit {
        oci::POSIXRlimit { Type: name.into(), Soft: soft, Hard: hard, ..Default::default() }
    }

    #[test]
    fn limits_are_read_and_nonsense_is_refused() {
        let parsed = parse(&[limit("RLIMIT_NOFILE", 10, u64::MAX)]).unwrap();
        assert_eq!(parsed, [(Resource::Nofile, Rlimit { current: Some(10), maximum: None })]);
        assert!(parse(&[limit("RLIMIT_SLEEP", 1, 1)]).is_err());
        assert!(parse(&[limit("RLIMIT_CORE", 2, 1)]).is_err());
    }
}
