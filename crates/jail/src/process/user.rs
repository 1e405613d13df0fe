//! Becoming the container's user.

use kata_proto::oci;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::error::{JailError, Step};

/// Sets the user and all groups. The permitted capabilities stay until they are set ([`super::caps`]).
pub(crate) fn switch(user: &oci::User) -> Result<(), JailError> {
    capctl::prctl::set_keepcaps(true).step(|| "keeping capabilities over the change of user".to_owned())?;
    let groups: Vec<Gid> = user.AdditionalGids.iter().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).step(|| format!("setting the groups {:?}", user.AdditionalGids))?;
    let gid = Gid::from_raw(user.GID);
    setresgid(gid, gid, gid).step(|| format!("becoming group {}", user.GID))?;
    let uid = Uid::from_raw(user.UID);
    setresuid(uid, uid, uid).step(|| format!("becoming user {}", user.UID))?;
    capctl::prctl::set_keepcaps(false).step(|| "no longer keeping capabilities".to_owned())
}
