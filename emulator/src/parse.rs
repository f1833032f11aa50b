//! Tokens to a tree. Hand-written and total: whatever the text, the answer is a tree or a
//! [`LoadError`] with a line. The file is long because the grammar is one recursive descent.

use std::collections::HashMap;

use crate::decode::INDIRECT;
use crate::error::LoadError;
use crate::lex::{Kind, Token, tokens};
use crate::syntax::{
    Function, Instruction, Operand, Place, Scope, Space, Symbol, Tree, Type, Variable,
};

/// Registers one function may declare; NVRTC stays far below, a hostile file may not.
const MOST_REGISTERS: u64 = 1 << 16;
/// Bytes one variable may have.
const MOST_VARIABLE_BYTES: u64 = 1 << 30;
/// Depth of nested blocks.
const MOST_SCOPES: usize = 1 << 16;

/// Opcodes whose operands have a form of their own, none of which is supported.
const TEXTURE: [&str; 13] = [
    "tex",
    "tld4",
    "txq",
    "suld",
    "sust",
    "sured",
    "suq",
    "istypep",
    "cp",
    "wgmma",
    "tcgen05",
    "multimem",
    "clusterlaunchcontrol",
];

pub(crate) fn parse(text: &str) -> Result<Tree<'_>, LoadError> {
    let tokens = tokens(text)?;
    Parser { text, tokens, at: 0 }.module()
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
}

type Parsed<T> = Result<T, LoadError>;

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Kind<'a>> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    fn next(&mut self) -> Option<Kind<'a>> {
        let kind = self.peek();
        self.at += 1;
        kind
    }

    fn error<T>(&self, reason: impl Into<String>) -> Parsed<T> {
        let mut error = LoadError::new(self.line(), reason);
        if let Some(token) = self.tokens.get(self.at) {
            error = error.with_text(self.text.get(token.start..token.end).unwrap_or(""));
        } else {
            error.reason.push_str(" (the file ends here)");
        }
        Err(error)
    }

    fn sign(&self, sign: u8) -> bool {
        self.peek() == Some(Kind::Sign(sign))
    }

    fn accept(&mut self, sign: u8) -> bool {
        let found = self.sign(sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: u8) -> Parsed<()> {
        if self.accept(sign) { Ok(()) } else { self.error(format!("expected `{}`", sign as char)) }
    }

    fn word(&mut self, what: &str) -> Parsed<&'a str> {
        match self.peek() {
            Some(Kind::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.error(format!("expected {what}")),
        }
    }

    fn integer(&mut self, what: &str) -> Parsed<u64> {
        match self.peek() {
            Some(Kind::Integer(value)) => {
                self.at += 1;
                Ok(value)
            }
            _ => self.error(format!("expected {what}")),
        }
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|token| token.line == line) {
            self.at += 1;
        }
    }

    fn module(mut self) -> Parsed<Tree<'a>> {
        let mut tree = Tree::default();
        while let Some(kind) = self.peek() {
            let line = self.line();
            match kind {
                Kind::Sign(b';') => self.at += 1,
                Kind::Word(".version") => {
                    self.at += 1;
                    match self.next() {
                        Some(Kind::Double(_) | Kind::Integer(_)) => {}
                        _ => {
                            return Err(LoadError::new(line, "expected a version such as 9.0"));
                        }
                    }
                }
                Kind::Word(".target") => {
                    self.at += 1;
                    tree.target = self.word("a target such as sm_80")?;
                    while self.accept(b',') {
                        self.word("a target option")?;
                    }
                }
                Kind::Word(".address_size") => {
                    self.at += 1;
                    if self.integer("an address size")? != 64 {
                        return Err(LoadError::new(line, "only .address_size 64 is supported"));
                    }
                }
                Kind::Word(".file") => {
                    self.at += 1;
                    let number = self.integer("a file number")?;
                    let Some(Kind::Text(name)) = self.next() else {
                        return Err(LoadError::new(line, "expected a file name in quotes"));
                    };
                    if let Ok(number) = u32::try_from(number) {
                        tree.files.insert(number, name.to_owned());
                    }
                    while self.accept(b',') {
                        self.next();
                    }
                }
                Kind::Word(".section") => {
                    self.at += 1;
                    self.word("a section name")?;
                    self.skip_braces()?;
                }
                Kind::Word(".visible" | ".weak" | ".common" | ".extern" | ".entry" | ".func") => {
                    self.linked(&mut tree)?;
                }
                Kind::Word(".global" | ".const" | ".shared") => {
                    let variables = self.variables(false)?;
                    tree.variables.extend(variables);
                }
                Kind::Word(".pragma") => {
                    while !self.accept(b';') {
                        if self.next().is_none() {
                            return self.error("expected `;` after .pragma");
                        }
                    }
                }
                _ => return self.error("expected a directive such as .visible, .func or .global"),
            }
        }
        if tree.target.is_empty() {
            return self.error("the module has no .target directive");
        }
        Ok(tree)
    }

    fn skip_braces(&mut self) -> Parsed<()> {
        self.expect(b'{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next() {
                Some(Kind::Sign(b'{')) => depth += 1,
                Some(Kind::Sign(b'}')) => depth -= 1,
                Some(_) => {}
                None => return self.error("expected `}`"),
            }
        }
        Ok(())
    }

    /// `.visible .entry`, `.extern .func`, `.extern .shared` and their like.
    fn linked(&mut self, tree: &mut Tree<'a>) -> Parsed<()> {
        let mut external = false;
        loop {
            match self.peek() {
                Some(Kind::Word(".extern")) => {
                    external = true;
                    self.at += 1;
                }
                Some(Kind::Word(".visible" | ".weak" | ".common")) => self.at += 1,
                Some(Kind::Word(".entry")) => {
                    self.at += 1;
                    let function = self.function(true)?;
                    tree.functions.push(function);
                    return Ok(());
                }
                Some(Kind::Word(".func")) => {
                    self.at += 1;
                    let function = self.function(false)?;
                    // A definition replaces the declaration that preceded it.
                    if let Some(declared) = tree
                        .functions
                        .iter_mut()
                        .find(|f| f.name == function.name && !f.entry && f.body.is_none())
                    {
                        *declared = function;
                    } else {
                        tree.functions.push(function);
                    }
                    return Ok(());
                }
                Some(Kind::Word(".global" | ".const" | ".shared")) => {
                    let variables = self.variables(external)?;
                    tree.variables.extend(variables);
                    return Ok(());
                }
                _ => return self.error("expected .entry, .func, .global, .const or .shared"),
            }
        }
    }

    fn function(&mut self, entry: bool) -> Parsed<Function<'a>> {
        let mut function = Function {
            entry,
            line: self.line(),
            scopes: vec![Scope::default()],
            ..Function::default()
        };
        if !entry {
            if matches!(self.peek(), Some(Kind::Word(".attribute"))) {
                return self.error("function attributes are not supported");
            }
            if self.sign(b'(') {
                function.returns = self.parameters(&mut function)?;
            }
        }
        function.name = self.word("a function name")?;
        if self.sign(b'(') {
            function.parameters = self.parameters(&mut function)?;
        }
        loop {
            match self.peek() {
                Some(Kind::Word(".maxntid" | ".reqntid")) => {
                    self.at += 1;
                    let mut threads = self.integer("a number of threads")?;
                    while self.accept(b',') {
                        threads = threads.saturating_mul(self.integer("a number of threads")?);
                    }
                    function.max_threads = Some(u32::try_from(threads).unwrap_or(u32::MAX));
                }
                Some(Kind::Word(
                    ".minnctapersm"
                    | ".maxnctapersm"
                    | ".maxnreg"
                    | ".maxclusterrank"
                    | ".abi_preserve"
                    | ".abi_preserve_control",
                )) => {
                    self.at += 1;
                    self.integer("a number")?;
                }
                Some(Kind::Word(".noreturn" | ".blocksareclusters" | ".explicitcluster")) => {
                    self.at += 1;
                }
                Some(Kind::Word(".reqnctapercluster")) => {
                    self.at += 1;
                    let mut blocks = self.integer("a number of blocks")?;
                    while self.accept(b',') {
                        blocks = blocks.saturating_mul(self.integer("a number of blocks")?);
                    }
                    if blocks != 1 {
                        self.at -= 1;
                        return self.error("clusters of more than one block are not supported");
                    }
                }
                Some(Kind::Word(".pragma")) => {
                    while !self.accept(b';') {
                        if self.next().is_none() {
                            return self.error("expected `;` after .pragma");
                        }
                    }
                }
                Some(Kind::Sign(b';')) => {
                    self.at += 1;
                    return Ok(function);
                }
                Some(Kind::Sign(b'{')) => break,
                _ => return self.error("expected a performance directive, `{` or `;`"),
            }
        }
        self.body(&mut function)?;
        Ok(function)
    }

    fn parameters(&mut self, function: &mut Function<'a>) -> Parsed<Vec<usize>> {
        self.expect(b'(')?;
        let mut indices = Vec::new();
        while !self.accept(b')') {
            if !indices.is_empty() {
                self.expect(b',')?;
            }
            if self.peek() != Some(Kind::Word(".param")) {
                return self.error("expected .param (register parameters are not supported)");
            }
            let variable = self.variable_head()?;
            let variable = self.variable_tail(variable)?;
            indices.push(declare(function, 0, variable));
        }
        Ok(indices)
    }

    /// `.space .align n .v2 .type`, up to the name.
    fn variable_head(&mut self) -> Parsed<(Space, u64, u64)> {
        let space = match self.word("a state space")? {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            ".param" => Space::Param,
            _ => {
                self.at -= 1;
                return self.error("expected a state space such as .global or .shared");
            }
        };
        let (mut align, mut lanes) = (0, 1);
        loop {
            match self.peek() {
                Some(Kind::Word(".align")) => {
                    self.at += 1;
                    align = self.integer("an alignment")?;
                    if !align.is_power_of_two() || align > 1 << 16 {
                        return self.error("an alignment must be a power of two");
                    }
                }
                Some(Kind::Word(".v2")) => {
                    self.at += 1;
                    lanes = 2;
                }
                Some(Kind::Word(".v4")) => {
                    self.at += 1;
                    lanes = 4;
                }
                Some(Kind::Word(word)) if word.starts_with('.') => {
                    let Some(element) = Type::parse(&word[1..]) else {
                        return self.error("unknown type");
                    };
                    self.at += 1;
                    lanes *= u64::from(element.bytes());
                    align = align.max(lanes.min(16));
                    if self.peek() == Some(Kind::Word(".ptr")) {
                        // A hint on what a pointer parameter points to; its alignment is the
                        // pointee's.
                        self.at += 1;
                        if let Some(Kind::Word(".global" | ".const" | ".shared" | ".local")) =
                            self.peek()
                        {
                            self.at += 1;
                        }
                        if self.peek() == Some(Kind::Word(".align")) {
                            self.at += 1;
                            self.integer("an alignment")?;
                        }
                    }
                    return Ok((space, align, lanes));
                }
                _ => return self.error("expected a type"),
            }
        }
    }

    /// The name, its dimensions and its initial value.
    fn variable_tail(&mut self, (space, align, element): (Space, u64, u64)) -> Parsed<Variable> {
        let line = self.line();
        let name = self.word("a variable name")?.to_owned();
        let mut bytes = element;
        let mut open = false;
        while self.accept(b'[') {
            if self.accept(b']') {
                open = true;
                continue;
            }
            bytes = bytes.saturating_mul(self.integer("an array length")?);
            self.expect(b']')?;
        }
        if bytes > MOST_VARIABLE_BYTES {
            return Err(LoadError::new(line, format!("`{name}` is too large ({bytes} bytes)")));
        }
        let mut variable = Variable {
            name,
            space,
            bytes: if open { 0 } else { bytes },
            align: align.max(1),
            external: false,
            initial: Vec::new(),
            pointers: Vec::new(),
            line,
        };
        if self.accept(b'=') {
            if self.sign(b'{') {
                let mut depth = 0;
                loop {
                    if self.accept(b'{') {
                        depth += 1;
                    } else if self.accept(b'}') {
                        depth -= 1;
                        if depth == 0 {
                            break;
                        }
                    } else if !self.accept(b',') {
                        self.initial_value(&mut variable, element)?;
                    }
                }
            } else {
                self.initial_value(&mut variable, element)?;
            }
            if open {
                variable.bytes = variable.initial.len() as u64;
            } else if variable.initial.len() as u64 > variable.bytes {
                return Err(LoadError::new(line, "more initial values than the variable holds"));
            }
        }
        Ok(variable)
    }

    fn initial_value(&mut self, variable: &mut Variable, element: u64) -> Parsed<()> {
        let negative = self.accept(b'-');
        let bits = match self.peek() {
            Some(Kind::Integer(value)) if negative => value.wrapping_neg(),
            Some(Kind::Integer(value)) => value,
            Some(Kind::Single(bits)) => u64::from(bits) ^ (u64::from(negative) << 31),
            Some(Kind::Double(bits)) if element == 4 => {
                u64::from((f64::from_bits(bits) as f32).to_bits()) ^ (u64::from(negative) << 31)
            }
            Some(Kind::Double(bits)) => bits ^ (u64::from(negative) << 63),
            Some(Kind::Word(mut name)) if element == 8 => {
                self.at += 1;
                let generic = name == "generic" && self.accept(b'(');
                if generic {
                    name = self.word("a variable name")?;
                    self.expect(b')')?;
                }
                let addend = if self.accept(b'+') { self.integer("an offset")? as i64 } else { 0 };
                let at = variable.initial.len() as u64;
                variable.pointers.push((at, name.to_owned(), addend));
                variable.initial.extend_from_slice(&[0; 8]);
                return Ok(());
            }
            _ => return self.error("expected an initial value"),
        };
        self.at += 1;
        let element = (element as usize).min(8);
        variable.initial.extend_from_slice(&bits.to_le_bytes()[..element]);
        Ok(())
    }

    /// A whole declaration, `;` included.
    fn variables(&mut self, external: bool) -> Parsed<Vec<Variable>> {
        let head = self.variable_head()?;
        let mut out = Vec::new();
        loop {
            let mut variable = self.variable_tail(head)?;
            variable.external = external;
            out.push(variable);
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b';')?;
        Ok(out)
    }

    /// The rest of a `.loc` on this line of the text. Where a function was inlined, the directive
    /// names the place of the call only; that place has had a directive of its own before (PTX ISA,
    /// section 11.5.3), from which the calls further out follow. Line 0 means none in particular.
    fn place(
        &mut self,
        text_line: u32,
        places: &mut HashMap<[u64; 3], Place>,
    ) -> Parsed<Option<Place>> {
        const DEEPEST: usize = 64;
        let three = |parser: &mut Self| -> Parsed<[u64; 3]> {
            let file = parser.integer("a file number")?;
            let line = parser.integer("a line number")?;
            let column = match parser.peek() {
                Some(Kind::Integer(_)) => parser.integer("a column")?,
                _ => 0,
            };
            Ok([file, line, column])
        };
        let place = three(self)?;
        let mut call = None;
        while self.tokens.get(self.at).is_some_and(|token| token.line == text_line) {
            let inlined = self.peek() == Some(Kind::Word("inlined_at"));
            self.at += 1;
            if inlined {
                call = Some(three(self)?);
            }
        }
        let narrow =
            |[file, line, _]: [u64; 3]| u32::try_from(file).ok().zip(u32::try_from(line).ok());
        let Some(own) = narrow(place).filter(|(_, line)| *line > 0) else { return Ok(None) };
        let mut chain = vec![own];
        if let Some(call) = call {
            match places.get(&call) {
                Some(calls) => chain.extend(calls.iter().take(DEEPEST)),
                None => chain.extend(narrow(call)),
            }
        }
        let chain: Place = chain.into();
        places.insert(place, chain.clone());
        Ok(Some(chain))
    }

    fn body(&mut self, function: &mut Function<'a>) -> Parsed<()> {
        let opened = self.line();
        self.expect(b'{')?;
        let mut scopes = vec![0usize];
        let mut body: Vec<Instruction<'a>> = Vec::new();
        let mut source = None;
        let mut places = HashMap::new();
        while let Some(&scope) = scopes.last() {
            let Some(kind) = self.peek() else {
                return Err(LoadError::new(
                    self.line(),
                    format!(
                        "the body opened on line {opened} is never closed (the file ends here)"
                    ),
                ));
            };
            match kind {
                Kind::Sign(b';') => self.at += 1,
                Kind::Sign(b'{') => {
                    self.at += 1;
                    if function.scopes.len() >= MOST_SCOPES {
                        return self.error("too many nested blocks");
                    }
                    scopes.push(function.scopes.len());
                    function.scopes.push(Scope { parent: Some(scope), symbols: HashMap::new() });
                }
                Kind::Sign(b'}') => {
                    self.at += 1;
                    scopes.pop();
                }
                Kind::Word(".loc") => {
                    let line = self.line();
                    self.at += 1;
                    source = self.place(line, &mut places)?;
                }
                Kind::Word(".file") => self.skip_line(),
                Kind::Word(".pragma") => {
                    while !self.accept(b';') {
                        if self.next().is_none() {
                            return self.error("expected `;` after .pragma");
                        }
                    }
                }
                Kind::Word(".reg") => self.registers(function, scope)?,
                Kind::Word(".shared" | ".local" | ".param" | ".global" | ".const") => {
                    for variable in self.variables(false)? {
                        declare(function, scope, variable);
                    }
                }
                Kind::Word(".extern") => {
                    self.at += 1;
                    for variable in self.variables(true)? {
                        declare(function, scope, variable);
                    }
                }
                Kind::Word(name)
                    if !name.starts_with('.')
                        && self.tokens.get(self.at + 1).map(|t| t.kind)
                            == Some(Kind::Sign(b':')) =>
                {
                    self.at += 2;
                    if matches!(self.peek(), Some(Kind::Word(".callprototype" | ".calltargets"))) {
                        return self.error(INDIRECT);
                    }
                    if self.peek() == Some(Kind::Word(".branchtargets")) {
                        self.at += 1;
                        let mut targets = vec![self.word("a label")?.to_owned()];
                        while self.accept(b',') {
                            targets.push(self.word("a label")?.to_owned());
                        }
                        self.expect(b';')?;
                        function.scopes[scope]
                            .symbols
                            .insert(name.to_owned(), Symbol::Targets(targets));
                    } else {
                        function.scopes[scope]
                            .symbols
                            .insert(name.to_owned(), Symbol::Label(body.len()));
                    }
                }
                Kind::Word(word) if word.starts_with('.') => {
                    return self.error("unknown directive");
                }
                Kind::Word(_) | Kind::Sign(b'@') => {
                    let mut instruction = self.instruction(scope)?;
                    instruction.source.clone_from(&source);
                    body.push(instruction);
                }
                _ => return self.error("expected an instruction, a label or a directive"),
            }
        }
        function.body = Some(body);
        Ok(())
    }

    fn registers(&mut self, function: &mut Function<'a>, scope: usize) -> Parsed<()> {
        self.at += 1;
        let word = self.word("a register type")?;
        let Some(class) = word.strip_prefix('.').and_then(Type::parse) else {
            self.at -= 1;
            return self.error("unknown register type");
        };
        loop {
            let name = self.word("a register name")?;
            let first = function.registers.len() as u64;
            let (count, parameterised) = if self.accept(b'<') {
                let count = self.integer("a number of registers")?;
                self.expect(b'>')?;
                (count, true)
            } else {
                (1, false)
            };
            if count > MOST_REGISTERS || first + count > MOST_REGISTERS {
                return self.error(format!("more than {MOST_REGISTERS} registers"));
            }
            function.registers.extend(std::iter::repeat_n(class, count as usize));
            function.scopes[scope].symbols.insert(
                name.to_owned(),
                Symbol::Registers { first: first as u32, count: count as u32, parameterised },
            );
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn instruction(&mut self, scope: usize) -> Parsed<Instruction<'a>> {
        let first = self.at;
        let line = self.line();
        let guard = if self.accept(b'@') {
            let negated = self.accept(b'!');
            Some((self.word("a predicate register")?, negated))
        } else {
            None
        };
        let opcode = self.word("an opcode")?;
        let mut operands = Vec::new();
        while !self.accept(b';') {
            // `call (retval), f, (arguments)` and its like need no comma before a list.
            if !operands.is_empty() {
                self.expect(b',')?;
            }
            let operand = self.operand();
            let base = opcode.split('.').next().unwrap_or("");
            if operand.is_err() && TEXTURE.contains(&base) {
                return Err(LoadError::new(line, format!("opcode `{base}` is not supported"))
                    .with_text(opcode));
            }
            operands.push(operand?);
        }
        let start = self.tokens.get(first).map_or(0, |token| token.start);
        let end = self.tokens.get(self.at - 1).map_or(start, |token| token.end);
        let text = self.text.get(start..end).unwrap_or("");
        Ok(Instruction { opcode, guard, operands, scope, line, text, source: None })
    }

    fn operand(&mut self) -> Parsed<Operand<'a>> {
        if self.accept(b'{') {
            return Ok(Operand::Vector(self.simple_list(b'}')?));
        }
        if self.accept(b'(') {
            return Ok(Operand::List(self.simple_list(b')')?));
        }
        if self.accept(b'[') {
            let base = self.simple()?;
            let (base, mut offset) = match base {
                Operand::Offset(name, offset) => (Operand::Name(name), offset),
                other => (other, 0),
            };
            if self.accept(b'+') || self.sign(b'-') {
                offset = self.signed()?;
            }
            if offset == 0 && self.accept(b',') {
                self.expect(b'{')?;
                let coordinates = self.simple_list(b'}')?;
                self.expect(b']')?;
                return Ok(Operand::Tensor(Box::new(base), coordinates));
            }
            self.expect(b']')?;
            return Ok(Operand::Address(Box::new(base), offset));
        }
        let operand = self.simple()?;
        if let Operand::Name(first) = operand
            && self.accept(b'|')
        {
            return Ok(Operand::Pair(first, self.word("a second destination")?));
        }
        Ok(operand)
    }

    fn simple_list(&mut self, close: u8) -> Parsed<Vec<Operand<'a>>> {
        let mut out = Vec::new();
        while !self.accept(close) {
            if !out.is_empty() {
                self.expect(b',')?;
            }
            out.push(self.simple()?);
        }
        Ok(out)
    }

    fn signed(&mut self) -> Parsed<i64> {
        let negative = self.accept(b'-');
        let value = self.integer("an offset")? as i64;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    fn simple(&mut self) -> Parsed<Operand<'a>> {
        if self.accept(b'!') {
            return Ok(Operand::Not(self.word("a predicate register")?));
        }
        let negative = self.accept(b'-');
        let operand = match self.peek() {
            Some(Kind::Word(name)) if !negative => {
                self.at += 1;
                if self.accept(b'+') {
                    return Ok(Operand::Offset(name, self.signed()?));
                }
                return Ok(Operand::Name(name));
            }
            Some(Kind::Integer(value)) if negative => Operand::Integer(value.wrapping_neg()),
            Some(Kind::Integer(value)) => Operand::Integer(value),
            Some(Kind::Single(bits)) => Operand::Single(bits ^ (u32::from(negative) << 31)),
            Some(Kind::Double(bits)) => Operand::Double(bits ^ (u64::from(negative) << 63)),
            _ => return self.error("expected an operand"),
        };
        self.at += 1;
        Ok(operand)
    }
}

fn declare(function: &mut Function<'_>, scope: usize, variable: Variable) -> usize {
    let index = function.variables.len();
    function.scopes[scope].symbols.insert(variable.name.clone(), Symbol::Variable(index));
    function.variables.push(variable);
    index
}
