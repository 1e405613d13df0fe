//! From a spec and the configuration to what the guest is asked to do and what the VM must have. Pure: it looks at
//! the file types of bind sources through [`Host`], and does nothing.

mod devices;
mod volumes;

use std::path::{Path, PathBuf};

use kata_oci::{Mount, Spec};
use kata_proto::oci as pb;
use kata_types::{GUEST_NS_DIR, GUEST_SHARE_DIR, Mib};
use kata_vmm::Unsupported;
use protobuf::MessageField;
use thiserror::Error;

use crate::convert;
use crate::cpuset::Cpuset;
use crate::sizing::{Ask, Millicpus};

pub use devices::{Disk, Node};
pub use volumes::MemoryFs;

/// A container as planned.
#[derive(Debug)]
pub struct Plan {
    /// The spec for the guest; sources of [`Plan::binds`] still to be filled in.
    pub spec: pb::Spec,
    /// Host paths to share, each with the index of the guest mount whose source it becomes.
    pub binds: Vec<Bind>,
    /// What the guest mounts of its own before the container is made.
    pub storages: Vec<kata_proto::agent::Storage>,
    /// Block devices of the host's to plug.
    pub disks: Vec<Disk>,
    /// The mount in `spec.Mounts` that is the engine's shared memory, and its source on the host: of containers that name one
    /// source, the memory is one.
    pub shm: Option<(usize, PathBuf)>,
    /// What its limits ask of the VM.
    pub ask: Ask,
    /// What it may use of the host.
    pub cpuset: Cpuset,
    /// Things left out of the spec that the guest cannot mean anything by, for the log.
    pub notes: Vec<String>,
}

/// A bind mount from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// In `spec.Mounts`.
    pub mount: usize,
    /// On the host.
    pub source: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
    /// With the mounts below it.
    pub recursive: bool,
    /// Mounts made below it later are seen (`rslave`).
    pub later: bool,
    /// The host changes what is in it, and whoever watches it in the guest is to be woken.
    pub followed: bool,
}

/// Why a container cannot be made as its spec says.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A bind's source.
    #[error("cannot mount {source_path} at {destination}: {reason}")]
    Bind {
        /// On the host.
        source_path: PathBuf,
        /// In the container.
        destination: String,
        /// Why not.
        reason: String,
    },
    /// Memory under what a guest needs.
    #[error("a memory limit of {bytes} bytes is too little for any process; give at least 4 MiB")]
    TooLittleMemory {
        /// The limit.
        bytes: i64,
    },
    /// A list of CPUs or memory nodes.
    #[error(transparent)]
    Cpuset(#[from] crate::cpuset::ListError),
    /// More than the VM may have.
    #[error("{asked} {what} are needed, but hypervisor.qemu.{key} allows {max}")]
    TooMuch {
        /// "MiB of memory" or "vCPUs".
        what: &'static str,
        /// How much.
        asked: u64,
        /// The configuration key.
        key: &'static str,
        /// The most.
        max: u64,
    },
    /// Not in a VM, or not yet.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

fn unsupported(operation: impl Into<String>) -> PlanError {
    PlanError::Unsupported(Unsupported { operation: operation.into(), by: "this version's sandbox".into() })
}

/// What a path on the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A socket or FIFO: it can be seen in the guest, but its other end is on the host.
    Endpoint,
    /// A device node.
    Device(Node),
}

/// What planning asks the host.
pub trait Host {
    /// What the path is; the error says why it cannot be known.
    fn kind(&self, path: &Path) -> Result<FileKind, String>;
    /// Size of the file system at a path, in bytes.
    fn size(&self, path: &Path) -> Option<u64>;
    /// The file system in memory that is mounted at a path.
    fn memory_fs(&self, _: &Path) -> Option<MemoryFs> {
        None
    }
    /// Which directory of its file system a mount point shows.
    fn root_of_mount(&self, _: &Path) -> Option<PathBuf> {
        None
    }
}

/// The real host.
pub struct RealHost;

impl Host for RealHost {
    fn kind(&self, path: &Path) -> Result<FileKind, String> {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let meta = std::fs::metadata(path).map_err(|e| e.to_string())?;
        let t = meta.file_type();
        Ok(if t.is_dir() {
            FileKind::Directory
        } else if t.is_file() {
            FileKind::File
        } else if t.is_socket() || t.is_fifo() {
            FileKind::Endpoint
        } else {
            let number = |n: u32| i64::from(n);
            let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            FileKind::Device(Node { block: t.is_block_device(), major: number(major), minor: number(minor) })
        })
    }

    fn size(&self, path: &Path) -> Option<u64> {
        let s = nix::sys::statvfs::statvfs(path).ok()?;
        Some(s.blocks() * s.fragment_size())
    }

    fn memory_fs(&self, path: &Path) -> Option<MemoryFs> {
        use std::os::unix::fs::MetadataExt;
        let (own, above) = (std::fs::metadata(path).ok()?, std::fs::metadata(path.parent()?).ok()?);
        if own.dev() == above.dev() {
            return None;
        }
        let fs = rustix::fs::statfs(path).ok()?;
        let block = u64::try_from(fs.f_bsize).ok()?;
        // linux/magic.h
        let page_size = match fs.f_type {
            0x0102_1994 => None,
            0x9584_58f6 => Some(block),
            _ => return None,
        };
        let bytes = fs.f_blocks.saturating_mul(block);
        Some(MemoryFs { page_size, bytes, mode: own.mode() & 0o7777, uid: own.uid(), gid: own.gid() })
    }

    fn root_of_mount(&self, path: &Path) -> Option<PathBuf> {
        kata_storage::root_of_mount(path)
    }
}

/// What the configuration has to say.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most vCPUs of a VM.
    pub max_vcpus: u32,
    /// The spec's seccomp profile is dropped.
    pub drop_seccomp: bool,
}

/// Plans one container.
///
/// # Errors
/// [`PlanError`], naming what of the spec cannot be done.
pub fn plan(spec: &Spec, container: &str, limits: Limits, host: &dyn Host) -> Result<Plan, PlanError> {
    let mut notes = Vec::new();
    let mut out = pb::Spec::new();
    out.Version.clone_from(&spec.oci_version);
    out.Hostname.clone_from(&spec.hostname);
    if !spec.domainname.is_empty() {
        return Err(unsupported("set a domain name"));
    }
    out.Annotations = spec.annotations.clone().into_iter().collect();
    if let Some(hooks) = &spec.hooks
        && !(hooks.create_container.is_empty() && hooks.start_container.is_empty())
    {
        return Err(unsupported(
            "run createContainer or startContainer hooks: they belong into the container's namespaces, which are in the guest",
        ));
    }
    let mut root = pb::Root::new();
    root.Path = format!("{GUEST_SHARE_DIR}/{container}/rootfs");
    root.Readonly = spec.root.as_ref().is_some_and(|r| r.readonly);
    out.Root = MessageField::some(root);
    if let Some(p) = &spec.process {
        if !p.apparmor_profile.is_empty() || !p.selinux_label.is_empty() {
            notes.push("the process's LSM label belongs to the host and is not applied in the guest".into());
        }
        out.Process = MessageField::some(convert::process(p));
    }
    let Sources { binds, shm, mut storages, mut disks } = mounts(spec, &mut out, &mut notes, host)?;
    let limited = spec.linux.as_ref().and_then(|l| l.resources.as_ref());
    let cpuset = limited.map(Cpuset::of).transpose()?.unwrap_or_default();
    let ask = linux(spec, &mut out, limits, &cpuset, &mut notes, &mut disks)?;
    let huge = limited.map_or(&[][..], |r| &r.hugepage_limits);
    for storage in storages.iter_mut().filter(|s| s.fstype == "hugetlbfs") {
        volumes::limit_huge_pages(storage, huge).map_err(unsupported)?;
    }
    Ok(Plan { spec: out, binds, shm, storages, disks, ask, cpuset, notes })
}

/// What mounts are made of.
#[derive(Default)]
struct Sources {
    binds: Vec<Bind>,
    shm: Option<(usize, PathBuf)>,
    storages: Vec<kata_proto::agent::Storage>,
    disks: Vec<Disk>,
}

fn rules(spec: &Spec) -> &[kata_oci::DeviceCgroup] {
    spec.linux.as_ref().and_then(|l| l.resources.as_ref()).map_or(&[], |r| &r.devices)
}

fn mounts(spec: &Spec, out: &mut pb::Spec, notes: &mut Vec<String>, host: &dyn Host) -> Result<Sources, PlanError> {
    let Sources { mut binds, mut shm, mut storages, mut disks } = Sources::default();
    for m in &spec.mounts {
        let mut guest = convert::mount(m);
        if m.is_bind() {
            let source = Path::new(&m.source);
            let fail = |reason: String| PlanError::Bind {
                source_path: source.to_owned(),
                destination: m.destination.clone(),
                reason,
            };
            if m.destination == "/dev/shm" {
                shm = Some((out.Mounts.len(), source.to_owned()));
                out.Mounts.push(shared_memory(m, host));
                continue;
            }
            if m.options.iter().any(|o| o == "shared" || o == "rshared") {
                return Err(fail(
                    "what is mounted below it in the guest is not seen on the host, which the propagation \"rshared\" \
                     (Bidirectional) asks for"
                        .into(),
                ));
            }
            if let Some(volume) = volumes::in_memory(source, host) {
                for storage in volume.storages {
                    if !storages.contains(&storage) {
                        storages.push(storage);
                    }
                }
                guest.source = volume.source;
                as_bind(&mut guest);
                out.Mounts.push(guest);
                continue;
            }
            match host.kind(source).map_err(fail)? {
                FileKind::Directory | FileKind::File => {}
                FileKind::Endpoint => notes.push(format!(
                    "{} is a socket or FIFO of the host: the container sees it, but cannot reach its other end",
                    m.source
                )),
                FileKind::Device(node) if node.block => match devices::access(rules(spec), node) {
                    // As without a VM: it can be seen, and the rules let nobody open it.
                    (false, _) => notes.push(format!(
                        "{} is a block device that linux.resources.devices does not allow: the container sees it, but \
                         cannot open it",
                        m.source
                    )),
                    (true, write) => {
                        let read_only = m.is_read_only() || !write;
                        let container_path = m.destination.clone();
                        disks.push(Disk { major: node.major, minor: node.minor, read_only, container_path });
                        // The agent puts the guest's node here.
                        guest.source.clear();
                        as_bind(&mut guest);
                        out.Mounts.push(guest);
                        continue;
                    }
                },
                FileKind::Device(node) => {
                    let own = devices::guests_own(node);
                    guest.source = own
                        .ok_or_else(|| fail("it is a device node of the host, which the guest does not have".into()))?
                        .into();
                    as_bind(&mut guest);
                    out.Mounts.push(guest);
                    continue;
                }
            }
            as_bind(&mut guest);
            binds.push(Bind {
                mount: out.Mounts.len(),
                source: source.to_owned(),
                read_only: m.is_read_only(),
                recursive: m.is_recursive(),
                later: m.options.iter().any(|o| o == "slave" || o == "rslave"),
                // What the container may write must reach the host: it is no copy then.
                followed: m.is_read_only() && volumes::is_updated(source),
            });
        }
        out.Mounts.push(guest);
    }
    Ok(Sources { binds, shm, storages, disks })
}

/// The guest mounts what is in the share; a bind of a bind takes everything below it along.
fn as_bind(guest: &mut pb::Mount) {
    guest.type_ = "bind".into();
    if !guest.options.iter().any(|o| o == "bind" || o == "rbind") {
        guest.options.push("rbind".into());
    }
}

/// A bind over /dev/shm is some engine's tmpfs of the host's (podman's): shared memory must be the guest's own, of
/// the same size.
fn shared_memory(m: &Mount, host: &dyn Host) -> pb::Mount {
    let mut shm = pb::Mount::new();
    shm.destination.clone_from(&m.destination);
    shm.source = "shm".into();
    shm.type_ = "tmpfs".into();
    shm.options = ["nosuid", "noexec", "nodev", "mode=1777"].map(str::to_owned).to_vec();
    let said = m.options.iter().find(|o| o.starts_with("size=")).cloned();
    shm.options.extend(said.or_else(|| host.size(Path::new(&m.source)).map(|bytes| format!("size={bytes}"))));
    shm
}

fn linux(
    spec: &Spec,
    out: &mut pb::Spec,
    limits: Limits,
    cpuset: &Cpuset,
    notes: &mut Vec<String>,
    disks: &mut Vec<Disk>,
) -> Result<Ask, PlanError> {
    let Some(l) = &spec.linux else { return Ok(Ask::default()) };
    let mut linux = pb::Linux::new();
    linux.UIDMappings = convert::id_mappings(&l.uid_mappings);
    linux.GIDMappings = convert::id_mappings(&l.gid_mappings);
    linux.Sysctl = l.sysctl.clone().into_iter().collect();
    linux.RootfsPropagation.clone_from(&l.rootfs_propagation);
    linux.MaskedPaths.clone_from(&l.masked_paths);
    linux.ReadonlyPaths.clone_from(&l.readonly_paths);
    for n in &l.namespaces {
        if n.kind == "network" {
            // The guest's own network is the container's: the VM is that namespace.
            continue;
        }
        if !n.path.is_empty() && !n.path.starts_with(GUEST_NS_DIR) {
            return Err(unsupported(format!("join the {} namespace {}: it is the host's", n.kind, n.path)));
        }
        let mut ns = pb::LinuxNamespace::new();
        ns.Type.clone_from(&n.kind);
        // Of those that the sandbox's containers share, as `crate::shared` has found them.
        ns.Path.clone_from(&n.path);
        linux.Namespaces.push(ns);
    }
    for d in &l.devices {
        match devices::node_of(d) {
            Some(node) if node.block => match devices::access(rules(spec), node) {
                (false, _) => notes.push(format!(
                    "the block device {} is not allowed by linux.resources.devices: it has a node that nobody can open",
                    d.path
                )),
                (true, write) => disks.push(Disk {
                    major: d.major,
                    minor: d.minor,
                    read_only: !write,
                    container_path: d.path.clone(),
                }),
            },
            Some(node) if devices::guests_own(node).is_none() => {
                return Err(unsupported(format!(
                    "pass the host's device {} ({} {}:{}) to the guest (a privileged container gets all devices of the \
                     host; containerd leaves them out with privileged_without_host_devices)",
                    d.path, d.kind, d.major, d.minor
                )));
            }
            _ => {}
        }
        linux.Devices.push(convert::device(d));
    }
    if l.seccomp.is_some() {
        if !limits.drop_seccomp {
            return Err(unsupported("apply a seccomp profile in the guest; set runtime.disable_guest_seccomp = true"));
        }
        notes.push("the seccomp profile is dropped (runtime.disable_guest_seccomp)".into());
    }
    let ask = match &l.resources {
        Some(r) => {
            for file in r.unified.keys().filter(|file| !convert::goes_to_guest(file)) {
                notes.push(format!(
                    "linux.resources.unified: {file} names what the host has and is not applied in the guest"
                ));
            }
            let mut resources = convert::resources(r, cpuset.in_guest(limits.max_vcpus));
            if let Some(b) = &r.block_io {
                let plugged: Vec<(i64, i64)> = disks.iter().map(|d| (d.major, d.minor)).collect();
                convert::device_limits(b, &plugged, resources.BlockIO.mut_or_insert_default());
                let named = b.weight_device.iter().map(|w| (w.major, w.minor));
                let lists = [
                    &b.throttle_read_bps_device,
                    &b.throttle_write_bps_device,
                    &b.throttle_read_iops_device,
                    &b.throttle_write_iops_device,
                ];
                let named = named.chain(lists.into_iter().flatten().map(|t| (t.major, t.minor)));
                for (major, minor) in named.filter(|n| !plugged.contains(n)) {
                    notes.push(format!(
                        "a limit of block IO names the host's device {major}:{minor}, which the guest does not have, and is not \
                         applied"
                    ));
                }
            }
            linux.Resources = MessageField::some(resources);
            sizes(r, limits)?
        }
        None => Ask::default(),
    };
    out.Linux = MessageField::some(linux);
    Ok(ask)
}

/// What limits ask of the VM.
///
/// # Errors
/// [`PlanError::TooLittleMemory`], [`PlanError::TooMuch`].
pub fn sizes(r: &kata_oci::Resources, limits: Limits) -> Result<Ask, PlanError> {
    const LEAST: i64 = 4 << 20;
    let memory = match r.memory.as_ref().and_then(|m| m.limit) {
        Some(bytes) if bytes > 0 && bytes < LEAST => return Err(PlanError::TooLittleMemory { bytes }),
        // A limit beyond the host's own memory is common ("no limit" in disguise): the VM gets what there is.
        Some(bytes) if bytes > 0 => Some(Mib::from_bytes_round_up(bytes.unsigned_abs())),
        _ => None,
    };
    let cpu = r.cpu.as_ref().and_then(|c| Millicpus::of(c.quota, c.period));
    if let Some(n) = cpu.map(Millicpus::cpus).filter(|n| *n > limits.max_vcpus) {
        return Err(PlanError::TooMuch {
            what: "vCPUs",
            asked: n.into(),
            key: "default_maxvcpus",
            max: limits.max_vcpus.into(),
        });
    }
    Ok(Ask { memory, cpu })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;
    impl Host for Fake {
        fn kind(&self, path: &Path) -> Result<FileKind, String> {
            match path.to_str().unwrap_or_default() {
                "/dev/fuse" => Ok(FileKind::Device(Node { block: false, major: 10, minor: 229 })),
                "/dev/watchdog" => Ok(FileKind::Device(Node { block: false, major: 10, minor: 130 })),
                "/dev/sdb" => Ok(FileKind::Device(Node { block: true, major: 8, minor: 16 })),
                "/run/x.sock" => Ok(FileKind::Endpoint),
                "/etc/hosts" => Ok(FileKind::File),
                p if p.starts_with("/data") || p.starts_with("/var/lib/kubelet") => Ok(FileKind::Directory),
                _ => Err("No such file or directory".into()),
            }
        }
        fn size(&self, _: &Path) -> Option<u64> {
            Some(65_536_000)
        }
    }

    const LIMITS: Limits = Limits { max_vcpus: 4, drop_seccomp: true };

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    fn go(json: &str) -> Result<Plan, PlanError> {
        plan(&spec(json), "c1", LIMITS, &Fake)
    }

    #[test]
    fn sources_are_shared_and_shm_is_the_guests_own() {
        let p = go(r#"{"mounts":[
            {"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/d","type":"bind","source":"/data","options":["rbind","ro"]},
            {"destination":"/dev/shm","type":"bind","source":"/data/shm","options":["bind"]},
            {"destination":"/etc/hosts","source":"/etc/hosts","options":["bind"]}]}"#)
        .unwrap();
        assert_eq!(
            p.binds,
            [
                Bind {
                    mount: 1,
                    source: "/data".into(),
                    read_only: true,
                    recursive: true,
                    later: false,
                    followed: false
                },
                Bind {
                    mount: 3,
                    source: "/etc/hosts".into(),
                    read_only: false,
                    recursive: false,
                    later: false,
                    followed: false
                },
            ]
        );
        assert_eq!(p.shm, Some((2, "/data/shm".into())));
        assert_eq!(p.spec.Mounts[2].type_, "tmpfs");
        assert!(p.spec.Mounts[2].options.contains(&"size=65536000".to_owned()));
        assert_eq!(p.spec.Root.Path, format!("{GUEST_SHARE_DIR}/c1/rootfs"));
    }

    #[test]
    fn what_the_guest_cannot_have_is_said_by_name() {
        for (json, part) in [
            (r#"{"mounts":[{"destination":"/x","type":"bind","source":"/nowhere"}]}"#, "/nowhere at /x: No such file"),
            (r#"{"mounts":[{"destination":"/x","type":"bind","source":"/dev/watchdog"}]}"#, "device node"),
            (
                r#"{"mounts":[{"destination":"/x","type":"bind","source":"/data","options":["rshared"]}]}"#,
                "Bidirectional",
            ),
            (r#"{"linux":{"namespaces":[{"type":"ipc","path":"/proc/1/ns/ipc"}]}}"#, "/proc/1/ns/ipc"),
            (r#"{"linux":{"devices":[{"path":"/dev/w","type":"c","major":10,"minor":130}]}}"#, "/dev/w (c 10:130)"),
            (r#"{"linux":{"resources":{"memory":{"limit":1000}}}}"#, "1000 bytes"),
            (r#"{"linux":{"resources":{"cpu":{"quota":900000,"period":100000}}}}"#, "default_maxvcpus"),
            (r#"{"hooks":{"createContainer":[{"path":"/h"}]}}"#, "createContainer"),
        ] {
            let got = go(json).unwrap_err().to_string();
            assert!(got.contains(part), "{got}");
        }
        let p = go(r#"{"mounts":[{"destination":"/x","type":"bind","source":"/run/x.sock"}]}"#).unwrap();
        assert!(p.notes[0].contains("/run/x.sock"));
    }

    #[test]
    fn devices_are_the_guests_own_or_plugged_as_far_as_the_rules_allow() {
        let p = go(r#"{"mounts":[
            {"destination":"/dev/fuse","type":"bind","source":"/dev/fuse","options":["bind"]},
            {"destination":"/disk","type":"bind","source":"/dev/sdb","options":["bind","ro"]}],
          "linux":{"devices":[{"path":"/dev/xvda","type":"b","major":8,"minor":16},
                              {"path":"/dev/no","type":"b","major":8,"minor":32},
                              {"path":"/dev/net/tun","type":"c","major":10,"minor":200}],
                   "resources":{"devices":[{"allow":false,"access":"rwm"},
                                           {"allow":true,"type":"b","major":8,"minor":16,"access":"rwm"}]}}}"#)
        .unwrap();
        assert_eq!((p.spec.Mounts[0].source.as_str(), p.spec.Mounts[1].source.as_str()), ("/dev/fuse", ""));
        let disk = |at: &str, read_only| Disk { major: 8, minor: 16, read_only, container_path: at.into() };
        assert_eq!(p.disks, [disk("/disk", true), disk("/dev/xvda", false)]);
        assert!(p.binds.is_empty() && p.notes.len() == 1 && p.notes[0].contains("/dev/no"), "{:?}", p.notes);
        // Without a rule it is a node of the share's, as without a VM.
        let p = go(r#"{"mounts":[{"destination":"/disk","type":"bind","source":"/dev/sdb"}]}"#).unwrap();
        assert!(p.disks.is_empty() && p.binds.len() == 1 && p.notes[0].contains("/dev/sdb"));
    }

    #[test]
    fn what_kubernetes_updates_is_followed_unless_it_is_written_to() {
        let p = go(r#"{"mounts":[
            {"destination":"/a","type":"bind","source":"/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/s","options":["rbind","ro"]},
            {"destination":"/b","type":"bind","source":"/var/lib/kubelet/pods/u/volumes/kubernetes.io~secret/s","options":["rbind"]}]}"#)
        .unwrap();
        assert_eq!([p.binds[0].followed, p.binds[1].followed], [true, false]);
    }

    #[test]
    fn limits_that_name_what_the_guest_has_reach_it() {
        let p = go(r#"{"linux":{"devices":[{"path":"/dev/xvda","type":"b","major":8,"minor":16}],
          "resources":{"devices":[{"allow":true,"access":"rwm"}],
            "unified":{"memory.high":"1000","cpuset.cpus":"3","io.max":"8:0 rbps=1"},
            "hugepageLimits":[{"pageSize":"2MB","limit":4096}],
            "blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":16,"rate":9},{"major":8,"minor":0,"rate":9}]}}}}"#)
        .unwrap();
        let r = &p.spec.Linux.Resources;
        assert_eq!(r.Unified.iter().collect::<Vec<_>>(), [(&"memory.high".to_owned(), &"1000".to_owned())]);
        assert_eq!((r.HugepageLimits[0].Pagesize.as_str(), r.HugepageLimits[0].Limit), ("2MB", 4096));
        assert_eq!((r.BlockIO.Weight, r.BlockIO.ThrottleReadBpsDevice.len()), (10, 1));
        let notes = p.notes.join("\n");
        assert!(p.notes.len() == 3 && notes.contains("cpuset.cpus") && notes.contains("io.max"), "{notes}");
        assert!(notes.contains("8:0"), "{notes}");
    }

    #[test]
    fn limits_become_sizes() {
        let p = go(r#"{"linux":{"resources":{"memory":{"limit":134217729},"cpu":{"quota":150000,"period":100000}},
                     "namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/x"}]}}"#)
        .unwrap();
        assert_eq!(p.ask, Ask { memory: Some(Mib(129)), cpu: Some(Millicpus(1500)) });
        assert_eq!(p.spec.Linux.Namespaces.len(), 1, "the network namespace is the VM itself");
        let p = go(r#"{"linux":{"resources":{"memory":{"limit":-1},"cpu":{"quota":-1}}}}"#).unwrap();
        assert_eq!(p.ask, Ask::default());
    }
}
