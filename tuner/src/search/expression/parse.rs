//! Text to tree. Chains of operators are kept flat, so the tree is never deeper than the text
//! nests, which is bounded.

use super::lex::{Token, tokens};
use super::{ExpressionError, Value};

/// Brackets, signs, `not` and powers within each other, at most.
const NESTING: usize = 50;
/// `for` and `if` clauses of one comprehension, at most.
const CLAUSES: usize = 8;

/// A part of an expression and the character it starts at, counted from 1.
#[derive(Clone, Debug)]
pub struct Node {
    pub position: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Constant(Value),
    Name(String),
    List(Vec<Node>),
    Comprehension {
        element: Box<Node>,
        clauses: Vec<Clause>,
    },
    Call {
        function: Function,
        arguments: Vec<Node>,
    },
    Sign {
        minus: bool,
        of: Box<Node>,
    },
    Not(Box<Node>),
    /// Operators of one precedence, applied from left to right.
    Chain {
        first: Box<Node>,
        rest: Vec<(Arithmetic, Node)>,
    },
    Power {
        base: Box<Node>,
        exponent: Box<Node>,
    },
    /// `a < b <= c`
    Compare {
        first: Box<Node>,
        rest: Vec<(Comparison, Node)>,
    },
    And(Vec<Node>),
    Or(Vec<Node>),
}

impl Node {
    /// Adds the names that the node reads from outside itself to `names`, each once.
    pub fn free_names<'a>(&'a self, bound: &mut Vec<&'a str>, names: &mut Vec<String>) {
        match &self.kind {
            Kind::Constant(_) => {}
            Kind::Name(name) => {
                if !bound.contains(&name.as_str()) && !names.contains(name) {
                    names.push(name.clone());
                }
            }
            Kind::List(nodes) | Kind::And(nodes) | Kind::Or(nodes) => {
                nodes.iter().for_each(|node| node.free_names(bound, names));
            }
            Kind::Call { arguments, .. } => {
                arguments.iter().for_each(|node| node.free_names(bound, names));
            }
            Kind::Sign { of, .. } | Kind::Not(of) => of.free_names(bound, names),
            Kind::Power { base, exponent } => {
                base.free_names(bound, names);
                exponent.free_names(bound, names);
            }
            Kind::Chain { first, rest } => {
                first.free_names(bound, names);
                rest.iter().for_each(|(_, node)| node.free_names(bound, names));
            }
            Kind::Compare { first, rest } => {
                first.free_names(bound, names);
                rest.iter().for_each(|(_, node)| node.free_names(bound, names));
            }
            Kind::Comprehension { element, clauses } => {
                let outer = bound.len();
                for clause in clauses {
                    match clause {
                        Clause::For { name, values } => {
                            values.free_names(bound, names);
                            bound.push(name);
                        }
                        Clause::If(condition) => condition.free_names(bound, names),
                    }
                }
                element.free_names(bound, names);
                bound.truncate(outer);
            }
        }
    }
}

#[derive(Clone, Debug)]
pub enum Clause {
    For { name: String, values: Node },
    If(Node),
}

#[derive(Clone, Copy, Debug)]
pub enum Function {
    Range,
    List,
    Min,
    Max,
    Abs,
}

#[derive(Clone, Copy, Debug)]
pub enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
}

#[derive(Clone, Copy, Debug)]
pub enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

const FUNCTIONS: [(&str, Function); 5] = [
    ("range", Function::Range),
    ("list", Function::List),
    ("min", Function::Min),
    ("max", Function::Max),
    ("abs", Function::Abs),
];
const SUMS: [(&str, Arithmetic); 2] = [("+", Arithmetic::Add), ("-", Arithmetic::Subtract)];
const PRODUCTS: [(&str, Arithmetic); 4] = [
    ("*", Arithmetic::Multiply),
    ("/", Arithmetic::Divide),
    ("//", Arithmetic::FloorDivide),
    ("%", Arithmetic::Modulo),
];
const COMPARISONS: [(&str, Comparison); 6] = [
    ("==", Comparison::Equal),
    ("!=", Comparison::Unequal),
    ("<", Comparison::Less),
    ("<=", Comparison::LessOrEqual),
    (">", Comparison::Greater),
    (">=", Comparison::GreaterOrEqual),
];
/// The tree of a text.
pub fn parse(text: &str) -> Result<Node, ExpressionError> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0 };
    let root = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(root),
        other => Err(parser.expected("an operator or the end", &other.describe())),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens[self.next].1.clone()
    }

    fn position(&self) -> usize {
        self.tokens[self.next].0
    }

    /// Steps over the token, but never over the end.
    fn advance(&mut self) {
        self.next = (self.next + 1).min(self.tokens.len() - 1);
    }

    fn take_symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Token::Symbol(s) if s == symbol);
        if found {
            self.advance();
        }
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = matches!(self.peek(), Token::Word(w) if w == word);
        if found {
            self.advance();
        }
        found
    }

    fn expected(&self, what: &str, found: &str) -> ExpressionError {
        ExpressionError::new(self.position(), format!("expected {what}, found {found}"))
    }

    fn demand(&mut self, what: &str, symbol: &str) -> Result<(), ExpressionError> {
        if self.take_symbol(symbol) {
            return Ok(());
        }
        Err(self.expected(what, &self.peek().describe()))
    }

    fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, ExpressionError>,
    ) -> Result<T, ExpressionError> {
        if self.depth == NESTING {
            let message = format!("nests more than {NESTING} levels deep");
            return Err(ExpressionError::new(self.position(), message));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn expression(&mut self) -> Result<Node, ExpressionError> {
        self.nested(|parser| {
            parser.joined("or", Kind::Or, |parser| parser.joined("and", Kind::And, Self::negation))
        })
    }

    fn joined(
        &mut self,
        word: &str,
        kind: fn(Vec<Node>) -> Kind,
        read: impl Fn(&mut Self) -> Result<Node, ExpressionError>,
    ) -> Result<Node, ExpressionError> {
        let position = self.position();
        let first = read(self)?;
        let mut parts = vec![first];
        while self.take_word(word) {
            parts.push(read(self)?);
        }
        Ok(match parts.pop() {
            Some(only) if parts.is_empty() => only,
            last => {
                parts.extend(last);
                Node { position, kind: kind(parts) }
            }
        })
    }

    fn negation(&mut self) -> Result<Node, ExpressionError> {
        let position = self.position();
        if self.take_word("not") {
            let of = self.nested(Self::negation)?;
            return Ok(Node { position, kind: Kind::Not(Box::new(of)) });
        }
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison()? {
            rest.push((comparison, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        Ok(Node { position, kind: Kind::Compare { first: Box::new(first), rest } })
    }

    fn comparison(&mut self) -> Result<Option<Comparison>, ExpressionError> {
        if let Some(comparison) = self.one_of(&COMPARISONS) {
            return Ok(Some(comparison));
        }
        if self.take_word("in") {
            return Ok(Some(Comparison::In));
        }
        if self.take_word("not") {
            if self.take_word("in") {
                return Ok(Some(Comparison::NotIn));
            }
            return Err(self.expected("`in` after `not`", &self.peek().describe()));
        }
        Ok(None)
    }

    fn one_of<T: Copy>(&mut self, operators: &[(&str, T)]) -> Option<T> {
        let Token::Symbol(symbol) = self.peek() else { return None };
        let (_, operator) = operators.iter().find(|(text, _)| *text == symbol)?;
        self.advance();
        Some(*operator)
    }

    fn sum(&mut self) -> Result<Node, ExpressionError> {
        self.chain(&SUMS, |parser| parser.chain(&PRODUCTS, Self::factor))
    }

    fn chain(
        &mut self,
        operators: &[(&str, Arithmetic)],
        read: impl Fn(&mut Self) -> Result<Node, ExpressionError>,
    ) -> Result<Node, ExpressionError> {
        let position = self.position();
        let first = read(self)?;
        let mut rest = Vec::new();
        while let Some(operator) = self.one_of(operators) {
            rest.push((operator, read(self)?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        Ok(Node { position, kind: Kind::Chain { first: Box::new(first), rest } })
    }

    fn factor(&mut self) -> Result<Node, ExpressionError> {
        let position = self.position();
        if let Some(sign) = self.one_of(&SUMS) {
            let of = Box::new(self.nested(Self::factor)?);
            let minus = matches!(sign, Arithmetic::Subtract);
            return Ok(Node { position, kind: Kind::Sign { minus, of } });
        }
        let base = self.atom()?;
        if !self.take_symbol("**") {
            return Ok(base);
        }
        // To the right, and a sign may follow: 2 ** -1.
        let exponent = Box::new(self.nested(Self::factor)?);
        Ok(Node { position, kind: Kind::Power { base: Box::new(base), exponent } })
    }

    fn atom(&mut self) -> Result<Node, ExpressionError> {
        let position = self.position();
        let token = self.peek();
        let kind = match token {
            Token::Constant(value) => {
                self.advance();
                Kind::Constant(value)
            }
            Token::Word(word) => return self.word(word, position),
            Token::Symbol("(") => {
                self.advance();
                let mut parts = Vec::new();
                let tuple = self.items(")", &mut parts)?;
                match parts.pop() {
                    Some(only) if parts.is_empty() && !tuple => return Ok(only),
                    last => {
                        parts.extend(last);
                        Kind::List(parts)
                    }
                }
            }
            Token::Symbol("[") => {
                self.advance();
                self.list()?
            }
            other => return Err(self.expected("a value", &other.describe())),
        };
        Ok(Node { position, kind })
    }

    /// Items up to a closing bracket; whether there was a comma, which makes a tuple of one item.
    fn items(&mut self, close: &str, items: &mut Vec<Node>) -> Result<bool, ExpressionError> {
        let mut comma = items.is_empty();
        while !self.take_symbol(close) {
            if !comma {
                return Err(self.expected(&format!("`,` or `{close}`"), &self.peek().describe()));
            }
            items.push(self.expression()?);
            comma = self.take_symbol(",");
        }
        Ok(comma)
    }

    fn word(&mut self, word: String, position: usize) -> Result<Node, ExpressionError> {
        if matches!(word.as_str(), "and" | "or" | "not" | "in" | "for" | "if" | "else" | "is") {
            return Err(self.expected("a value", &format!("`{word}`")));
        }
        self.advance();
        if !self.take_symbol("(") {
            return Ok(Node { position, kind: Kind::Name(word) });
        }
        let Some((_, function)) = FUNCTIONS.iter().find(|(name, _)| *name == word) else {
            let message = format!("`{word}` is not one of range, list, min, max, abs");
            return Err(ExpressionError::new(position, message));
        };
        let mut arguments = Vec::new();
        self.items(")", &mut arguments)?;
        Ok(Node { position, kind: Kind::Call { function: *function, arguments } })
    }

    /// What follows `[`: a list or a comprehension.
    fn list(&mut self) -> Result<Kind, ExpressionError> {
        if self.take_symbol("]") {
            return Ok(Kind::List(Vec::new()));
        }
        let element = self.expression()?;
        if matches!(self.peek(), Token::Word(word) if word == "for") {
            let clauses = self.clauses()?;
            self.demand("`]`", "]")?;
            return Ok(Kind::Comprehension { element: Box::new(element), clauses });
        }
        let mut items = vec![element];
        if self.take_symbol(",") {
            let mut rest = Vec::new();
            self.items("]", &mut rest)?;
            items.append(&mut rest);
        } else {
            self.demand("`,` or `]`", "]")?;
        }
        Ok(Kind::List(items))
    }

    fn clauses(&mut self) -> Result<Vec<Clause>, ExpressionError> {
        let mut clauses = Vec::new();
        loop {
            if clauses.len() > CLAUSES {
                let message = format!("a comprehension of more than {CLAUSES} clauses");
                return Err(ExpressionError::new(self.position(), message));
            }
            if self.take_word("for") {
                let Token::Word(name) = self.peek() else {
                    return Err(self.expected("a name", &self.peek().describe()));
                };
                self.advance();
                if !self.take_word("in") {
                    return Err(self.expected("`in`", &self.peek().describe()));
                }
                clauses.push(Clause::For { name, values: self.expression()? });
            } else if self.take_word("if") {
                clauses.push(Clause::If(self.expression()?));
            } else {
                return Ok(clauses);
            }
        }
    }
}
