//! Plugging a network card: its taps are opened by whoever knows the network namespace, and come as descriptors, for QEMU
//! itself is in a namespace without a network.

use std::os::fd::OwnedFd;

use kata_types::MacAddr;
use kata_vmm::{DeviceError, DeviceId, GuestAddr, NicQueue};
use serde_json::{Value, json};

use super::{Backend, Plugged, QemuVm, device_name};
use crate::command::{port, port_path};

/// The name of the card's other end in QEMU.
pub(super) fn netdev(id: &DeviceId) -> String {
    format!("net-{}", id.0)
}

/// The queues' descriptors under the names by which QEMU will know them.
struct Descriptors {
    taps: Vec<(String, OwnedFd)>,
    vhosts: Vec<(String, OwnedFd)>,
}

impl Descriptors {
    fn new(id: &DeviceId, queues: Vec<NicQueue>) -> Result<Descriptors, String> {
        let mut all = Descriptors { taps: Vec::new(), vhosts: Vec::new() };
        for (n, queue) in queues.into_iter().enumerate() {
            all.taps.push((format!("tap-{}-{n}", id.0), queue.tap));
            all.vhosts.extend(queue.vhost.map(|vhost| (format!("vhost-{}-{n}", id.0), vhost)));
        }
        match (all.taps.len(), all.vhosts.len()) {
            (0, _) => Err("it has no queue".to_owned()),
            (taps, vhosts) if vhosts != 0 && vhosts != taps => {
                Err(format!("{vhosts} of its {taps} queues have vhost; all must, or none"))
            }
            _ => Ok(all),
        }
    }

    fn each(&self) -> impl Iterator<Item = &(String, OwnedFd)> {
        self.taps.iter().chain(&self.vhosts)
    }

    /// The arguments of `netdev_add` (QEMU's qapi/net.json, `NetdevTapOptions`).
    fn backend(&self, id: &DeviceId) -> Value {
        let names = |fds: &[(String, OwnedFd)]| fds.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(":");
        let mut backend = json!({ "type": "tap", "id": netdev(id), "vhost": !self.vhosts.is_empty() });
        // With one, `fds` would make a device of many queues out of it.
        let (fds, vhostfds) = if self.taps.len() == 1 { ("fd", "vhostfd") } else { ("fds", "vhostfds") };
        backend[fds] = json!(names(&self.taps));
        if !self.vhosts.is_empty() {
            backend[vhostfds] = json!(names(&self.vhosts));
        }
        backend
    }
}

/// The arguments of `device_add`.
fn card(id: &DeviceId, mac: MacAddr, port: &str, queues: usize) -> Value {
    let mut device = json!({
        "driver": "virtio-net-pci", "id": device_name(id), "bus": port, "netdev": netdev(id), "mac": mac.to_string(),
        // Nobody boots from it, and our own QEMU has no such ROM.
        "romfile": "",
    });
    if queues > 1 {
        device["mq"] = json!(true);
        // One for each direction of each queue, one for the control queue, one for changes of the configuration.
        device["vectors"] = json!(2 * queues + 2);
    }
    device
}

impl QemuVm {
    pub(super) async fn plug_nic(
        &mut self,
        id: DeviceId,
        mac: MacAddr,
        queues: Vec<NicQueue>,
    ) -> Result<GuestAddr, DeviceError> {
        let index = self.free_port(&id)?;
        let operation = format!("plug the network card {}", id.0);
        let refused = |reason: String| DeviceError::Refused { operation: operation.clone(), reason };
        if queues.len() > self.max_vcpus as usize {
            let (asked, most) = (queues.len(), self.max_vcpus);
            return Err(refused(format!("it has {asked} queues, and the VM at most {most} vCPUs")));
        }
        let fds = Descriptors::new(&id, queues).map_err(refused)?;
        let mut given = Vec::new();
        for (name, fd) in fds.each() {
            if let Err(e) = self.command(&operation, "getfd", json!({ "fdname": name }), Some(fd)).await {
                self.take_back(&given).await;
                return Err(e);
            }
            given.push(name.clone());
        }
        if let Err(e) = self.command(&operation, "netdev_add", fds.backend(&id), None).await {
            self.take_back(&given).await;
            return Err(e);
        }
        let device = card(&id, mac, &port(index), fds.taps.len());
        if let Err(e) = self.command(&operation, "device_add", device, None).await {
            self.undo("netdev_del", json!({ "id": netdev(&id) })).await;
            return Err(e);
        }
        self.devices.insert(id, Plugged { port: index, backend: Backend::Net });
        Ok(GuestAddr::Pci(port_path(index)))
    }

    /// Has QEMU close descriptors that came to nothing. It may have done so itself with the command that failed.
    async fn take_back(&self, names: &[String]) {
        for name in names {
            if let Err(e) = self.command("clean up", "closefd", json!({ "fdname": name }), None).await {
                tracing::debug!("{e}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(vhost: bool) -> NicQueue {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        NicQueue { tap: null(), vhost: vhost.then(null) }
    }

    #[test]
    fn what_qemu_is_told_of_a_card() {
        let id = DeviceId("eth0".into());
        let one = Descriptors::new(&id, vec![queue(false)]).unwrap();
        assert_eq!(one.backend(&id), json!({ "type": "tap", "id": "net-eth0", "vhost": false, "fd": "tap-eth0-0" }));
        let two = Descriptors::new(&id, vec![queue(true), queue(true)]).unwrap();
        assert_eq!(
            two.backend(&id),
            json!({ "type": "tap", "id": "net-eth0", "vhost": true, "fds": "tap-eth0-0:tap-eth0-1",
                    "vhostfds": "vhost-eth0-0:vhost-eth0-1" })
        );
        let mac = "02:42:ac:11:00:02".parse().unwrap();
        let device = card(&id, mac, "rp3", 2);
        assert_eq!(device["mac"], "02:42:ac:11:00:02");
        assert_eq!((&device["mq"], &device["vectors"]), (&json!(true), &json!(6)));
        assert!(card(&id, mac, "rp3", 1).get("mq").is_none());
    }

    #[test]
    fn queues_that_do_not_go_together_are_refused() {
        let id = DeviceId("eth0".into());
        assert!(Descriptors::new(&id, vec![]).is_err());
        let mixed = Descriptors::new(&id, vec![queue(true), queue(false)]).err().unwrap();
        assert!(mixed.contains("1 of its 2 queues"), "{mixed}");
    }
}
