//! Constraint expressions mean what they mean in Python, and no text does harm.

use proptest::prelude::{Just, proptest};
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof};
use spanforge_tuner::search::{Expression, ExpressionError, Value};

/// Expressions and what Python 3 prints for them, strings without their quotes.
const PYTHON: &[(&str, &str)] = &[
    ("[16*i for i in range(1,9)]", "[16, 32, 48, 64, 80, 96, 112, 128]"),
    ("[1] + [2 * i for i in range(1, 11)]", "[1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]"),
    (
        "[1, 2, 4, 8, 16] + list(range(32, 256+1, 32))",
        "[1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256]",
    ),
    ("[2**i for i in range(0, 6)]", "[1, 2, 4, 8, 16, 32]"),
    ("[x*y for x in [1,2,3] if x != 2 for y in range(x)]", "[0, 0, 3, 6]"),
    ("[[i, 'a'] for i in (1, 2)]", "[[1, a], [2, a]]"),
    ("32 <= 8 * 16 <= 1024", "True"),
    ("1 < 3 < 2", "False"),
    ("1 == 1.0 == True", "True"),
    ("-7 // 2", "-4"),
    ("-7 % 3", "2"),
    ("7 % -3", "-2"),
    ("-7.5 % 2", "0.5"),
    ("7.5 // -2", "-4.0"),
    ("-2**2", "-4"),
    ("2**-1", "0.5"),
    ("2**3**2", "512"),
    ("(-2)**3", "-8"),
    ("not 1 == 2", "True"),
    ("not 0 or 1/0", "True"),
    ("0 and 1/0", "0"),
    ("0 or 'x'", "x"),
    ("'' or 0.0", "0.0"),
    ("1 and 2.5", "2.5"),
    ("3 in [1, 2, 3]", "True"),
    ("3 not in (1, 2)", "True"),
    ("'an' in 'banana'", "True"),
    ("'b' < 'c' <= 'c'", "True"),
    ("max(3, 7, 5) - min([4, 2, 9]) * abs(-3)", "1"),
    ("max(1, True)", "1"),
    ("min(1.0, 1)", "1.0"),
    ("range(5, 0, -2)", "[5, 3, 1]"),
    ("list(range(0))", "[]"),
    ("[]", "[]"),
    ("()", "[]"),
    ("(3,)", "[3]"),
    ("(3)", "3"),
    ("True + True", "2"),
    ("1e3 + .5", "1000.5"),
    ("0x1F", "31"),
    ("1_000", "1000"),
    ("10 / 4", "2.5"),
    ("10 / 5", "2.0"),
    ("8 // 3.0", "2.0"),
    ("not not 5", "True"),
    ("- - 3", "3"),
    ("+True", "1"),
    ("5 - 3 - 1", "1"),
    ("100 // 7 // 2", "7"),
    ("2 * 3 % 4", "2"),
    ("1 < 2 == True", "False"),
    ("(1 < 2) == True", "True"),
    ("[1, 2] == [1, 2.0]", "True"),
    ("'1' == 1", "False"),
    ("[i for i in range(10) if i % 2 if i > 4]", "[5, 7, 9]"),
    ("10 / 2.5 + 1 == min((2.5 + 3), 2)", "False"),
    ("7 == (1 < 0) < (True % 7)", "False"),
    ("1 - 10 + True + 0 >= 10 < -1 // True != 7 >= True", "False"),
    ("0 / 3 + 2.5 or 2 or 2.5 or (-4) >= abs(True or 2 // 10 % -4)", "2.5"),
    ("((-10 + True >= 2.5))", "False"),
    ("abs(abs(-4) * True * -4 != min(10, 0))", "1"),
    ("abs((not 7 == -4))", "1"),
    ("(-3) and True % 0 + 3 != -4 * (abs(1))", "division by zero"),
    ("(max(1 or 1, -True)) * (2.5)", "2.5"),
    ("abs(abs(-4) * 0 and 1) == 3 // 10 / 10 + 2 + 10 + 10 * 0 or True", "True"),
    ("-4 + 10 < 7 == 3 - 1 // abs(-(7))", "False"),
    ("1 // 0 >= 7 - 0 % 10 + 2 + 10 != 7 == 3 // (7) % abs(0)", "division by zero"),
    ("True == 2.5 == 3 % 3 or (-4) + max(2.5 or 10, 3 != 7) + -4 == -4 / 7", "False"),
    ("(not 1) * 7 >= 10 or 2 >= -(2 + 10)", "True"),
    ("(-3 - 2 >= 0 >= 10 >= True and 1)", "False"),
    ("(True) // min(abs(True) or 7 and 0, (2))", "1"),
    ("-10 / True + 7 * 10 * abs(1) * (10) // (3)", "223.0"),
    ("max(0, ((1 or -4)))", "1"),
    ("(1 % 2.5 and 1 + 7) >= 2.5 + 2.5 == (0) != (7)", "False"),
    ("abs((7) + 10 >= 2.5 - abs(True) == abs(True))", "0"),
    ("(min(10, 0)) + (7) * 2.5 != 1 - 10", "True"),
    ("not abs(3 * 10) / (3) * (3)", "False"),
    ("abs(7 != 10 - abs(7) and not True < 2.5 >= 0)", "0"),
    ("0 * max(1, 1) * (0) // -4 % True * 1", "0"),
    ("(1 + 3) - abs(7 + True) * (--4) or 3 + 2 / (True)", "-28"),
    ("min(True != 2 + True, (min(7, 7))) // 2 // 3 % 7 / (0) - 3", "division by zero"),
    ("min(7 and 0 - (-4), 3 // 3) or -4", "1"),
    ("True == (2) >= (2.5) != abs(-4 + max(3, 2.5))", "False"),
    ("max(2 >= abs(10) * 7, 2.5 * -min(True, -4))", "10.0"),
    ("-4 and min(1, (1)) / True", "1.0"),
    ("-(max(max(True, 2), abs(True)))", "-2"),
    ("2 + abs(min(7, 1)) and (min(2.5 != -4, abs(2)))", "True"),
    ("(0 / 2.5 + min((0), 0))", "0.0"),
    ("-4 < 0 and 3 != 1 - max(10 % 10 != True, abs(10))", "True"),
    ("abs(min(7 / 3, (-4)) / abs(10) * 0 or 0)", "0"),
    ("abs((-3 - 0))", "3"),
    ("(3 // 7 // -4)", "0"),
    ("not max(abs(10), abs(7)) or (1 * 10)", "10"),
    ("(min((-4), 10 == 2) + (0 % -4))", "-4"),
    ("max((2 % True >= 3 // 7), min(abs((-4)), abs(1) * 2.5 * 2))", "4"),
    ("(0 + 2.5 or (10) >= (0) != max(3, 3))", "2.5"),
    ("(-2 // 0 < 2.5 == abs((0)))", "division by zero"),
    ("abs(10) % True == -4 == (True) / abs((0)) // 2.5 + (7)", "False"),
    ("abs(1 and 3 * (2) % max(10 >= 2, 3 // 2.5))", "0"),
    ("abs(-True + 1 >= 1 or -4 and -4 >= 0)", "0"),
];

fn evaluate(text: &str) -> Result<Value, ExpressionError> {
    Expression::parse(text)?.evaluate(&|name| match name {
        "x" => Some(Value::Int(6)),
        "name" => Some(Value::Text("half".into())),
        _ => None,
    })
}

#[test]
fn expressions_mean_what_they_mean_in_python() {
    for (text, expected) in PYTHON {
        match evaluate(text) {
            Ok(value) => assert_eq!(value.to_string(), *expected, "{text}"),
            Err(error) => assert_eq!(error.message, *expected, "{text}"),
        }
    }
}

#[test]
fn names_are_looked_up_unless_a_comprehension_binds_them() {
    let parse = |text| Expression::parse(text).expect("valid");
    assert_eq!(parse("a * b <= a and c in [b]").names(), ["a", "b", "c"]);
    assert_eq!(parse("[i * a for i in range(n) if i < m]").names(), ["n", "m", "a"]);
    assert_eq!(parse("[[i + j for j in i] for i in j]").names(), ["j"]);
    assert_eq!(evaluate("x % 4 == 2 and name in ['half', 'float']"), Ok(Value::Bool(true)));
    assert_eq!(evaluate("[x for x in [1]] + [x]"), evaluate("[1, 6]"));
}

#[test]
fn faults_are_named_with_their_place() {
    for (text, position, message) in [
        ("", 1, "expected a value, found the end"),
        ("1 +", 4, "expected a value, found the end"),
        ("(1", 3, "expected `,` or `)`, found the end"),
        ("[1 2]", 4, "expected `,` or `]`, found `2`"),
        ("1 2", 3, "expected an operator or the end, found `2`"),
        ("a = 1", 3, "expected a value or an operator, found `=`"),
        ("a.b", 2, "expected a value or an operator, found `.`"),
        ("exec('x')", 1, "`exec` is not one of range, list, min, max, abs"),
        ("'a", 1, "expected a string without escapes that ends in '"),
        ("12abc", 1, "`12abc` is not a number of 64 bits"),
        ("99999999999999999999", 1, "`99999999999999999999` is not a number of 64 bits"),
        ("[i for i of x]", 10, "expected `in`, found `of`"),
        ("1 not 2", 7, "expected `in` after `not`, found `2`"),
        ("y + 1", 1, "unknown name `y`"),
        ("1 + 'a'", 5, "expected a number, found a string"),
        ("1 < 'a'", 5, "cannot order a whole number and a string"),
        ("1 in 2", 6, "expected a list after `in`, found a whole number"),
        ("max([])", 1, "expected at least one value"),
        ("max(3)", 1, "expected a list, found a whole number"),
        ("range()", 1, "`range` takes 1 to 3 numbers, found 0 arguments"),
        ("range(1, 2, 0)", 1, "a range cannot have steps of 0"),
        ("x % 0", 5, "division by zero"),
        ("2 ** 63", 1, "the result does not fit into 64 bits"),
        ("9223372036854775807 + 1", 23, "the result does not fit into 64 bits"),
        ("(-9223372036854775807 - 1) // -1", 31, "the result does not fit into 64 bits"),
        ("(0 - 1) ** 0.5", 1, "the result is not a finite real number"),
    ] {
        let expected = ExpressionError { position, message: message.into() };
        assert_eq!(evaluate(text), Err(expected), "{text}");
    }
}

#[test]
fn no_text_takes_long_or_nests_without_end() {
    let deep = |open: &str, close: &str| open.repeat(100_000) + "1" + &close.repeat(100_000);
    for text in [deep("(", ")"), deep("[", "]"), deep("-", ""), deep("not ", ""), deep("2**", "")] {
        let error = evaluate(&text).expect_err("too deep");
        assert!(error.message.contains("nests more than"), "{error}");
    }
    assert_eq!(evaluate(&("1".to_owned() + &"+1".repeat(99_999))), Ok(Value::Int(100_000)));
    for text in [
        "range(10 ** 18)",
        "[0 for a in range(999) for b in range(999) for c in range(999)]",
        "[a for b in range(9999) for a in [range(9999)]]",
        "[[a, a] for a in [[a, a] for a in [range(99999)]] for b in range(99)]",
        "[w in w for w in ['aaaaaaaaaaaaaaaaaaaa'] for i in range(999999)]",
    ] {
        let error = evaluate(text).expect_err("too much");
        assert!(error.message.contains("steps to evaluate"), "{error}");
    }
    let clauses = "[1".to_owned() + &" for a in [1]".repeat(5000) + "]";
    let error = evaluate(&clauses).expect_err("too many");
    assert!(error.message.contains("clauses"), "{error}");
    // Doubled at every level: linear to read all the same.
    let nested = "[".repeat(40) + "1" + &" for a in [1]]".repeat(40);
    assert!(evaluate(&nested).is_ok());
}

/// A tree over whole numbers that knows its value, written with no more brackets than needed.
#[derive(Clone, Debug)]
struct Known {
    text: String,
    /// `None` where something divides by zero or leaves 64 bits.
    value: Option<i128>,
    /// 0 sum, 1 product, 2 sign, 3 atom.
    precedence: u8,
}

fn known() -> impl Strategy<Value = Known> {
    let leaf = any::<i8>().prop_map(|n| {
        let n = i128::from(n).abs();
        Known { text: n.to_string(), value: Some(n), precedence: 3 }
    });
    leaf.prop_recursive(6, 40, 2, |inner| {
        let operator = prop_oneof![Just("+"), Just("-"), Just("*"), Just("//"), Just("%")];
        prop_oneof![
            4 => (inner.clone(), operator, inner.clone()).prop_map(|(a, o, b)| binary(&a, o, &b)),
            1 => inner.prop_map(|a| Known {
                text: format!("-{}", bracketed(&a, 2)),
                value: a.value.map(|a| -a).filter(|a| i64::try_from(*a).is_ok()),
                precedence: 2,
            }),
        ]
    })
}

fn bracketed(tree: &Known, precedence: u8) -> String {
    if tree.precedence < precedence { format!("({})", tree.text) } else { tree.text.clone() }
}

fn binary(a: &Known, operator: &str, b: &Known) -> Known {
    let precedence = u8::from(!matches!(operator, "+" | "-"));
    // To the left: the right side needs brackets already where it is of the same precedence.
    let text = format!("{}{operator}{}", bracketed(a, precedence), bracketed(b, precedence + 1));
    let value = a.value.zip(b.value).and_then(|(a, b)| match operator {
        "+" => Some(a + b),
        "-" => Some(a - b),
        "*" => Some(a * b),
        _ if b == 0 => None,
        // The quotient rounded down, from the Euclidean one.
        "//" => Some(if b > 0 { a.div_euclid(b) } else { (-a).div_euclid(-b) }),
        _ => Some(if b > 0 { a.rem_euclid(b) } else { -((-a).rem_euclid(-b)) }),
    });
    let value = value.filter(|value| i64::try_from(*value).is_ok());
    Known { text, value, precedence }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whole_numbers_are_exact(tree in known()) {
        let value = evaluate(&tree.text).ok().map(|value| value.as_int().expect("whole"));
        prop_assert_eq!(value.map(i128::from), tree.value, "{}", tree.text);
    }

    #[test]
    fn any_text_is_an_expression_or_an_error_in_it(text in "[-a-c0-9 +*/%()\\[\\],.<>=!'\"x_é]{0,40}") {
        if let Err(error) = evaluate(&text) {
            prop_assert!(error.position >= 1 && error.position <= text.chars().count() + 1);
        }
    }

    #[test]
    fn any_sequence_of_words_is_an_expression_or_an_error_in_it(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "x", "1", "2.5", "'a'", "for", "in", "if", "not", "and", "or", "[", "]", "(", ")",
                ",", "**", "//", "-", "<", "range(3)", "max", "[i for i in", "i",
            ]),
            0..16,
        ),
    ) {
        let text = words.join(" ");
        if let Err(error) = evaluate(&text) {
            prop_assert!(error.position >= 1 && error.position <= text.chars().count() + 1);
        }
    }
}
