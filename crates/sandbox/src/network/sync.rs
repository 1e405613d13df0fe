//! Giving the guest what is in the namespace.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::try_join_all;
use kata_agent_client::AgentClient;
use kata_config::{Config, InternetworkingModel};
use kata_network::{
    Attach, Attached, Attachment, Found, Interface, Model, Neighbour, Netns, Route, attach, detach, hear_name_servers,
    scan,
};
use kata_vmm::{Device, DeviceError, DeviceId, GuestAddr};

use super::{Joined, NetworkError, NetworkRecord, message, names};
use crate::machine::Machine;

/// A sandbox's network and what of it the guest has.
pub(crate) struct Network {
    joined: Joined,
    model: Model,
    vhost: bool,
    cards: Vec<Card>,
    /// The resolv.conf of the first container, which the engine may rewrite.
    resolv_conf: Option<PathBuf>,
    /// The name server that is answered for in the guest, by a task that goes with this.
    names: Option<(IpAddr, AbortOnDrop)>,
    /// What the guest was told last.
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An interface that is a card of the VM's.
struct Card {
    /// As the guest was told; until then without addresses.
    told: Option<Interface>,
    slot: u32,
    /// The name of the device.
    id: DeviceId,
    /// Where the guest finds it.
    pci: String,
    /// The host hears name servers through it, or cannot.
    hears: bool,
    attachment: Attachment,
}

impl Card {
    /// Whether it is of this interface, and not of one that was there before by the same number.
    fn is_of(&self, i: &Interface) -> bool {
        self.attachment.index == i.index && self.told.as_ref().is_none_or(|told| told.mac == i.mac)
    }
}

impl Network {
    pub(crate) fn new(joined: Joined, config: &Config) -> Network {
        let model = match config.runtime.internetworking_model {
            InternetworkingModel::Tcfilter => Model::Tcfilter,
            InternetworkingModel::Macvtap => Model::Macvtap,
            InternetworkingModel::None => Model::None,
        };
        let vhost = !config.hypervisor.qemu.disable_vhost_net && kata_network::vhost_available();
        Network {
            joined,
            model,
            vhost,
            cards: Vec::new(),
            resolv_conf: None,
            names: None,
            routes: Vec::new(),
            neighbours: Vec::new(),
        }
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.joined.netns
    }

    /// What the sandbox's containers look names up with, on the host.
    pub(crate) fn set_resolv_conf(&mut self, path: Option<PathBuf>) {
        self.resolv_conf = self.resolv_conf.take().or(path);
    }

    /// Has a name server answered for in the guest, if the engine keeps one where the guest cannot reach it.
    pub(crate) fn answer_names(&mut self, agent: &AgentClient) {
        let Some(at) = self.resolv_conf.as_deref().and_then(names::on_loopback) else { return };
        if self.names.as_ref().is_none_or(|(now, task)| *now != at || task.0.is_finished()) {
            self.names = Some((at, AbortOnDrop(tokio::spawn(names::serve(agent.clone(), at)))));
        }
        // What that server does not know it asks others, from the namespace.
        for card in self.cards.iter_mut().filter(|c| !c.hears) {
            card.hears = true;
            if let Err(err) = hear_name_servers(&self.joined.netns, &card.attachment) {
                tracing::warn!("names of other networks may not be found: {err}");
            }
        }
    }

    /// Where hooks run.
    pub(crate) fn host(&self) -> Arc<Netns> {
        Arc::clone(&self.joined.host)
    }

    /// For the state file; `None`: a crash leaves nothing that is not gone by itself.
    pub(crate) fn record(&self) -> Option<NetworkRecord> {
        let attachments: Vec<Attachment> = self.cards.iter().map(|c| c.attachment.clone()).collect();
        (!attachments.is_empty()).then(|| NetworkRecord { netns: self.joined.path.clone(), attachments })
    }

    /// Whether the guest has something else than what is there.
    ///
    /// # Errors
    /// [`NetworkError::Scan`].
    pub(crate) fn is_behind(&self) -> Result<bool, NetworkError> {
        let found = self.look()?;
        let known = found.interfaces.iter().all(|i| {
            let card = self.cards.iter().find(|c| c.is_of(i));
            card.is_some_and(|c| c.told.as_ref().is_some_and(|told| is_same_to_guest(told, i)))
        });
        let same = known
            && found.interfaces.len() == self.cards.len()
            && (&found.routes, &found.neighbours) == (&self.routes, &self.neighbours);
        // What the model leaves alone is never known: that costs one more look.
        Ok(!same)
    }

    fn look(&self) -> Result<Found, NetworkError> {
        let mut found = scan(&self.joined.netns)?;
        found.interfaces.retain(Interface::in_use);
        Ok(found)
    }

    /// Looks into the namespace, and gives the guest what is there now. Whether anything was to be done.
    ///
    /// # Errors
    /// [`NetworkError`]. What was done is kept, and what was not is tried again by the next call.
    pub(crate) async fn sync(&mut self, machine: &mut Machine) -> Result<bool, NetworkError> {
        let mut found = self.look()?;
        if found.interfaces.is_empty() && self.cards.is_empty() {
            return Ok(false);
        }
        let agent = machine.agent.clone();
        let mut changed = self.unplug_gone(machine, &found).await?;
        for interface in &found.interfaces {
            if !self.cards.iter().any(|c| c.is_of(interface)) {
                changed |= self.plug(machine, interface).await?;
            }
        }
        // Those that the model leaves alone are none of the guest's.
        let names: Vec<&str> = self.cards.iter().map(|c| c.attachment.name.as_str()).collect();
        found.routes.retain(|r| names.contains(&r.interface.as_str()));
        found.neighbours.retain(|n| names.contains(&n.interface.as_str()));
        Ok(self.tell(&agent, found).await? || changed)
    }

    /// Takes away cards whose interfaces have gone.
    async fn unplug_gone(&mut self, machine: &mut Machine, found: &Found) -> Result<bool, NetworkError> {
        let mut changed = false;
        while let Some(at) = self.cards.iter().position(|c| !found.interfaces.iter().any(|i| c.is_of(i))) {
            let card = &self.cards[at];
            let interface = card.attachment.name.clone();
            tracing::info!(interface, "an interface has gone");
            detach(&self.joined.netns, &card.attachment)?;
            machine.unplug(&card.id).await.map_err(|source| NetworkError::Plug { interface, source })?;
            self.cards.remove(at);
            // Routes through it went with it in the guest.
            (self.routes, self.neighbours) = Default::default();
            changed = true;
        }
        Ok(changed)
    }

    async fn plug(&mut self, machine: &mut Machine, interface: &Interface) -> Result<bool, NetworkError> {
        let slot = (0..).find(|slot| self.cards.iter().all(|c| c.slot != *slot)).unwrap_or_default();
        let queues = machine.vcpus() as usize;
        let how = Attach { model: self.model, queues, vhost: self.vhost };
        let Some(attached) = attach(&self.joined.netns, interface, slot, how)? else { return Ok(false) };
        let Attached { mac, queues, attachment } = attached;
        let (id, count) = (DeviceId(format!("nic-{slot}")), queues.len());
        let plugged = machine.plug(Device::Nic { id: id.clone(), mac, queues }).await.and_then(|at| match at {
            GuestAddr::Pci(pci) => Ok(pci),
            other => Err(DeviceError::Refused {
                operation: "plug a network card".into(),
                reason: format!("it is at {other:?}, where the guest does not look for one"),
            }),
        });
        let interface = &interface.name;
        match plugged {
            Ok(pci) => {
                tracing::info!(interface, %mac, queues = count, vhost = self.vhost, "an interface is plugged");
                self.cards.push(Card { told: None, slot, id, pci, hears: false, attachment });
                Ok(true)
            }
            Err(source) => {
                if let Err(err) = detach(&self.joined.netns, &attachment) {
                    tracing::warn!("{err}");
                }
                Err(NetworkError::Plug { interface: interface.clone(), source })
            }
        }
    }

    /// Tells the guest what it does not know yet.
    async fn tell(&mut self, agent: &AgentClient, found: Found) -> Result<bool, NetworkError> {
        let mut updates = Vec::new();
        for card in &mut self.cards {
            let Some(now) = found.interfaces.iter().find(|i| card.is_of(i)) else { continue };
            if card.told.as_ref().is_some_and(|told| is_same_to_guest(told, now)) {
                continue;
            }
            let request = message::interface(now, &card.pci);
            updates.push(async {
                let what = || format!("set interface {}", now.name);
                let done = agent.calls().update_interface(request).await;
                done.map_err(|source| NetworkError::Guest { what: what(), source })?;
                card.attachment.name.clone_from(&now.name);
                card.told = Some(now.clone());
                Ok::<_, NetworkError>(())
            });
        }
        let mut changed = !updates.is_empty();
        if changed {
            // An interface that was set anew may have lost its routes.
            (self.routes, self.neighbours) = Default::default();
        }
        try_join_all(updates).await?;
        if self.routes != found.routes {
            let guest = |source| NetworkError::Guest { what: "set its routes".into(), source };
            agent.calls().update_routes(message::routes(&found.routes)).await.map_err(guest)?;
            self.routes = found.routes;
            changed = true;
        }
        if self.neighbours != found.neighbours {
            let guest = |source| NetworkError::Guest { what: "set its neighbours".into(), source };
            agent.calls().add_arp_neighbors(message::neighbours(&found.neighbours)).await.map_err(guest)?;
            self.neighbours = found.neighbours;
            changed = true;
        }
        Ok(changed)
    }

    /// Takes the redirections off the engine's interfaces; the cards went with the VM.
    pub(crate) fn tidy(&mut self) {
        self.names = None;
        for card in self.cards.drain(..) {
            if let Err(err) = detach(&self.joined.netns, &card.attachment) {
                tracing::warn!("{err}");
            }
        }
    }
}

/// Whether the guest would be told the same of both.
fn is_same_to_guest(a: &Interface, b: &Interface) -> bool {
    message::interface(a, "") == message::interface(b, "")
}
