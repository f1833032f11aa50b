//! What a cubin says about its kernels, read from the ELF file itself: registers, memory and the
//! argument list. No GPU, driver or compiler log is needed, so an artifact can be checked against
//! the code that it ships.
//!
//! The layout of `.nv.info` is not published by NVIDIA; it is the one that `cuobjdump -elf` prints,
//! checked against the compiler's own log by the tests of this room.

use crate::device::Resources;
use crate::error::CubinError;
use object::elf::Machine;
use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolIndex};
use std::collections::BTreeMap;

/// `EM_CUDA`, the ELF machine number of cubins.
const CUDA_MACHINE: Machine = Machine(190);
/// Shared memory that the system keeps for itself in each block from sm_90 on; there the size of
/// `.nv.shared.<kernel>` includes it.
const RESERVED_SHARED_BYTES: u64 = 1024;

/// Attributes of `.nv.info` and `.nv.info.<kernel>`.
mod attribute {
    /// Symbol and its stack frame in bytes.
    pub const FRAME_SIZE: u8 = 0x11;
    /// One kernel parameter.
    pub const KERNEL_PARAMETER: u8 = 0x17;
    /// Symbol and its registers per thread.
    pub const REGISTER_COUNT: u8 = 0x2f;
}

/// One parameter of a kernel, as the machine code expects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parameter {
    /// Position in the argument list, from 0.
    pub ordinal: u32,
    /// Bytes from the start of the parameter block.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
}

/// Names of the kernels in a cubin, sorted.
pub fn kernels(cubin: &[u8]) -> Result<Vec<String>, CubinError> {
    Ok(Cubin::parse(cubin)?.kernels())
}

/// The parameters of `kernel` in the order of its argument list.
pub fn kernel_parameters(cubin: &[u8], kernel: &str) -> Result<Vec<Parameter>, CubinError> {
    let cubin = Cubin::parse(cubin)?;
    let Some(records) = cubin.records(&format!("{INFO_PREFIX}{kernel}"))? else {
        return Err(CubinError::NoSuchKernel { kernel: kernel.into(), present: cubin.kernels() });
    };
    let mut parameters = Vec::new();
    for record in records.iter().filter(|r| r.attribute == attribute::KERNEL_PARAMETER) {
        // Word 0 is unused, word 1 holds ordinal and offset, word 2 the size above 18 other bits.
        let (place, packed) = (record.word(1)?, record.word(2)?);
        parameters.push(Parameter {
            ordinal: place & 0xffff,
            offset: place >> 16,
            bytes: packed >> 18,
        });
    }
    parameters.sort();
    Ok(parameters)
}

/// Registers, static shared memory and stack of every kernel. Spills are not recorded in a cubin
/// and are zero here; the compiler's log has them.
pub fn resources(cubin: &[u8]) -> Result<BTreeMap<String, Resources>, CubinError> {
    let cubin = Cubin::parse(cubin)?;
    let mut found: BTreeMap<String, Resources> =
        cubin.kernels().into_iter().map(|kernel| (kernel, Resources::default())).collect();
    for record in cubin.records(".nv.info")?.unwrap_or_default() {
        let field: fn(&mut Resources) -> &mut u32 = match record.attribute {
            attribute::REGISTER_COUNT => |resources| &mut resources.registers,
            attribute::FRAME_SIZE => |resources| &mut resources.stack_bytes,
            _ => continue,
        };
        // Functions that are not kernels have records too.
        if let Some(resources) = found.get_mut(cubin.symbol(record.word(0)?)?) {
            *field(resources) = record.word(1)?;
        }
    }
    let reserved = match cubin.file.section_by_name(".nv.shared.reserved.0") {
        Some(_) => RESERVED_SHARED_BYTES,
        None => 0,
    };
    for (kernel, resources) in &mut found {
        let section = cubin.file.section_by_name(&format!(".nv.shared.{kernel}"));
        let bytes = section.map_or(0, |section| section.size().saturating_sub(reserved));
        resources.static_shared_bytes = u32::try_from(bytes)
            .map_err(|_| malformed(&format!(".nv.shared.{kernel} has {bytes} bytes")))?;
    }
    Ok(found)
}

const INFO_PREFIX: &str = ".nv.info.";

fn malformed(what: &str) -> CubinError {
    CubinError::Malformed(what.into())
}

struct Cubin<'a> {
    file: ElfFile64<'a, Endianness>,
}

/// One entry of an `.nv.info` section.
struct Record<'a> {
    attribute: u8,
    data: &'a [u8],
}

impl Record<'_> {
    /// The `index`-th little-endian 32-bit word.
    fn word(&self, index: usize) -> Result<u32, CubinError> {
        self.data
            .as_chunks::<4>()
            .0
            .get(index)
            .map(|word| u32::from_le_bytes(*word))
            .ok_or_else(|| malformed(&format!("attribute {:#x} is too short", self.attribute)))
    }
}

impl<'a> Cubin<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, CubinError> {
        let file = ElfFile64::<Endianness>::parse(data)
            .map_err(|error| malformed(&format!("not a 64-bit ELF file ({error})")))?;
        let machine = file.elf_header().e_machine(file.endian());
        if machine != CUDA_MACHINE || !file.is_little_endian() {
            let (found, expected) = (machine.0, CUDA_MACHINE.0);
            return Err(malformed(&format!("ELF machine {found}, expected {expected}")));
        }
        Ok(Self { file })
    }

    fn kernels(&self) -> Vec<String> {
        let names = self.file.sections().filter_map(|section| {
            section.name().ok()?.strip_prefix(INFO_PREFIX).map(str::to_owned)
        });
        let mut kernels: Vec<_> = names.collect();
        kernels.sort();
        kernels
    }

    fn symbol(&self, index: u32) -> Result<&'a str, CubinError> {
        let symbol = self.file.symbol_by_index(SymbolIndex(index as usize));
        symbol
            .and_then(|symbol| symbol.name())
            .map_err(|error| malformed(&format!("symbol {index}: {error}")))
    }

    /// The entries of an info section; `None` where there is no such section.
    fn records(&self, section: &str) -> Result<Option<Vec<Record<'a>>>, CubinError> {
        let Some(found) = self.file.section_by_name(section) else { return Ok(None) };
        let bad = |what: &str| malformed(&format!("{section}: {what}"));
        let mut rest = found.data().map_err(|error| bad(&error.to_string()))?;
        let mut records = Vec::new();
        while let Some((&[format, attribute, low, high], tail)) = rest.split_first_chunk() {
            let value = usize::from(u16::from_le_bytes([low, high]));
            // Formats 1 to 3 hold their value in place; format 4 says how many bytes follow.
            let bytes = match format {
                1..=3 => 0,
                4 => value,
                _ => return Err(bad(&format!("unknown record format {format}"))),
            };
            let (data, next) =
                tail.split_at_checked(bytes).ok_or_else(|| bad("it ends within a record"))?;
            records.push(Record { attribute, data });
            rest = next;
        }
        if rest.is_empty() { Ok(Some(records)) } else { Err(bad("it ends within a record")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_cubin_is_refused() {
        for data in [&b""[..], b"\x7fELF", &[0; 200]] {
            assert!(matches!(kernels(data), Err(CubinError::Malformed(_))));
        }
        let own = fs_err::read(std::env::current_exe().unwrap()).unwrap();
        let error = kernels(&own).unwrap_err().to_string();
        assert!(error.ends_with("expected 190"), "{error}");
    }
}
