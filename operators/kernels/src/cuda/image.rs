//! What can be said of a compiled kernel before a driver sees it: is it whole, and of the right kind?
//!
//! ```text
//!   cubin   an ELF file of 64 bits for NVIDIA's machines ─ every section within the file ─ a name a kernel
//!   PTX     text that says its own `.version`, and an `.entry` a kernel
//! ```
//!
//! Invariants: what passes can be handed to the driver, which reads a cubin as far as its header says
//! and no length is told it. What passes may still be refused by the driver, for what the machine code
//! itself is; only the driver knows that. Limits: ELF of 64 bits, little-endian.

use super::sources::Module;

/// The header's length, and where it says what.
const HEADER: usize = 64;
const CLASS_AND_ORDER: [u8; 2] = [2, 1];
const MACHINE: u16 = 190;
/// A section of this kind takes no place in the file.
const NO_BITS: u32 = 8;
/// Bytes of a section's entry.
const ENTRY: usize = 64;

/// Fails unless the bytes are a whole cubin with the module's kernels. Cost: one walk over the bytes.
pub fn check_cubin(module: &Module, bytes: &[u8]) -> Result<(), String> {
    if bytes.len() < HEADER || !bytes.starts_with(b"\x7fELF") {
        return Err("it is no ELF file".to_owned());
    }
    let machine = number(bytes, 18, 2)? as u16;
    if bytes[4..6] != CLASS_AND_ORDER || machine != MACHINE {
        return Err(format!("it is for machine {machine}, not for NVIDIA's"));
    }
    let (table, entry) = (number(bytes, 40, 8)?, number(bytes, 58, 2)?);
    let (programs, program) = (number(bytes, 32, 8)?, number(bytes, 54, 2)?);
    let cut = |end: Option<usize>| match end {
        Some(end) if end <= bytes.len() => Ok(()),
        _ => Err(format!("it is cut off after {} bytes", bytes.len())),
    };
    let (count, program_count) = (number(bytes, 60, 2)?, number(bytes, 56, 2)?);
    if count == 0 || entry != ENTRY {
        return Err("it has no sections".to_owned());
    }
    cut(table.checked_add(count * entry))?;
    cut(programs.checked_add(program_count * program))?;
    for section in 0..count {
        let at = table + section * entry;
        if number(bytes, at + 4, 4)? as u32 != NO_BITS {
            let (offset, size) = (number(bytes, at + 24, 8)?, number(bytes, at + 32, 8)?);
            cut(offset.checked_add(size))?;
        }
    }
    named(module, bytes, |kernel| format!("{kernel}\0"))
}

/// Fails unless the text is PTX with the module's kernels.
pub fn check_ptx(module: &Module, text: &[u8]) -> Result<(), String> {
    if !contains(text, b".version ") {
        return Err("it is no PTX".to_owned());
    }
    // A file that was cut off ends within a function.
    let text = text.trim_ascii_end();
    let text = text.strip_suffix(&[0]).unwrap_or(text).trim_ascii_end();
    if !text.ends_with(b"}") {
        return Err(format!("it is cut off after {} bytes", text.len()));
    }
    named(module, text, |kernel| format!(".entry {kernel}("))
}

fn named(module: &Module, bytes: &[u8], name: impl Fn(&str) -> String) -> Result<(), String> {
    let missing = module
        .kernels
        .iter()
        .find(|kernel| !contains(bytes, name(kernel).as_bytes()));
    missing.map_or(Ok(()), |kernel| Err(format!("it has no kernel {kernel}")))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A little-endian number of `width` bytes at most 8; fails past the end.
fn number(bytes: &[u8], at: usize, width: usize) -> Result<usize, String> {
    let found = bytes.get(at..at + width);
    let found = found.ok_or_else(|| format!("it is cut off after {} bytes", bytes.len()))?;
    let value = found.iter().rev();
    let value = value.fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    usize::try_from(value).map_err(|_| "it is larger than memory".to_owned())
}

/// A cubin with the module's names and no code: what the check takes and no driver would.
#[cfg(test)]
pub(super) fn hollow_cubin(module: &Module) -> Vec<u8> {
    let mut names = vec![0];
    for kernel in module.kernels {
        names.extend_from_slice(kernel.as_bytes());
        names.push(0);
    }
    let table = HEADER + names.len();
    let mut bytes = vec![0; table + ENTRY];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18..20].copy_from_slice(&MACHINE.to_le_bytes());
    bytes[40..48].copy_from_slice(&(table as u64).to_le_bytes());
    bytes[58..60].copy_from_slice(&(ENTRY as u16).to_le_bytes());
    bytes[60] = 1;
    bytes[HEADER..table].copy_from_slice(&names);
    let mut entry = |at: usize, value: usize| {
        bytes[table + at..table + at + 8].copy_from_slice(&(value as u64).to_le_bytes());
    };
    entry(24, HEADER);
    entry(32, names.len());
    bytes
}

/// PTX with the module's names and no code.
#[cfg(test)]
pub(super) fn hollow_ptx(module: &Module, note: &str) -> Vec<u8> {
    let entries = module.kernels.iter();
    let entries: String = entries
        .map(|kernel| format!(".visible .entry {kernel}()\n{{\n\tret;\n}}\n"))
        .collect();
    format!("// {note}\n.version 9.0\n{entries}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::sources::MODULES;
    use super::*;

    #[test]
    fn whole_images_pass_and_every_cut_is_seen() {
        for module in MODULES {
            let cubin = hollow_cubin(&module);
            assert_eq!(check_cubin(&module, &cubin), Ok(()));
            for length in 0..cubin.len() {
                assert!(check_cubin(&module, &cubin[..length]).is_err(), "{length}");
            }
            let ptx = hollow_ptx(&module, "");
            assert_eq!(check_ptx(&module, &ptx), Ok(()));
            let body = ptx.len() - 2;
            assert!(check_ptx(&module, &ptx[..body]).is_err());
        }
    }

    #[test]
    fn no_byte_changed_by_chance_makes_the_check_panic() {
        let cubin = hollow_cubin(&MODULES[0]);
        for at in 0..cubin.len() {
            for byte in [0x00, 0x7f, 0xff] {
                let mut changed = cubin.clone();
                changed[at] = byte;
                let _ = check_cubin(&MODULES[0], &changed);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let [linear, attention, ..] = MODULES;
        let cubin = hollow_cubin(&linear);
        let message = |bytes: &[u8]| check_cubin(&attention, bytes).unwrap_err();
        assert_eq!(message(b"not a cubin"), "it is no ELF file");
        assert_eq!(message(&cubin), "it has no kernel attention_naive");
        let length = cubin.len() - 1;
        assert_eq!(
            message(&cubin[..length]),
            format!("it is cut off after {length} bytes")
        );
        let mut other = cubin.clone();
        other[18] = 62;
        assert_eq!(message(&other), "it is for machine 62, not for NVIDIA's");
        let ptx = hollow_ptx(&linear, "");
        let message = |bytes: &[u8]| check_ptx(&attention, bytes).unwrap_err();
        assert_eq!(message(b"code"), "it is no PTX");
        assert_eq!(message(&ptx), "it has no kernel attention_naive");
    }
}
