//! One row of the table: a form, how it is written, what goes in, and what must come out.

use super::exact::Format;

/// What an operand is: which corner cases it has, and its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Predicate,
    /// An integer of this many bits, signed or not.
    Integer(u32),
    /// An amount to shift by or a position in a word: 32 bits.
    Amount,
    F64,
    F32,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    /// Two 8-bit floats.
    E4m3x2,
    E5m2x2,
    /// f32 from the range in which products of matrices stay exact enough to be compared.
    Modest(Modest),
}

/// Elements of matrices: of moderate exponents, with corner cases left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Modest {
    F64,
    F32,
    F16x2,
    Bf16x2,
    E4m3x4,
    E5m2x4,
}

impl Kind {
    /// The kind of an operand of this PTX type.
    pub fn of(ty: &str) -> Option<Self> {
        Some(match ty {
            "pred" => Self::Predicate,
            "u8" | "s8" | "b8" => Self::Integer(8),
            "u16" | "s16" | "b16" => Self::Integer(16),
            "u32" | "s32" | "b32" | "u16x2" | "s16x2" => Self::Integer(32),
            "u64" | "s64" | "b64" => Self::Integer(64),
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "e4m3x2" => Self::E4m3x2,
            "e5m2x2" => Self::E5m2x2,
            _ => return None,
        })
    }

    /// Its register.
    pub fn register(self) -> Register {
        match self {
            Self::Predicate => Register::Predicate,
            Self::Integer(8 | 16) | Self::F16 | Self::Bf16 | Self::E4m3x2 | Self::E5m2x2 => {
                Register::Bits(16)
            }
            Self::Integer(64) | Self::F64 | Self::Modest(Modest::F64) => Register::Bits(64),
            _ => Register::Bits(32),
        }
    }
}

/// A register of the generated kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// A predicate.
    Predicate,
    /// 16, 32 or 64 bits without a type.
    Bits(u32),
}

impl Register {
    /// Bits that a result in it has; a predicate has one.
    pub fn bits(self) -> u32 {
        match self {
            Self::Predicate => 1,
            Self::Bits(bits) => bits,
        }
    }
}

/// What a result must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// These bits.
    Bits(u64),
    /// One of these.
    Either(u64, u64),
    /// A NaN of the format: the PTX manual does not say which. The emulator gives the canonical one,
    /// as GPUs do, where `canonical` says so.
    Nan {
        /// The format.
        format: Format,
        /// Whether GPUs are known to give the canonical one.
        canonical: bool,
    },
    /// A number no further than `error` from `exact`.
    Near {
        /// The format of the result.
        format: Format,
        /// The exact result.
        exact: f64,
        /// The bound of the PTX manual.
        error: f64,
    },
    /// A pair of 16-bit results, the low one first.
    Pair(Box<[Expected; 2]>),
    /// The PTX manual leaves it open.
    Open,
}

impl Expected {
    /// Whether a result is one that is expected.
    pub fn allows(&self, got: u64) -> bool {
        match self {
            Self::Bits(bits) => got == *bits,
            Self::Either(one, other) => got == *one || got == *other,
            Self::Nan { format, .. } => format.is_nan(got),
            Self::Near { format, exact, error } => {
                let value = format.value(got);
                // An exact result beyond the range may have become infinite.
                let beyond = value.is_infinite()
                    && exact.abs() + error >= format.value(format.greatest())
                    && (value > 0.0) == (*exact > 0.0);
                (value - exact).abs() <= *error || beyond
            }
            Self::Pair(halves) => {
                halves[0].allows(got & 0xffff) && halves[1].allows(got >> 16 & 0xffff)
            }
            Self::Open => true,
        }
    }

    /// Whether it is a NaN with other bits than those that GPUs are known to give.
    pub fn is_other_nan(&self, got: u64) -> bool {
        match self {
            Self::Nan { format, canonical: true } => got != format.canonical_nan(),
            Self::Pair(halves) => {
                halves[0].is_other_nan(got & 0xffff) || halves[1].is_other_nan(got >> 16 & 0xffff)
            }
            _ => false,
        }
    }

    /// In words.
    pub fn describe(&self) -> String {
        match self {
            Self::Bits(bits) => format!("{bits:#x}"),
            Self::Either(one, other) => format!("{one:#x} or {other:#x}"),
            Self::Nan { .. } => "a NaN".into(),
            Self::Near { exact, error, .. } => format!("{exact:e} within {error:e}"),
            Self::Pair(halves) => {
                format!("({}, {})", halves[0].describe(), halves[1].describe())
            }
            Self::Open => "anything".into(),
        }
    }
}

type LaneModel = Box<dyn Fn(&[u64]) -> Vec<Expected> + Send + Sync>;
type WarpModel = Box<dyn Fn(&[&[u64]]) -> Vec<Vec<Expected>> + Send + Sync>;

/// The independent statement of what an instruction computes.
pub enum Model {
    /// From the operands of a lane to its results.
    Lane(LaneModel),
    /// From the operands of 32 lanes to the results of each.
    Warp(WarpModel),
}

/// How much of an instruction the PTX manual leaves to the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Every host and every GPU gives the same bits.
    Exact,
    /// Within a bound of the manual, in this section of it; the format of the result.
    Approximate(&'static str, Format),
}

/// One row.
pub struct Row {
    /// The form, as `spanforge_emulator::opcode_forms` spells it.
    pub form: &'static str,
    /// Which of several ways to write the form this is; empty if there is one.
    pub variant: String,
    /// Architecture that the form needs, as in `.target`: 75, 80, 89 or 90.
    pub needs: u32,
    /// Version of the PTX language that the form needs, as in `.version`, times ten.
    pub version: u32,
    /// Instructions, with `{d0}` for a result, `{s0}` for an operand, `{in}` and `{out}` for the
    /// 64-bit global addresses of this lane's first operand and result.
    pub body: String,
    /// Declarations before the kernel.
    pub before: String,
    /// Results.
    pub results: Vec<Register>,
    /// Operands.
    pub operands: Vec<Kind>,
    /// From operands to results.
    pub model: Model,
    /// How exact it is.
    pub precision: Precision,
}

impl Row {
    /// A row whose instruction is written `form d0, s0, s1, ...;`.
    pub fn new(
        form: &'static str,
        results: &[Register],
        operands: &[Kind],
        model: impl Fn(&[u64]) -> Vec<Expected> + Send + Sync + 'static,
    ) -> Self {
        let names = (0..results.len()).map(|at| format!("{{d{at}}}"));
        let sources = (0..operands.len()).map(|at| format!("{{s{at}}}"));
        let list: Vec<String> = names.chain(sources).collect();
        Self {
            form,
            variant: String::new(),
            needs: 75,
            version: 78,
            body: format!("{form} {};", list.join(", ")),
            before: String::new(),
            results: results.to_vec(),
            operands: operands.to_vec(),
            model: Model::Lane(Box::new(model)),
            precision: Precision::Exact,
        }
    }

    /// A row of 32 lanes.
    pub fn warp(
        form: &'static str,
        results: &[Register],
        operands: &[Kind],
        model: impl Fn(&[&[u64]]) -> Vec<Vec<Expected>> + Send + Sync + 'static,
    ) -> Self {
        let row = Self::new(form, results, operands, |_| Vec::new());
        Self { model: Model::Warp(Box::new(model)), ..row }
    }

    /// With other text.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }

    /// As one of several ways to write the form.
    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = variant.into();
        self
    }

    /// Needing an architecture.
    pub fn needs(mut self, architecture: u32) -> Self {
        self.needs = self.needs.max(architecture);
        if self.needs >= 89 {
            self.version = self.version.max(84);
        }
        self
    }

    /// Needing a version of the PTX language, times ten.
    pub fn version(mut self, version: u32) -> Self {
        self.version = self.version.max(version);
        self
    }

    /// With declarations before the kernel.
    pub fn before(mut self, text: impl Into<String>) -> Self {
        self.before = text.into();
        self
    }

    /// Approximate, by that section of the PTX manual.
    pub fn approximate(mut self, section: &'static str, format: Format) -> Self {
        self.precision = Precision::Approximate(section, format);
        self
    }

    /// The section of the PTX manual with the bound of an approximate instruction.
    pub fn bound(&self) -> Option<&'static str> {
        match self.precision {
            Precision::Approximate(section, _) => Some(section),
            Precision::Exact => None,
        }
    }

    /// The form and the variant.
    pub fn name(&self) -> String {
        if self.variant.is_empty() {
            self.form.to_owned()
        } else {
            format!("{} ({})", self.form, self.variant)
        }
    }

    /// What each case of a list must give, in its order. A row of warps takes 32 cases at a time.
    pub fn expected(&self, cases: &[Vec<u64>]) -> Vec<Vec<Expected>> {
        match &self.model {
            Model::Lane(model) => cases.iter().map(|case| model(case)).collect(),
            Model::Warp(model) => cases
                .chunks(32)
                .flat_map(|warp| model(&warp.iter().map(Vec::as_slice).collect::<Vec<_>>()))
                .collect(),
        }
    }
}
