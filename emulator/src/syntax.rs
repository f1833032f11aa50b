//! The tree that parsing makes of a PTX module: names still as text, scopes kept, so that
//! registers, labels and variables of one spelling in different blocks stay apart.

use std::collections::HashMap;
use std::sync::Arc;

/// Element types of instructions and variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Type {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    B8,
    B16,
    B32,
    B64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    U16x2,
    S16x2,
    Tf32,
    E4m3,
    E5m2,
    E4m3x2,
    E5m2x2,
    Pred,
}

impl Type {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "u16x2" => Self::U16x2,
            "s16x2" => Self::S16x2,
            "tf32" => Self::Tf32,
            "e4m3" => Self::E4m3,
            "e5m2" => Self::E5m2,
            "e4m3x2" => Self::E4m3x2,
            "e5m2x2" => Self::E5m2x2,
            "pred" => Self::Pred,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::U8 | Self::S8 | Self::B8 | Self::E4m3 | Self::E5m2 | Self::Pred => 1,
            Self::U16
            | Self::S16
            | Self::B16
            | Self::F16
            | Self::Bf16
            | Self::E4m3x2
            | Self::E5m2x2 => 2,
            Self::U32
            | Self::S32
            | Self::B32
            | Self::F32
            | Self::F16x2
            | Self::Bf16x2
            | Self::U16x2
            | Self::S16x2
            | Self::Tf32 => 4,
            Self::U64 | Self::S64 | Self::B64 | Self::F64 => 8,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64 | Self::S16x2)
    }

    pub(crate) fn is_integer(self) -> bool {
        !self.is_float() && self != Self::Pred
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(
            self,
            Self::F16
                | Self::F16x2
                | Self::Bf16
                | Self::Bf16x2
                | Self::F32
                | Self::F64
                | Self::Tf32
                | Self::E4m3
                | Self::E5m2
                | Self::E4m3x2
                | Self::E5m2x2
        )
    }
}

/// Where a variable lives or an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub name: String,
    pub space: Space,
    pub bytes: u64,
    pub align: u64,
    /// `.extern`: for shared memory, the dynamic part.
    pub external: bool,
    /// Initial bytes; shorter than `bytes` means zeros follow.
    pub initial: Vec<u8>,
    /// Names whose addresses are stored in the initial bytes: (offset, name, addend).
    pub pointers: Vec<(u64, String, i64)>,
    pub line: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum Operand<'a> {
    Name(&'a str),
    Integer(u64),
    Single(u32),
    Double(u64),
    Vector(Vec<Operand<'a>>),
    /// `[base + offset]`.
    Address(Box<Operand<'a>>, i64),
    /// `name + offset` outside brackets.
    Offset(&'a str, i64),
    Not(&'a str),
    Pair(&'a str, &'a str),
    List(Vec<Operand<'a>>),
    /// `[map, {coordinates}]`.
    Tensor(Box<Operand<'a>>, Vec<Operand<'a>>),
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction<'a> {
    pub opcode: &'a str,
    /// Predicate register and whether it is negated.
    pub guard: Option<(&'a str, bool)>,
    pub operands: Vec<Operand<'a>>,
    pub scope: usize,
    pub line: u32,
    pub text: &'a str,
    pub source: Option<Place>,
}

/// A place in CUDA source, when `-lineinfo` gave one: file number and line of the instruction, then
/// of the call that put it there where its function was inlined, then of the call of that, and so on.
pub(crate) type Place = Arc<[(u32, u32)]>;

#[derive(Clone, Debug)]
pub(crate) enum Symbol {
    /// `count` registers from number `first`; plain registers have count 1 and no digits.
    Registers {
        first: u32,
        count: u32,
        parameterised: bool,
    },
    Variable(usize),
    Label(usize),
    /// `.branchtargets`: label names.
    Targets(Vec<String>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    pub parent: Option<usize>,
    pub symbols: HashMap<String, Symbol>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Function<'a> {
    pub name: &'a str,
    pub entry: bool,
    pub line: u32,
    /// Indices into `variables`.
    pub parameters: Vec<usize>,
    pub returns: Vec<usize>,
    pub variables: Vec<Variable>,
    /// Type of each register.
    pub registers: Vec<Type>,
    pub scopes: Vec<Scope>,
    pub body: Option<Vec<Instruction<'a>>>,
    /// Product of `.maxntid`, or of `.reqntid`.
    pub max_threads: Option<u32>,
}

/// What a name in a function stands for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found<'f> {
    Register(u32),
    Variable(usize),
    Label(usize),
    Targets(&'f [String]),
}

impl Function<'_> {
    /// Looks a name up from a scope outwards.
    pub(crate) fn find(&self, scope: usize, name: &str) -> Option<Found<'_>> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &name[stem.len()..];
        let mut current = Some(scope);
        while let Some(index) = current {
            let scope = self.scopes.get(index)?;
            match scope.symbols.get(name) {
                Some(Symbol::Registers { first, parameterised: false, .. }) => {
                    return Some(Found::Register(*first));
                }
                Some(Symbol::Variable(variable)) => return Some(Found::Variable(*variable)),
                Some(Symbol::Label(at)) => return Some(Found::Label(*at)),
                Some(Symbol::Targets(names)) => return Some(Found::Targets(names)),
                _ => {}
            }
            // `%r<8>` declares %r0 to %r7; a stem may itself end in digits (`%r1<4>`), so every
            // split is tried.
            for cut in 0..digits.len() {
                let (prefix, number) = name.split_at(stem.len() + cut);
                if let Some(Symbol::Registers { first, count, parameterised: true }) =
                    scope.symbols.get(prefix)
                    && let Ok(number) = number.parse::<u32>()
                    && number < *count
                {
                    return Some(Found::Register(first + number));
                }
            }
            current = scope.parent;
        }
        None
    }

    /// How a register is spelled in the text; those that decoding adds are not.
    pub(crate) fn register_name(&self, number: u32) -> Option<String> {
        let symbols = self.scopes.iter().flat_map(|scope| &scope.symbols);
        symbols.into_iter().find_map(|(name, symbol)| match *symbol {
            Symbol::Registers { first, count, parameterised }
                if (first..first + count).contains(&number) =>
            {
                let digits =
                    if parameterised { (number - first).to_string() } else { String::new() };
                Some(format!("{name}{digits}"))
            }
            _ => None,
        })
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tree<'a> {
    pub target: &'a str,
    pub functions: Vec<Function<'a>>,
    pub variables: Vec<Variable>,
    pub files: HashMap<u32, String>,
}
