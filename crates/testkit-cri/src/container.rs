//! Containers of pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_testkit::image::BUSYBOX;
use kata_testkit::wait;
use tonic::Status;

use crate::api;
use crate::log::Log;
use crate::pod::Pod;
use crate::stream::Streams;

/// Where the kubelet tells containers to leave their last words.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// For a command that does not take long, in a VM on a slow machine.
const EXEC: i64 = 60;

/// A container to be.
pub struct ContainerSpec<'a> {
    pod: &'a Pod<'a>,
    config: api::ContainerConfig,
}

impl<'a> ContainerSpec<'a> {
    pub(crate) fn new(pod: &'a Pod<'a>, name: &str) -> ContainerSpec<'a> {
        let config = api::ContainerConfig {
            metadata: Some(api::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(api::ImageSpec { image: BUSYBOX.into(), ..Default::default() }),
            linux: Some(api::LinuxContainerConfig {
                resources: Some(api::LinuxContainerResources::default()),
                security_context: Some(api::LinuxContainerSecurityContext {
                    namespace_options: pod
                        .config()
                        .linux
                        .as_ref()
                        .and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone()),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        ContainerSpec { pod, config }.bind(&pod.dir().join("etc-hosts"), "/etc/hosts")
    }

    /// Changes what the kubelet would say.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut api::ContainerConfig)) -> ContainerSpec<'a> {
        change(&mut self.config);
        self
    }

    /// Changes its limits.
    ///
    /// # Panics
    /// On a configuration without them.
    #[must_use]
    pub fn limits(self, change: impl FnOnce(&mut api::LinuxContainerResources)) -> ContainerSpec<'a> {
        self.with(|config| change(config.linux.get_or_insert_default().resources.get_or_insert_default()))
    }

    /// Changes what it may do, and as whom.
    #[must_use]
    pub fn security(self, change: impl FnOnce(&mut api::LinuxContainerSecurityContext)) -> ContainerSpec<'a> {
        self.with(|config| change(config.linux.get_or_insert_default().security_context.get_or_insert_default()))
    }

    /// A shell command line as the command.
    #[must_use]
    pub fn sh(self, script: &str) -> ContainerSpec<'a> {
        self.with(|config| config.command = ["sh", "-c", script].map(str::to_owned).to_vec())
    }

    /// How many of its name there were before.
    #[must_use]
    pub fn attempt(self, attempt: u32) -> ContainerSpec<'a> {
        self.with(|config| config.metadata.get_or_insert_default().attempt = attempt)
    }

    /// Binds a file or directory of the host.
    #[must_use]
    pub fn bind(self, host: &Path, container: &str) -> ContainerSpec<'a> {
        self.mount(api::Mount {
            host_path: host.display().to_string(),
            container_path: container.into(),
            ..Default::default()
        })
    }

    /// Binds one that it cannot write to.
    #[must_use]
    pub fn bind_read_only(self, host: &Path, container: &str) -> ContainerSpec<'a> {
        self.mount(api::Mount {
            host_path: host.display().to_string(),
            container_path: container.into(),
            readonly: true,
            ..Default::default()
        })
    }

    /// Adds a mount.
    #[must_use]
    pub fn mount(self, mount: api::Mount) -> ContainerSpec<'a> {
        self.with(|config| config.mounts.push(mount))
    }

    fn name(&self) -> (&str, u32) {
        self.config.metadata.as_ref().map_or(("", 0), |m| (m.name.as_str(), m.attempt))
    }

    /// Makes it.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn create(self) -> Container<'a> {
        let name = self.name().0.to_owned();
        self.try_create().unwrap_or_else(|e| panic!("CreateContainer {name}: {e}"))
    }

    /// Makes it, or not.
    ///
    /// # Errors
    /// The runtime's.
    ///
    /// # Panics
    /// When a file of the kubelet's cannot be made.
    pub fn try_create(self) -> Result<Container<'a>, Status> {
        let (name, attempt) = self.name();
        let words = self.pod.dir().join("containers").join(name).join(format!("{attempt:08x}"));
        let log = format!("{name}_{attempt}.log");
        let made = words.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&words, ""));
        made.unwrap_or_else(|e| panic!("cannot make {}: {e}", words.display()));
        let mut this = self.bind(&words, TERMINATION_LOG);
        this.config.log_path.clone_from(&log);
        let log = Path::new(&this.pod.config().log_directory).join(log);
        let request = api::CreateContainerRequest {
            pod_sandbox_id: this.pod.id().to_owned(),
            config: Some(this.config),
            sandbox_config: Some(this.pod.config().clone()),
        };
        let answer = this.pod.client().create_container(request)?;
        Ok(Container { pod: this.pod, id: answer.container_id, log, words })
    }

    /// Makes it and starts it.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn start(self) -> Container<'a> {
        let container = self.create();
        container.start();
        container
    }
}

/// How a command in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code.
    pub code: i32,
    /// Without the white space around it.
    pub stdout: String,
    /// Without the white space around it.
    pub stderr: String,
}

/// A container.
pub struct Container<'a> {
    pod: &'a Pod<'a>,
    id: String,
    log: PathBuf,
    words: PathBuf,
}

impl Container<'_> {
    /// What containerd calls it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `StartContainer`.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn start(&self) {
        self.try_start().unwrap_or_else(|e| panic!("StartContainer: {e}"));
    }

    /// `StartContainer`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn try_start(&self) -> Result<(), Status> {
        let request = api::StartContainerRequest { container_id: self.id.clone() };
        self.pod.client().start_container(request).map(drop)
    }

    /// `StopContainer`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn stop(&self, timeout: Duration) -> Result<(), Status> {
        let timeout = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        self.pod.client().stop_container(api::StopContainerRequest { container_id: self.id.clone(), timeout }).map(drop)
    }

    /// `RemoveContainer`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn remove(&self) -> Result<(), Status> {
        let request = api::RemoveContainerRequest { container_id: self.id.clone() };
        self.pod.client().remove_container(request).map(drop)
    }

    /// What there is to tell of it.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn status(&self) -> api::ContainerStatus {
        let request = api::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer = self.pod.client().container_status(request).unwrap_or_else(|e| panic!("ContainerStatus: {e}"));
        answer.status.unwrap_or_default()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn ends(&self, within: Duration) -> api::ContainerStatus {
        wait::until(&format!("end of the container {}; it said {:?}", self.id, self.log()), within, || {
            let status = self.status();
            (status.state() == api::ContainerState::ContainerExited).then_some(status)
        })
    }

    /// Its log.
    pub fn log(&self) -> Log {
        Log::read(&self.log)
    }

    /// Its log's file.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// The file of its last words.
    pub fn last_words(&self) -> String {
        fs::read_to_string(&self.words).unwrap_or_default()
    }

    /// Waits until it has written this to stdout.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn says(&self, text: &str, within: Duration) {
        let start = std::time::Instant::now();
        loop {
            let log = self.log();
            if log.stdout.contains(text) {
                return;
            }
            assert!(start.elapsed() < within, "the container did not say {text:?}; its log: {log:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a shell command line in it, through `ExecSync`.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn exec(&self, script: &str) -> Executed {
        self.try_exec(&["sh", "-c", script], EXEC).unwrap_or_else(|e| panic!("ExecSync of {script:?}: {e}"))
    }

    /// The stdout of a shell command line that ends well.
    ///
    /// # Panics
    /// With how it ended else.
    pub fn out(&self, script: &str) -> String {
        let done = self.exec(script);
        assert_eq!(done.code, 0, "{script:?} failed: {done:?}");
        done.stdout
    }

    /// `ExecSync`; `timeout` in seconds, 0 for none.
    ///
    /// # Errors
    /// The runtime's.
    pub fn try_exec(&self, cmd: &[&str], timeout: i64) -> Result<Executed, Status> {
        let cmd = cmd.iter().map(|&word| word.to_owned()).collect();
        let answer =
            self.pod.client().exec_sync(api::ExecSyncRequest { container_id: self.id.clone(), cmd, timeout })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ok(Executed { code: answer.exit_code, stdout: text(&answer.stdout), stderr: text(&answer.stderr) })
    }

    /// Runs a command in it with streams, as `kubectl exec -i` does.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn exec_with_streams(&self, cmd: &[&str], tty: bool) -> Streams {
        let answer = self.pod.client().exec(api::ExecRequest {
            container_id: self.id.clone(),
            cmd: cmd.iter().map(|&word| word.to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        });
        Streams::open(&answer.unwrap_or_else(|e| panic!("Exec: {e}")).url, tty)
    }

    /// Its own streams, as `kubectl attach -i` does.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn attach(&self, tty: bool) -> Streams {
        let answer = self.pod.client().attach(api::AttachRequest {
            container_id: self.id.clone(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        });
        Streams::open(&answer.unwrap_or_else(|e| panic!("Attach: {e}")).url, tty)
    }

    /// `UpdateContainerResources`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn update(&self, limits: api::LinuxContainerResources) -> Result<(), Status> {
        let request = api::UpdateContainerResourcesRequest { container_id: self.id.clone(), linux: Some(limits) };
        self.pod.client().update_container_resources(request).map(drop)
    }

    /// `ReopenContainerLog`.
    ///
    /// # Errors
    /// The runtime's.
    pub fn reopen_log(&self) -> Result<(), Status> {
        let request = api::ReopenContainerLogRequest { container_id: self.id.clone() };
        self.pod.client().reopen_container_log(request).map(drop)
    }

    /// `ContainerStats`.
    ///
    /// # Panics
    /// With what the runtime said.
    pub fn stats(&self) -> api::ContainerStats {
        let request = api::ContainerStatsRequest { container_id: self.id.clone() };
        let answer = self.pod.client().container_stats(request).unwrap_or_else(|e| panic!("ContainerStats: {e}"));
        answer.stats.unwrap_or_default()
    }
}
