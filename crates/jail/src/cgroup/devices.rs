//! The spec's device rules as an eBPF program (cgroup v2 has no file for them).
//!
//! The kernel asks the program about each opening and each making of a node: type, numbers, and which of read, write and
//! mknod is wanted (linux/bpf.h, `struct bpf_cgroup_dev_ctx`). The spec's rules are a list of which a later one overrides
//! an earlier one, for each kind of access by itself; what no rule allows is denied. So the program goes through the
//! list backwards with the accesses that are still to be decided: a rule that allows takes its accesses out, and when
//! none is left the answer is yes; a rule that denies one that is still there makes it no.

use kata_proto::oci;

use crate::error::JailError;

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// One rule, checked. `None` matches everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<u32>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// What every container may use, whatever its rules say (the runtime specification's default devices, consoles and
/// ptys); and the making of any node, which alone opens nothing.
const ALWAYS: [Rule; 11] = [
    allow(CHAR, None, None, MKNOD),
    allow(BLOCK, None, None, MKNOD),
    allow(CHAR, Some(1), Some(3), ALL),
    allow(CHAR, Some(1), Some(5), ALL),
    allow(CHAR, Some(1), Some(7), ALL),
    allow(CHAR, Some(1), Some(8), ALL),
    allow(CHAR, Some(1), Some(9), ALL),
    allow(CHAR, Some(5), Some(0), ALL),
    allow(CHAR, Some(5), Some(1), ALL),
    allow(CHAR, Some(5), Some(2), ALL),
    allow(CHAR, Some(136), None, ALL),
];

const fn allow(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
    Rule { allow: true, kind: Some(kind), major, minor, access }
}

/// The program for a list of rules.
pub(crate) fn compile(rules: &[oci::LinuxDeviceCgroup]) -> Result<Vec<u64>, JailError> {
    let mut all = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    all.extend(ALWAYS);
    Ok(assemble(&all))
}

fn rule(r: &oci::LinuxDeviceCgroup) -> Result<Rule, JailError> {
    let bad = |what: &str| JailError::invalid(format!("device rule {what}"));
    let kind = match r.Type.as_str() {
        "a" | "" => None,
        "c" => Some(CHAR),
        "b" => Some(BLOCK),
        other => return Err(bad(&format!("type {other:?}"))),
    };
    let mut access = 0;
    for c in r.Access.chars() {
        access |= match c {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(bad(&format!("access {other:?}"))),
        };
    }
    if r.Access.is_empty() {
        access = ALL;
    }
    // "All devices" takes no numbers. No real device has major number 0, so with it the numbers were not given.
    let (major, minor) = if kind.is_none() || r.Major == 0 { (-1, -1) } else { (r.Major, r.Minor) };
    let number = |n: i64| match n {
        -1 => Ok(None),
        n => u32::try_from(n).map(Some).map_err(|_| bad(&format!("number {n}"))),
    };
    Ok(Rule { allow: r.Allow, kind, major: number(major)?, minor: number(minor)?, access })
}

// eBPF's encoding (Documentation/bpf/standardization/instruction-set.rst).
const LDX_W: u8 = 0x61; // dst = *(u32 *)(src + off)
const MOV32_REG: u8 = 0xbc;
const MOV32_IMM: u8 = 0xb4;
const AND32_IMM: u8 = 0x54;
const RSH32_IMM: u8 = 0x74;
const JNE32_IMM: u8 = 0x56;
const JEQ32_IMM: u8 = 0x16;
const EXIT: u8 = 0x95;

// r0 is the answer and scratch, r1 the question.
const TYPE: u8 = 2;
const TODO: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn op(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> u64 {
    u64::from_ne_bytes({
        // struct bpf_insn { __u8 code; __u8 dst_reg:4, src_reg:4; __s16 off; __s32 imm; }
        let registers = if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
        let [o0, o1] = offset.to_ne_bytes();
        let [i0, i1, i2, i3] = imm.to_ne_bytes();
        [code, registers, o0, o1, i0, i1, i2, i3]
    })
}

fn answer(yes: bool) -> [u64; 2] {
    [op(MOV32_IMM, 0, 0, 0, yes as i32), op(EXIT, 0, 0, 0, 0)]
}

fn assemble(rules: &[Rule]) -> Vec<u64> {
    // access_type has the access in its upper half and the type in its lower.
    let mut program = vec![
        op(LDX_W, TYPE, 1, 0, 0),
        op(MOV32_REG, TODO, TYPE, 0, 0),
        op(AND32_IMM, TYPE, 0, 0, 0xffff),
        op(RSH32_IMM, TODO, 0, 0, 16),
        op(LDX_W, MAJOR, 1, 4, 0),
        op(LDX_W, MINOR, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let decision = decide(rule);
        let tests: Vec<(u8, u32)> = [(TYPE, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)]
            .into_iter()
            .filter_map(|(register, wanted)| wanted.map(|w| (register, w)))
            .collect();
        for (i, (register, wanted)) in tests.iter().enumerate() {
            // Past the other tests and the decision.
            let skip = (tests.len() - i - 1 + decision.len()) as i16;
            program.push(op(JNE32_IMM, *register, 0, skip, *wanted as i32));
        }
        program.extend(&decision);
        if tests.is_empty() && rule.access == ALL {
            // It decides everything: there is no way past it, and the kernel refuses code that is never reached.
            if !rule.allow {
                return program;
            }
            program.truncate(program.len() - decision.len());
            program.extend(answer(true));
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// What to do for a device that a rule matches.
fn decide(rule: &Rule) -> Vec<u64> {
    if rule.allow {
        let keep = (!rule.access & ALL) as i32;
        let mut out = vec![op(AND32_IMM, TODO, 0, 0, keep), op(JNE32_IMM, TODO, 0, 2, 0)];
        out.extend(answer(true));
        return out;
    }
    if rule.access == ALL {
        return answer(false).to_vec();
    }
    let mut out =
        vec![op(MOV32_REG, 0, TODO, 0, 0), op(AND32_IMM, 0, 0, 0, rule.access as i32), op(JEQ32_IMM, 0, 0, 2, 0)];
    out.extend(answer(false));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would; panics on what it does not know and on running off the end.
    fn ask(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let mut r = [0u32; 11];
        let ctx = [access << 16 | kind, major, minor];
        let mut at = 0;
        for _ in 0..10_000 {
            let [code, registers, o0, o1, i0, i1, i2, i3] = program[at].to_ne_bytes();
            let (dst, src) = ((registers & 15) as usize, (registers >> 4) as usize);
            let offset = i16::from_ne_bytes([o0, o1]);
            let imm = i32::from_ne_bytes([i0, i1, i2, i3]) as u32;
            at += 1;
            match code {
                LDX_W => r[dst] = ctx[offset as usize / 4],
                MOV32_REG => r[dst] = r[src],
                MOV32_IMM => r[dst] = imm,
                AND32_IMM => r[dst] &= imm,
                RSH32_IMM => r[dst] >>= imm,
                JNE32_IMM if r[dst] != imm => at += offset as usize,
                JEQ32_IMM if r[dst] == imm => at += offset as usize,
                JNE32_IMM | JEQ32_IMM => {}
                EXIT => return r[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
        panic!("no end");
    }

    fn spec(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> oci::LinuxDeviceCgroup {
        oci::LinuxDeviceCgroup {
            Allow: allow,
            Type: kind.into(),
            Major: major,
            Minor: minor,
            Access: access.into(),
            ..Default::default()
        }
    }

    #[test]
    fn without_rules_only_the_default_devices_are_allowed() {
        for rules in [vec![], vec![spec(false, "a", -1, -1, "rwm")], vec![spec(false, "", 0, 0, "")]] {
            let p = compile(&rules).unwrap();
            assert!(ask(&p, CHAR, READ | WRITE, 1, 3));
            assert!(ask(&p, CHAR, READ | WRITE | MKNOD, 136, 7));
            assert!(ask(&p, CHAR, MKNOD, 200, 1) && ask(&p, BLOCK, MKNOD, 8, 0));
            assert!(!ask(&p, CHAR, READ, 1, 1));
            assert!(!ask(&p, BLOCK, READ, 8, 0) && !ask(&p, BLOCK, READ | MKNOD, 8, 0));
            assert!(!ask(&p, BLOCK, READ, 1, 3));
        }
    }

    #[test]
    fn a_later_rule_overrides_an_earlier_one_for_its_accesses_only() {
        let rules = [
            spec(false, "a", -1, -1, "rwm"),
            spec(true, "b", 8, -1, "rw"),
            spec(false, "b", 8, 1, "w"),
            spec(true, "c", 10, 200, "r"),
            spec(true, "c", 10, 200, "w"),
        ];
        let p = compile(&rules).unwrap();
        assert!(ask(&p, BLOCK, READ | WRITE, 8, 0));
        assert!(ask(&p, BLOCK, READ, 8, 1));
        assert!(!ask(&p, BLOCK, WRITE, 8, 1) && !ask(&p, BLOCK, READ | WRITE, 8, 1));
        assert!(ask(&p, CHAR, READ | WRITE, 10, 200));
        assert!(!ask(&p, CHAR, READ, 10, 201));
    }

    #[test]
    fn a_privileged_container_may_use_everything_but_what_is_denied_after() {
        let p = compile(&[spec(true, "a", -1, -1, "rwm")]).unwrap();
        assert!(ask(&p, BLOCK, READ | WRITE | MKNOD, 8, 0));
        let p = compile(&[spec(true, "a", 0, 0, "rwm"), spec(false, "b", 8, 0, "rw")]).unwrap();
        assert!(!ask(&p, BLOCK, READ, 8, 0) && ask(&p, BLOCK, READ, 8, 1) && ask(&p, BLOCK, MKNOD, 8, 0));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(compile(&[spec(true, "x", 1, 1, "r")]).is_err());
        assert!(compile(&[spec(true, "c", 1, 1, "q")]).is_err());
        assert!(compile(&[spec(true, "c", -2, 1, "r")]).is_err());
    }

    #[test]
    fn the_kernel_takes_the_programs() {
        let many = (1..=100).map(|n| spec(n % 2 == 0, "b", n, -1, "rw")).collect();
        for rules in [vec![], vec![spec(true, "a", -1, -1, "rwm")], vec![spec(false, "a", -1, -1, "rwm")], many] {
            match kata_sys::jail::load_device_program(&compile(&rules).unwrap()) {
                Ok(_) => {}
                // Not root, or a kernel without it: nothing to learn here.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => eprintln!("skipped: {e}"),
                Err(e) => panic!("{e}"),
            }
        }
    }
}
