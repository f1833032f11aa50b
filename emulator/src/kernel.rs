//! Loaded PTX: a module and its kernels, ready to launch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dataflow::Operands;
use crate::error::LoadError;
use crate::lanes::wide_is_available;
use crate::link::{self, SpecialRegister};
use crate::memory::{MODULE_BASE, WINDOW_BITS};
use crate::op::{Note, Op};
use crate::parse;
use crate::provenance::StoresThrough;
use crate::syntax::{Space, Variable};
use crate::undefined::Undefined;

/// A parameter of a kernel, as the launch must fill it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Offset in the parameter block, in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// Parameter bytes that a register takes at the start of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ParameterLoad {
    pub slot: u16,
    pub offset: usize,
    pub bytes: usize,
    pub signed: bool,
    pub wide: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct SharedVariable {
    pub name: String,
    pub start: u32,
    pub bytes: u32,
}

/// One kernel of a module.
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) code: Vec<Op>,
    pub(crate) lists: Vec<Vec<u16>>,
    pub(crate) tables: Vec<Vec<u32>>,
    /// By instruction, the registers of warpgroup products that it uses, and whether it writes
    /// them. Empty where the kernel has no such products.
    pub(crate) warpgroup_uses: Vec<Vec<(u16, bool)>>,
    pub(crate) undefined: Undefined,
    /// By instruction, whether a checked run has to look at it because of these two. Empty where
    /// there is none.
    pub(crate) watched: Vec<bool>,
    pub(crate) notes: Vec<Note>,
    pub(crate) operands: Operands,
    pub(crate) slots: usize,
    pub(crate) first_register: usize,
    pub(crate) predicates: usize,
    pub(crate) constants: Vec<(u16, u64, bool)>,
    pub(crate) specials: Vec<(u16, SpecialRegister)>,
    pub(crate) parameter_loads: Vec<ParameterLoad>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) parameter_bytes: u64,
    pub(crate) local_bytes: u32,
    pub(crate) shared: Vec<SharedVariable>,
    pub(crate) static_shared_bytes: u32,
    pub(crate) dynamic_base: u32,
    pub(crate) max_threads: Option<u32>,
    pub(crate) files: HashMap<u32, String>,
    /// Which parameter loads are pointers that it may store through.
    pub(crate) stores_through: StoresThrough,
    /// Its only barriers between warps are those of the whole block.
    pub(crate) whole_barriers: bool,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel")
            .field("name", &self.name)
            .field("instructions", &self.code.len())
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl Kernel {
    /// The name of the entry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Parameters in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Bytes of static shared memory, as the PTX declares it.
    pub fn static_shared_bytes(&self) -> u32 {
        self.static_shared_bytes
    }

    /// Operations the kernel decodes to, those of called functions included.
    pub fn instruction_count(&self) -> usize {
        self.code.len()
    }

    /// Threads a block may have, where the PTX says so (`__launch_bounds__`).
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }
}

/// A module variable in global or constant memory.
#[derive(Clone, Debug)]
pub(crate) struct ModuleVariable {
    pub name: String,
    /// Initial value; CUDA zeroes variables that have none.
    pub bytes: Vec<u8>,
}

/// PTX, parsed and decoded. Shareable between threads.
#[derive(Debug)]
pub struct Module {
    pub(crate) id: u64,
    target: String,
    kernels: Vec<Arc<Kernel>>,
    pub(crate) variables: Vec<ModuleVariable>,
}

/// Bytes that all variables of a module may have.
const MOST_VARIABLE_BYTES: u64 = 256 << 20;

static NEXT_MODULE: AtomicU64 = AtomicU64::new(1);

impl Module {
    /// Parses and decodes PTX.
    ///
    /// # Errors
    /// Malformed text, and any opcode, modifier or type the emulator does not know, each with
    /// its line.
    pub fn parse(ptx: &str) -> Result<Self, LoadError> {
        Self::parse_for(ptx, wide_is_available())
    }

    /// The same with the functions for any processor, to show that results do not depend on it.
    pub(crate) fn parse_for(ptx: &str, wide: bool) -> Result<Self, LoadError> {
        let tree = parse::parse(ptx)?;
        let mut globals: HashMap<String, (Space, u64)> = HashMap::new();
        let mut variables = Vec::new();
        let mut total = 0u64;
        for variable in &tree.variables {
            if variable.space == Space::Shared {
                continue;
            }
            if variable.external {
                return Err(LoadError::new(
                    variable.line,
                    "an external variable has no definition",
                )
                .with_text(&variable.name));
            }
            total = total.saturating_add(variable.bytes);
            if total > MOST_VARIABLE_BYTES {
                let reason = format!("module variables have more than {MOST_VARIABLE_BYTES} bytes");
                return Err(LoadError::new(variable.line, reason).with_text(&variable.name));
            }
            let address = MODULE_BASE + ((variables.len() as u64) << WINDOW_BITS);
            globals.insert(variable.name.clone(), (variable.space, address));
            let mut bytes = variable.initial.clone();
            bytes.resize(variable.bytes as usize, 0);
            variables.push(ModuleVariable { name: variable.name.clone(), bytes });
        }
        if variables.len() > 1 << 16 {
            return Err(LoadError::new(1, "more than 65536 module variables"));
        }
        let placed = tree.variables.iter().filter(|v| v.space != Space::Shared);
        for (variable, placed) in variables.iter_mut().zip(placed) {
            point(variable, placed, &globals)?;
        }
        let mut kernels = Vec::new();
        for (index, function) in tree.functions.iter().enumerate() {
            if function.entry && function.body.is_some() {
                kernels.push(Arc::new(link::link(&tree, &globals, index, wide)?));
            }
        }
        Ok(Self {
            id: NEXT_MODULE.fetch_add(1, Ordering::Relaxed),
            target: tree.target.to_owned(),
            kernels,
            variables,
        })
    }

    /// Names of the kernels, in the order of the text.
    pub fn kernel_names(&self) -> Vec<&str> {
        self.kernels.iter().map(|kernel| kernel.name()).collect()
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kept_kernel(name).map(Arc::as_ref)
    }

    /// The same, to be kept when the module is gone.
    pub(crate) fn kept_kernel(&self, name: &str) -> Option<&Arc<Kernel>> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// The `.target` of the text, such as `sm_80`.
    pub fn target(&self) -> &str {
        &self.target
    }
}

/// Fills in addresses that initial values name.
fn point(
    variable: &mut ModuleVariable,
    placed: &Variable,
    globals: &HashMap<String, (Space, u64)>,
) -> Result<(), LoadError> {
    for (offset, name, addend) in &placed.pointers {
        let Some(&(_, address)) = globals.get(name) else {
            return Err(LoadError::new(placed.line, format!("`{name}` is not a module variable"))
                .with_text(&placed.name));
        };
        let value = address.wrapping_add(*addend as u64).to_le_bytes();
        let start = *offset as usize;
        if let Some(bytes) = variable.bytes.get_mut(start..start + 8) {
            bytes.copy_from_slice(&value);
        }
    }
    Ok(())
}
