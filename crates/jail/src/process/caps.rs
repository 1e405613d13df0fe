//! Capabilities.

use capctl::caps::{Cap, CapSet, CapState, ambient, bounding};
use kata_proto::oci;

use crate::error::{JailError, Step};

/// The five sets of a process.
#[derive(Debug)]
pub(crate) struct Wanted {
    bounding: CapSet,
    effective: CapSet,
    inheritable: CapSet,
    permitted: CapSet,
    ambient: CapSet,
}

impl Wanted {
    /// Reads the spec's lists; none at all means no capability. What the running kernel lacks is left out and named in
    /// `warnings`; a name that is none is an error.
    pub(crate) fn parse(caps: Option<&oci::LinuxCapabilities>, warnings: &mut Vec<String>) -> Result<Self, JailError> {
        let empty = oci::LinuxCapabilities::new();
        let caps = caps.unwrap_or(&empty);
        let mut set = |names: &[String]| -> Result<CapSet, JailError> {
            let mut out = CapSet::empty();
            for name in names {
                let cap: Cap = name.parse().map_err(|_| JailError::invalid(format!("unknown capability {name:?}")))?;
                if cap.is_supported() {
                    out.add(cap);
                } else {
                    let warning = format!("this kernel has no capability {name}; the process goes without");
                    if !warnings.contains(&warning) {
                        warnings.push(warning);
                    }
                }
            }
            Ok(out)
        };
        let out = Wanted {
            bounding: set(&caps.Bounding)?,
            effective: set(&caps.Effective)?,
            inheritable: set(&caps.Inheritable)?,
            permitted: set(&caps.Permitted)?,
            ambient: set(&caps.Ambient)?,
        };
        Ok(out)
    }

    /// Gives up all but the bounding set; wants CAP_SETPCAP.
    pub(crate) fn drop_bounding(&self) -> Result<(), JailError> {
        for cap in bounding::probe() - self.bounding {
            bounding::drop(cap).step(|| format!("dropping {cap:?} from the bounding set"))?;
        }
        bounding::clear_unknown().step(|| "dropping unknown capabilities".to_owned())
    }

    /// Sets the others, after the change of user.
    pub(crate) fn apply(&self) -> Result<(), JailError> {
        // A capability beyond the caller's own cannot be given; in the agent's place that is none.
        let mut state = CapState::empty();
        state.effective = self.effective;
        state.permitted = self.permitted;
        state.inheritable = self.inheritable;
        state.set_current().step(|| "setting the capabilities".to_owned())?;
        ambient::clear().step(|| "clearing the ambient capabilities".to_owned())?;
        // The kernel has no ambient capability that is not permitted and inheritable (capabilities(7)). Specs ask for
        // such all the same (runc's own template does), and runc lets them go.
        for cap in self.ambient & self.permitted & self.inheritable {
            ambient::raise(cap).step(|| format!("raising the ambient {cap:?}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels_and_unknown_ones_are_errors() {
        let caps = |names: &[&str]| oci::LinuxCapabilities {
            Bounding: names.iter().map(|n| (*n).to_owned()).collect(),
            ..Default::default()
        };
        let w = Wanted::parse(Some(&caps(&["CAP_CHOWN", "CAP_NET_RAW"])), &mut Vec::new()).unwrap();
        assert!(w.bounding.has(Cap::CHOWN) && w.bounding.has(Cap::NET_RAW) && w.bounding.size() == 2);
        let e = Wanted::parse(Some(&caps(&["CAP_FLY"])), &mut Vec::new()).unwrap_err();
        assert!(e.to_string().contains("CAP_FLY"), "{e}");
        assert!(Wanted::parse(None, &mut Vec::new()).unwrap().permitted.is_empty());
    }
}
