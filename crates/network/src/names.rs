//! The namespace's own stack asks name servers. Docker's resolver lives in the namespace of a container and passes on what it
//! does not know itself, from there; but what comes back is redirected to the guest. So the two share: the host's sockets
//! in this namespace have ports from 61440 on, which no guest chooses by itself (ip(7), `ip_local_port_range`), and what
//! name servers send to these is the host's.

use std::io;

use nix::net::if_::if_nametoindex;

use crate::netlink::Netlink;
use crate::{AttachError, Attachment, Model, Netns, tc};

/// The host's ports, of which the filter in [`tc`] knows the first.
const PORTS: &str = "61440 65535";
/// "Do not reply for all local addresses" (Documentation/networking/ip-sysctl.rst, `arp_ignore`): the guest replies.
const SILENT: &str = "8";

/// Lets the namespace's own stack hear name servers through an interface that is the VM's. To be done once for each
/// [`crate::attach()`]; undone by [`crate::detach`].
///
/// # Errors
/// [`AttachError::Unsupported`] with a model other than `tcfilter`, [`AttachError::Os`].
pub fn hear_name_servers(netns: &Netns, attachment: &Attachment) -> Result<(), AttachError> {
    let os = |what| move |source| AttachError::Os { what, interface: attachment.name.clone(), source };
    let Some(ours) = attachment.ours.as_deref().filter(|_| attachment.model == Model::Tcfilter) else {
        return Err(AttachError::Unsupported {
            interface: attachment.name.clone(),
            kind: "not redirected".into(),
            reason: "the network namespace's own stack hears nothing through it".into(),
        });
    };
    netns.run(|| {
        let set = |path: &str, value| std::fs::write(format!("/proc/sys/net/ipv4/{path}"), value);
        set("ip_local_port_range", PORTS).map_err(os("set the range of ports"))?;
        set(&format!("conf/{}/arp_ignore", attachment.name), SILENT).map_err(os("keep the host from answering ARP"))?;
        let tap = if_nametoindex(ours).map_err(|e| os("find the tap")(e.into()))?;
        let mut netlink = Netlink::new().map_err(os("open rtnetlink"))?;
        let results =
            netlink.change(tc::hear_name_servers(attachment.index, tap)).map_err(os("let name servers be heard"))?;
        results.into_iter().collect::<io::Result<()>>().map_err(os("let name servers be heard"))
    })?
}
