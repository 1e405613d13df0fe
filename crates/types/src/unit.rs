//! Units as types.

use std::fmt;

/// An amount of memory in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Mib(pub u64);

impl Mib {
    /// The smallest number of whole MiB that holds `bytes`.
    pub const fn from_bytes_round_up(bytes: u64) -> Mib {
        Mib(bytes.div_ceil(1 << 20))
    }

    /// In bytes; saturates.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }

    /// The smallest multiple of `step` that is not below this amount.
    pub const fn round_up_to(self, step: Mib) -> Mib {
        Mib(self.0.div_ceil(step.0) * step.0)
    }
}

impl std::ops::Add for Mib {
    type Output = Mib;
    fn add(self, other: Mib) -> Mib {
        Mib(self.0.saturating_add(other.0))
    }
}

impl std::ops::Sub for Mib {
    type Output = Mib;
    fn sub(self, other: Mib) -> Mib {
        Mib(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_round_up() {
        assert_eq!(Mib::from_bytes_round_up(1), Mib(1));
        assert_eq!(Mib::from_bytes_round_up(1 << 20), Mib(1));
        assert_eq!(Mib(130).round_up_to(Mib(128)), Mib(256));
    }
}
