//! Kubernetes' volumes by where the kubelet keeps them: `<root>/pods/<uid>/volumes/<plugin>/<name>`, and, for a subPath,
//! `<root>/pods/<uid>/volume-subpaths/<name>/<container>/<n>`.

use std::path::{Path, PathBuf};

use kata_oci::HugepageLimit;
use kata_proto::agent::Storage;
use kata_types::GUEST_SANDBOX_DIR;
use sha2::{Digest, Sha256};

use super::Host;

/// Volumes whose content Kubernetes writes and updates.
const UPDATED: [&str; 4] =
    ["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"];
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// A file system in the host's memory, at its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFs {
    /// Huge pages of so many bytes; `None`: tmpfs.
    pub page_size: Option<u64>,
    /// How much fits, in bytes; 0: no limit.
    pub bytes: u64,
    /// Permission bits of its root.
    pub mode: u32,
    /// Owner of its root.
    pub uid: u32,
    /// Group of its root.
    pub gid: u32,
}

fn plugin(path: &Path) -> Option<&str> {
    path.parent()?.file_name()?.to_str()
}

/// Whether the kubelet updates what is in it. A subPath is not updated, and is none of these.
pub fn is_updated(source: &Path) -> bool {
    plugin(source).is_some_and(|p| UPDATED.contains(&p))
}

/// Where in the guest's memory a volume of the host's memory is, and what makes it so.
#[derive(Debug, Clone, PartialEq)]
pub struct InMemory {
    /// In the order in which they are made.
    pub storages: Vec<Storage>,
    /// What the container mounts.
    pub source: String,
}

/// An emptyDir in memory: the same of the guest's, for all containers of the sandbox, until it ends.
pub fn in_memory(source: &Path, host: &dyn Host) -> Option<InMemory> {
    if plugin(source) == Some(EMPTY_DIR) {
        let storage = storage_of(source, &host.memory_fs(source)?);
        return Some(InMemory { source: storage.mount_point.clone(), storages: vec![storage] });
    }
    let (volume, inside) = sub_path(source, host)?;
    let whole = storage_of(&volume, &host.memory_fs(&volume)?);
    let point = Path::new(&whole.mount_point).join(inside).to_string_lossy().into_owned();
    let mut part = Storage::new();
    part.driver = "local".into();
    part.mount_point.clone_from(&point);
    part.shared = true;
    Some(InMemory { storages: vec![whole, part], source: point })
}

fn storage_of(volume: &Path, fs: &MemoryFs) -> Storage {
    let digest = hex::encode(&Sha256::digest(volume.as_os_str().as_encoded_bytes())[..8]);
    let mut storage = Storage::new();
    storage.driver = "ephemeral".into();
    storage.mount_point = format!("{GUEST_SANDBOX_DIR}/ephemeral/{digest}");
    storage.shared = true;
    let kind = if fs.page_size.is_some() { "hugetlbfs" } else { "tmpfs" };
    storage.source = kind.into();
    storage.fstype = kind.into();
    storage.options = vec![format!("mode={:o}", fs.mode), format!("uid={}", fs.uid), format!("gid={}", fs.gid)];
    if let Some(size) = fs.page_size {
        storage.options.push(format!("pagesize={size}"));
    }
    if fs.bytes > 0 {
        storage.options.push(format!("size={}", fs.bytes));
    }
    storage
}

/// Huge pages must be set aside, so how many must be known: from the volume's size, else from the container's limit.
///
/// # Errors
/// What is missing.
pub fn limit_huge_pages(storage: &mut Storage, limits: &[HugepageLimit]) -> Result<(), String> {
    let option = |name: &str| storage.options.iter().find_map(|o| o.strip_prefix(name)?.parse::<u64>().ok());
    if option("size=").is_some() {
        return Ok(());
    }
    let page = option("pagesize=").unwrap_or(0);
    // "2MB", "1GB": the cgroup's names for sizes (mm/hugetlb_cgroup.c, `mem_fmt`).
    let name = match page {
        p if p >= 1 << 30 => format!("{}GB", p >> 30),
        p if p >= 1 << 20 => format!("{}MB", p >> 20),
        p => format!("{}KB", p >> 10),
    };
    match limits.iter().find(|l| l.page_size == name).map(|l| l.limit).filter(|l| *l > 0 && *l < 1 << 50) {
        Some(bytes) => storage.options.push(format!("size={bytes}")),
        None => {
            return Err(format!(
                "set huge pages of {name} aside for a volume without a size: give the container a limit"
            ));
        }
    }
    Ok(())
}

/// The volume that a subPath is of, if that is an emptyDir in memory, and where in it.
fn sub_path(source: &Path, host: &dyn Host) -> Option<(PathBuf, PathBuf)> {
    let container = source.parent()?;
    let volume = container.parent()?;
    let all = volume.parent().filter(|all| all.ends_with("volume-subpaths"))?;
    let volume = all.parent()?.join("volumes").join(EMPTY_DIR).join(volume.file_name()?);
    host.memory_fs(&volume)?;
    let inside = host.root_of_mount(source)?;
    let inside = inside.strip_prefix("/").ok()?;
    let plain = inside.components().all(|c| matches!(c, std::path::Component::Normal(_)));
    plain.then(|| (volume, inside.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::{FileKind, Host};
    use super::*;

    struct Kubelet;
    impl Host for Kubelet {
        fn kind(&self, _: &Path) -> Result<FileKind, String> {
            Ok(FileKind::Directory)
        }
        fn size(&self, _: &Path) -> Option<u64> {
            None
        }
        fn memory_fs(&self, path: &Path) -> Option<MemoryFs> {
            let fs = MemoryFs { page_size: None, bytes: 1 << 20, mode: 0o2777, uid: 0, gid: 1000 };
            match path.file_name()?.to_str()? {
                "cache" => Some(fs),
                "huge" => Some(MemoryFs { page_size: Some(2 << 20), bytes: 0, ..fs }),
                _ => None,
            }
        }
        fn root_of_mount(&self, path: &Path) -> Option<PathBuf> {
            path.starts_with("/k/pods/u/volume-subpaths").then(|| PathBuf::from("/sub/dir"))
        }
    }

    #[test]
    fn what_is_updated_is_told_by_its_plugin_alone() {
        for name in UPDATED {
            assert!(is_updated(Path::new("/var/lib/kubelet/pods/u/volumes").join(name).join("v").as_path()));
        }
        for other in [
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/v",
            "/var/lib/kubelet/pods/u/volumes/kubernetes.io~configmap/v/..data",
            "/var/lib/kubelet/pods/u/volume-subpaths/v/c/0",
            "/kubernetes.io~secret",
        ] {
            assert!(!is_updated(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn memory_volumes_are_the_guests_own_with_size_and_owner() {
        let at = |path: &str| in_memory(Path::new(path), &Kubelet);
        let cache = at("/k/pods/u/volumes/kubernetes.io~empty-dir/cache").unwrap();
        let storage = &cache.storages[0];
        assert_eq!(storage.options, ["mode=2777", "uid=0", "gid=1000", "size=1048576"]);
        assert!(storage.shared && storage.fstype == "tmpfs" && cache.source == storage.mount_point);
        let huge = at("/k/pods/u/volumes/kubernetes.io~empty-dir/huge").unwrap();
        assert_ne!(huge.source, cache.source);
        assert_eq!(huge.storages[0].options[3..], ["pagesize=2097152"]);
        assert_eq!(huge.storages[0].fstype, "hugetlbfs");
        let mut pages = huge.storages[0].clone();
        assert!(limit_huge_pages(&mut pages, &[]).unwrap_err().contains("2MB"));
        let limit = |size: &str, limit| HugepageLimit { page_size: size.into(), limit };
        limit_huge_pages(&mut pages, &[limit("1GB", 1 << 30), limit("2MB", 4 << 20)]).unwrap();
        assert_eq!(pages.options.last().unwrap(), "size=4194304");
        assert_eq!(at("/k/pods/u/volumes/kubernetes.io~empty-dir/disk"), None);
        assert_eq!(at("/somewhere/cache"), None);
        // A subPath is a directory in it.
        let part = at("/k/pods/u/volume-subpaths/cache/c/0").unwrap();
        assert_eq!(part.storages[0], cache.storages[0]);
        assert_eq!(part.source, format!("{}/sub/dir", cache.source));
        assert_eq!(part.storages[1].mount_point, part.source);
        assert_eq!(at("/k/pods/u/volume-subpaths/disk/c/0"), None);
    }
}
