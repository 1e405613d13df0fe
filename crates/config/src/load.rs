//! Finding, merging and checking the files.

use std::path::{Path, PathBuf};

use kata_types::Mib;
use thiserror::Error;
use toml::{Table, Value};

use crate::nearest::nearest;
use crate::{Config, InternetworkingModel, keys};

/// The most VMs that may wait: each takes memory.
const MAX_POOL: u32 = 1000;

/// What was loaded and from where.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The result.
    pub config: Config,
    /// The files, in the order in which they were merged; empty where there was none and defaults hold.
    pub files: Vec<PathBuf>,
}

/// Why the configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file that was named is not there, or not readable.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{path} is not valid TOML: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A key nobody knows.
    #[error("{path}: unknown key {key}{}", .nearest.as_ref().map(|n| format!("; did you mean {n}?")).unwrap_or_default())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The whole dotted key.
        key: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// A key of upstream's that this build does not do.
    #[error("{path}: {key} is not supported by this version; remove it")]
    NotHere {
        /// The file.
        path: PathBuf,
        /// The whole dotted key.
        key: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{path}: {reason}")]
    Value {
        /// The (last) file.
        path: PathBuf,
        /// Which key, what is wrong, what would be right.
        reason: String,
    },
}

/// Where the configuration is looked for, in order. `prefix` is where this program is installed.
pub fn search_path(prefix: &Path) -> Vec<PathBuf> {
    vec![
        PathBuf::from("/etc/kata-containers/configuration.toml"),
        prefix.join("share/defaults/kata-containers/configuration.toml"),
        PathBuf::from("/usr/share/defaults/kata-containers/configuration.toml"),
    ]
}

/// Loads `file`, or where none is given the first that exists of [`search_path`], and merges the drop-in files
/// `config.d/*.toml` beside it in the order of their names. With no file at all, the defaults hold. QEMU, kernel and
/// initrd that are not set are looked for in the installation below `prefix`.
///
/// # Errors
/// [`ConfigError`], naming file and key.
pub fn load(file: Option<&Path>, prefix: &Path) -> Result<Loaded, ConfigError> {
    let main = match file {
        Some(f) => Some(f.to_owned()),
        None => search_path(prefix).into_iter().find(|p| p.exists()),
    };
    let mut table = Table::new();
    let mut files = Vec::new();
    if let Some(main) = main {
        let drop_ins = drop_ins(&main)?;
        for path in std::iter::once(main).chain(drop_ins) {
            let one = read(&path)?;
            check_keys(&path, "", &one)?;
            merge(&mut table, one);
            files.push(path);
        }
    }
    let last = files.last().cloned().unwrap_or_else(|| PathBuf::from("(no configuration file)"));
    let bad = |reason: String| ConfigError::Value { path: last.clone(), reason };
    let mut config: Config =
        Value::Table(table).try_into().map_err(|e: toml::de::Error| bad(e.to_string().trim().replace('\n', " ")))?;
    check_values(&config).map_err(bad)?;
    let share = prefix.join("share/kata-containers");
    let qemu = &mut config.hypervisor.qemu;
    if qemu.path.as_os_str().is_empty() {
        qemu.path = default_qemu(prefix, Path::exists);
    }
    if qemu.kernel.as_os_str().is_empty() {
        qemu.kernel = share.join("vmlinux.elf");
    }
    if qemu.initrd.as_os_str().is_empty() {
        qemu.initrd = share.join("kata-containers-initrd.img");
    }
    if config.agent.kata.iptables.as_os_str().is_empty() {
        config.agent.kata.iptables = share.join("iptables");
    }
    Ok(Loaded { config, files })
}

/// Our own minimal QEMU where it is installed, by `cargo xtask install` or by its package; else the distribution's.
fn default_qemu(prefix: &Path, exists: impl Fn(&Path) -> bool) -> PathBuf {
    let name = format!("qemu-system-{}", std::env::consts::ARCH);
    let ours = [prefix, Path::new("/usr")].map(|dir| dir.join("libexec/kata-containers").join(&name));
    ours.into_iter().find(|path| exists(path)).unwrap_or_else(|| Path::new("/usr/bin").join(&name))
}

fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = main.with_file_name("config.d");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::Read { path: dir, source }),
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == "toml")).collect();
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    text.parse::<Table>()
        .map_err(|e| ConfigError::Syntax { path: path.to_owned(), reason: e.to_string().trim().replace('\n', " ") })
}

fn check_keys(path: &Path, prefix: &str, table: &Table) -> Result<(), ConfigError> {
    let known = keys::KNOWN.iter().find(|(p, _)| *p == prefix).map_or(&[][..], |(_, k)| *k);
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if !known.contains(&name.as_str()) {
            if keys::NOT_HERE.contains(&key.as_str()) {
                return Err(ConfigError::NotHere { path: path.to_owned(), key });
            }
            let nearest =
                nearest(name, known).map(|n| if prefix.is_empty() { n.into() } else { format!("{prefix}.{n}") });
            return Err(ConfigError::Unknown { path: path.to_owned(), key, nearest });
        }
        if let Value::Table(inner) = value {
            check_keys(path, &key, inner)?;
        }
    }
    Ok(())
}

/// Later files win key by key; lists are replaced whole.
fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

fn check_values(config: &Config) -> Result<(), String> {
    let q = &config.hypervisor.qemu;
    let fail = |key: &str, why: String| Err(format!("hypervisor.qemu.{key} {why}"));
    if !(q.default_vcpus > 0.0 && q.default_vcpus <= 240.0) {
        return fail("default_vcpus", format!("is {}; give a number over 0 and up to 240", q.default_vcpus));
    }
    if q.default_maxvcpus > 240 {
        return fail("default_maxvcpus", format!("is {}; at most 240", q.default_maxvcpus));
    }
    if q.default_memory < Mib(128) {
        return fail("default_memory", format!("is {} MiB; a guest needs at least 128", q.default_memory.0));
    }
    if q.shared_fs != "virtio-fs" {
        return fail("shared_fs", format!("is {:?}; this version has \"virtio-fs\"", q.shared_fs));
    }
    if q.uid_range.0 < 1000 || q.uid_range.1 < q.uid_range.0 {
        return fail("uid_range", "must be [first, last] with first at least 1000".into());
    }
    let f = &config.factory;
    if !f.template_path.is_absolute() {
        return Err(format!(
            "factory.template_path is {:?}; give an absolute path",
            f.template_path.display().to_string()
        ));
    }
    if f.vm_cache_number > MAX_POOL {
        return Err(format!("factory.vm_cache_number is {}; at most {MAX_POOL}", f.vm_cache_number));
    }
    let r = &config.runtime;
    if r.disable_new_netns && r.internetworking_model != InternetworkingModel::None {
        return Err(
            "runtime.disable_new_netns = true needs runtime.internetworking_model = \"none\": there is nobody to \
             connect the VM's network with the host's"
                .into(),
        );
    }
    if q.boot_timeout == 0 {
        return fail("boot_timeout", "is 0 seconds; nothing boots in that".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);
    impl Drop for Dir {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    fn dir(name: &str) -> Dir {
        let d = std::env::temp_dir().join(format!("kata-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(d.join("config.d")).unwrap();
        Dir(d)
    }

    fn error(text: &str) -> String {
        let d = dir("error");
        let file = d.0.join("configuration.toml");
        std::fs::write(&file, text).unwrap();
        load(Some(&file), Path::new("/p")).unwrap_err().to_string()
    }

    #[test]
    fn drop_ins_win_in_order_and_paths_default_to_the_prefix() {
        let d = dir("drop");
        let file = d.0.join("configuration.toml");
        std::fs::write(&file, "[hypervisor.qemu]\ndefault_memory = 512\nkernel_params = \"a\"\n").unwrap();
        std::fs::write(d.0.join("config.d/20.toml"), "[hypervisor.qemu]\ndefault_memory = 1024\n").unwrap();
        std::fs::write(d.0.join("config.d/10.toml"), "[hypervisor.qemu]\ndefault_memory = 700\nkernel = \"/k\"\n")
            .unwrap();
        let l = load(Some(&file), Path::new("/p")).unwrap();
        let q = &l.config.hypervisor.qemu;
        assert_eq!((q.default_memory, q.kernel.as_path(), q.kernel_params.as_str()), (Mib(1024), Path::new("/k"), "a"));
        assert_eq!(q.initrd, Path::new("/p/share/kata-containers/kata-containers-initrd.img"));
        assert_eq!(l.config.agent.kata.iptables, Path::new("/p/share/kata-containers/iptables"));
        assert_eq!(l.files.len(), 3);
    }

    #[test]
    fn our_qemu_is_taken_where_it_is_installed() {
        let name = format!("qemu-system-{}", std::env::consts::ARCH);
        let chosen = |there: &[&str]| {
            let there: Vec<PathBuf> = there.iter().map(|dir| Path::new(dir).join(&name)).collect();
            let path = default_qemu(Path::new("/p"), |path| there.iter().any(|t| t == path));
            path.parent().unwrap().to_owned()
        };
        let (installed, packaged) = ("/p/libexec/kata-containers", "/usr/libexec/kata-containers");
        assert_eq!(chosen(&[installed, packaged]), Path::new(installed));
        assert_eq!(chosen(&[packaged]), Path::new(packaged));
        assert_eq!(chosen(&[]), Path::new("/usr/bin"));
    }

    #[test]
    fn wrong_keys_and_values_are_named() {
        for (text, part) in [
            ("[hypervisor.qemu]\ndefault_memroy = 1", "did you mean hypervisor.qemu.default_memory?"),
            ("[runtime]\nenable_pprof = true", "runtime.enable_pprof is not supported"),
            ("[hypervisor.qemu]\ndefault_memory = 5", "at least 128"),
            ("[hypervisor.qemu]\ndefault_memory = \"x\"", "invalid type"),
            ("[hypervisor.qemu]\nshared_fs = \"virtio-9p\"", "shared_fs"),
            ("[hypervisor.qemu\n", "not valid TOML"),
            ("[proxy.kata]\n", "unknown key proxy"),
            ("[factory]\nvm_cache_number = 1001", "at most 1000"),
            ("[factory]\ntemplate_path = \"x\"", "absolute path"),
            ("[runtime]\ninternetworking_model = \"bridged\"", "unknown variant"),
            ("[runtime]\ndisable_new_netns = true", "internetworking_model = \"none\""),
            ("[factory]\nvm_cache_endpoint = \"/x\"", "not supported"),
        ] {
            let got = error(text);
            assert!(got.contains(part) && got.contains("configuration.toml"), "{got}");
        }
        assert!(
            load(Some(Path::new("/nowhere.toml")), Path::new("/p")).unwrap_err().to_string().contains("/nowhere.toml")
        );
    }

    #[test]
    fn every_field_has_its_key_in_the_table_and_back() {
        let table = Table::try_from(Config::default()).unwrap();
        check_keys(Path::new("defaults"), "", &table).unwrap();
        let mut fields = 0;
        for (name, keys) in keys::KNOWN.iter().filter(|(n, _)| n.contains('.') || ["runtime", "factory"].contains(n)) {
            let mut t = &table;
            for part in name.split('.') {
                t = t[part].as_table().unwrap();
            }
            assert_eq!(t.len(), keys.len(), "{name}");
            fields += keys.len();
        }
        assert!(fields > 15);
    }
}
