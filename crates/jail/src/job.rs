//! What the agent gives a helper process to do. It travels in a memfd; both sides are the same program, so the
//! encoding has no version.

use crate::error::JailError;

/// What to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A container and its first process.
    Create,
    /// Another process in a container.
    Exec,
    /// The first process of a pid namespace that containers share; see [`crate::hold`].
    Hold,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Create, Kind::Exec, Kind::Hold];
}

/// One job. The descriptors that belong to it come beside it, in the order of [`crate::launch::JobFds`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub kind: Kind,
    /// The container's id.
    pub id: String,
    /// Create: where the root filesystem is, in the agent's view.
    pub rootfs: String,
    /// Create: the container's cgroup directory, in the agent's view.
    pub cgroup: String,
    /// An encoded `oci::Spec`; for exec its process and what of the container the process inherits.
    pub spec: Vec<u8>,
    /// Whether the process gets a terminal, made by the helper and sent back.
    pub terminal: bool,
    /// Its size, 0 for "leave it".
    pub rows: u16,
    /// Its size, 0 for "leave it".
    pub cols: u16,
    /// Exec: the `CLONE_NEW*` bits of the namespaces that the container has for itself.
    pub namespaces: u32,
    /// How many of the descriptors are cgroup.procs files to try.
    pub cgroup_files: u32,
}

impl Job {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.spec.len() + 256);
        let numbers = [
            self.kind as u32,
            self.terminal as u32,
            self.rows as u32,
            self.cols as u32,
            self.namespaces,
            self.cgroup_files,
        ];
        for n in numbers {
            out.extend(n.to_ne_bytes());
        }
        for part in [self.id.as_bytes(), self.rootfs.as_bytes(), self.cgroup.as_bytes(), &self.spec] {
            // A spec of 4 GiB cannot come in: the protocol's messages are bounded far below.
            out.extend((part.len() as u32).to_ne_bytes());
            out.extend(part);
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, JailError> {
        Self::read(bytes).ok_or_else(|| JailError::helper("got a job that it cannot read"))
    }

    fn read(mut bytes: &[u8]) -> Option<Self> {
        let mut number = || -> Option<u32> {
            let (n, rest) = bytes.split_first_chunk::<4>()?;
            bytes = rest;
            Some(u32::from_ne_bytes(*n))
        };
        let [kind, terminal, rows, cols, namespaces, cgroup_files] =
            [number()?, number()?, number()?, number()?, number()?, number()?];
        let mut part = || -> Option<Vec<u8>> {
            let (n, rest) = bytes.split_first_chunk::<4>()?;
            let (part, rest) = rest.split_at_checked(u32::from_ne_bytes(*n) as usize)?;
            bytes = rest;
            Some(part.to_vec())
        };
        let id = String::from_utf8(part()?).ok()?;
        let rootfs = String::from_utf8(part()?).ok()?;
        let cgroup = String::from_utf8(part()?).ok()?;
        Some(Job {
            kind: *Kind::ALL.get(kind as usize)?,
            id,
            rootfs,
            cgroup,
            spec: part()?,
            terminal: terminal == 1,
            rows: u16::try_from(rows).ok()?,
            cols: u16::try_from(cols).ok()?,
            namespaces,
            cgroup_files,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_as_it_was_written_and_a_cut_one_is_refused() {
        let job = Job {
            kind: Kind::Exec,
            id: "a".into(),
            rootfs: "/r".into(),
            cgroup: "/c".into(),
            spec: vec![1, 2, 3],
            terminal: true,
            rows: 24,
            cols: 80,
            namespaces: 0x2000_0000,
            cgroup_files: 2,
        };
        let bytes = job.encode();
        assert_eq!(Job::decode(&bytes).unwrap(), job);
        for cut in 0..bytes.len() {
            assert!(Job::decode(&bytes[..cut]).is_err(), "{cut}");
        }
    }
}
