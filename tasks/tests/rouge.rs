//! ROUGE agrees with the Python package.

use proptest::prelude::*;
use spanforge_tasks::rouge::Rouge;

/// Computed by `rouge-score` 0.1.2 with `use_stemmer=False`, rounded to six digits.
#[test]
fn figures_are_those_of_rouge_score() {
    for (reference, summary, expected) in [
        ("the cat sat on the mat", "the cat was on the mat", [0.833333, 0.6, 0.833333]),
        (
            "The mayor of Perth, Anna Lee, opened a bridge on Monday.",
            "Anna Lee opened the 40-million bridge in Perth.",
            [0.6, 0.222222, 0.4],
        ),
        ("police killed the gunman", "the gunman police killed", [1.0, 0.666667, 0.5]),
        ("the the the cat", "the cat the", [0.857143, 0.4, 0.571429]),
        ("one", "two", [0.0, 0.0, 0.0]),
        ("", "", [0.0, 0.0, 0.0]),
        ("a b", "", [0.0, 0.0, 0.0]),
    ] {
        let Rouge { rouge1, rouge2, rouge_l } = Rouge::of(reference, summary);
        for (found, expected) in [rouge1, rouge2, rouge_l].into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{reference} / {summary}: {found}");
        }
    }
}

proptest! {
    /// A text agrees with itself, the order of the two does not matter, and no figure leaves 0 to 1.
    #[test]
    fn figures_are_shares(a in "[a-d ]{0,20}", b in "[a-d ]{0,20}") {
        let (ab, ba) = (Rouge::of(&a, &b), Rouge::of(&b, &a));
        prop_assert_eq!(ab, ba);
        for figure in [ab.rouge1, ab.rouge2, ab.rouge_l] {
            prop_assert!((0.0..=1.0).contains(&figure));
        }
        prop_assert!(ab.rouge_l <= ab.rouge1);
        let itself = Rouge::of(&a, &a);
        prop_assert_eq!(itself.rouge1, f64::from(u8::from(!a.trim().is_empty())));
        prop_assert_eq!(itself.rouge_l, itself.rouge1);
    }
}
