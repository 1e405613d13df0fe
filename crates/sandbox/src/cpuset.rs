//! Which of the host's CPUs and memory nodes containers may use. Pure.
//!
//! A cpuset names the host's. The machine's processes are confined to what its containers may use together, and to nothing while
//! one of them may use all; in the guest a container gets as many CPUs as it may use of the host's. It does not make the
//! machine larger: a kubelet with static CPU management names all CPUs for every container that has none of its own.

use std::collections::BTreeSet;
use std::fmt;

use kata_oci::Resources;
use thiserror::Error;

/// More than any kernel has (NR_CPUS).
const MOST: u32 = 8192;

/// A list that is none.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("linux.resources.cpu.{field} is {text:?}; a list of numbers and ranges below {MOST} is wanted, such as 0-3,7")]
pub struct ListError {
    field: &'static str,
    text: String,
}

/// Numbers of CPUs or memory nodes (cpuset(7), "List format"). Empty: all that there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids(BTreeSet<u32>);

impl Ids {
    fn parse(field: &'static str, text: &str) -> Result<Ids, ListError> {
        let mut out = BTreeSet::new();
        let parts = text.trim().split(',').filter(|part| !part.is_empty());
        for part in parts {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n < MOST);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => out.extend(first..=last),
                _ => return Err(ListError { field, text: text.to_owned() }),
            }
        }
        Ok(Ids(out))
    }

    /// Whether it confines to nothing.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|n| *n == last + 1) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// What one container, or all of a sandbox, may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpuset {
    /// CPUs.
    pub cpus: Ids,
    /// Memory nodes.
    pub mems: Ids,
}

impl Cpuset {
    /// As limits say it.
    ///
    /// # Errors
    /// [`ListError`].
    pub fn of(r: &Resources) -> Result<Cpuset, ListError> {
        let Some(cpu) = &r.cpu else { return Ok(Cpuset::default()) };
        Ok(Cpuset { cpus: Ids::parse("cpus", &cpu.cpus)?, mems: Ids::parse("mems", &cpu.mems)? })
    }

    /// What changed limits make of it: what they do not mention stays.
    pub fn or(self, before: &Cpuset) -> Cpuset {
        let or = |new: Ids, before: &Ids| if new.is_all() { before.clone() } else { new };
        Cpuset { cpus: or(self.cpus, &before.cpus), mems: or(self.mems, &before.mems) }
    }

    /// What containers may use together.
    pub fn union<'a>(all: impl IntoIterator<Item = &'a Cpuset>) -> Cpuset {
        let mut all = all.into_iter();
        let Some(mut out) = all.next().cloned() else { return Cpuset::default() };
        let add = |into: &mut Ids, more: &Ids| {
            if into.is_all() || more.is_all() {
                into.0.clear();
            } else {
                into.0.extend(&more.0);
            }
        };
        for more in all {
            add(&mut out.cpus, &more.cpus);
            add(&mut out.mems, &more.mems);
        }
        out
    }

    /// The guest's CPUs for it, of which there can be `max`: the first ones, as many as it has of the host's. Empty: all.
    pub fn in_guest(&self, max: u32) -> String {
        let count = u32::try_from(self.cpus.0.len()).unwrap_or(u32::MAX).min(max.max(1));
        if count == 0 { String::new() } else { Ids((0..count).collect()).to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(cpus: &str, mems: &str) -> Cpuset {
        Cpuset { cpus: Ids::parse("cpus", cpus).unwrap(), mems: Ids::parse("mems", mems).unwrap() }
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for (text, written) in
            [("", ""), ("3", "3"), ("0-2,5", "0-2,5"), ("5,1,0", "0-1,5"), (" 0-1,\n", "0-1"), ("0,2-2,1", "0-2")]
        {
            assert_eq!(Ids::parse("cpus", text).unwrap().to_string(), written, "{text:?}");
        }
        for bad in ["x", "1-", "-1", "3-1", "0-99999999", "8192", "0-1-2"] {
            let err = Ids::parse("mems", bad).unwrap_err().to_string();
            assert!(err.contains("mems") && err.contains(bad), "{err}");
        }
    }

    #[test]
    fn a_sandbox_may_use_what_its_containers_may_and_all_if_one_may() {
        let (a, b, all) = (set("0-1", "0"), set("3", ""), Cpuset::default());
        assert_eq!(Cpuset::union([&a, &b]), set("0-1,3", ""));
        assert_eq!(Cpuset::union([&a, &b, &all]), all);
        assert_eq!(Cpuset::union([&a, &all, &b]), all);
        assert_eq!(Cpuset::union([&a]), a);
        assert_eq!(Cpuset::union([]), all);
    }

    #[test]
    fn what_is_not_mentioned_stays() {
        assert_eq!(set("2", "").or(&set("0-1", "0")), set("2", "0"));
    }

    #[test]
    fn the_guest_counts_its_own() {
        assert_eq!(set("4-5", "").in_guest(8), "0-1");
        assert_eq!(set("7", "").in_guest(8), "0");
        assert_eq!(set("0-63", "").in_guest(4), "0-3");
        assert_eq!(set("", "1").in_guest(4), "");
    }
}
